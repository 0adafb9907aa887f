"""Texts to tokens, and a warning where a model does not read all of a text."""

import warnings

_MAX_TEXTS = 256


def tokenized(texts, tokenize):
    """Tokenize texts, and warn of those whose ends were cut off.

    Parameters
    ----------
    texts : list of str
        The texts.
    tokenize : callable
        From a list of strings to a tensor of shape (m, length), of tokens.

    Yields
    ------
    tokens : tensor of shape (m, length)
        Of the next few texts.

    Warns
    -----
    UserWarning
        If one is longer than what the model reads, after the last ones.
    """
    cut = []
    for start in range(0, len(texts), _MAX_TEXTS):
        some = texts[start : start + _MAX_TEXTS]
        tokens = tokenize(some)
        cut += [start + row for row in _find_cut(some, tokens, tokenize)]
        yield tokens
    if cut:
        text = texts[cut[0]]
        shown = repr(text) if len(text) <= 60 else f"{text[:60]!r}..."
        warnings.warn(
            f"The model reads {tokens.shape[1]} tokens of a text. {len(cut)} of "
            f"{len(texts)} texts are longer and were cut, the first texts[{cut[0]}], "
            f"{shown}. What differs only behind that has one embedding: say what "
            "matters first, or in fewer words.",
            stacklevel=6,  # what called CLIPFeaturizer.encode_text
        )


def _find_cut(texts, tokens, tokenize):
    """Return the rows of texts that stay the same without their last letter.

    Tokenizers differ in how they end and pad a text. Rows that are full are looked at
    only.
    """
    padding = tokenize(["a"])[0, -2]
    full = (tokens[:, -2] != padding).nonzero().flatten().tolist()
    if not full:
        return []
    shorter = tokenize([_without_last_letter(texts[row]) for row in full])
    same = (shorter == tokens[full]).all(dim=1).tolist()
    return [row for row, is_cut in zip(full, same, strict=True) if is_cut]


def _without_last_letter(text):
    """Return a text up to its last sign; some tokenizers skip ASCII's dots."""
    end = len(text)
    while end and text[end - 1].isascii() and not text[end - 1].isalnum():
        end -= 1
    return text[: max(end - 1, 0)] or "a"
