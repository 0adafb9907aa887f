"""Interventions on captions: reword what should not matter, keep what should.

A caption and its edit describe the same content in another style. The differences
between their embeddings span the directions of the shared space that hold style, so
they serve `ICMTransformer` in place of pairs of images, or beside them.
"""

import hashlib
import re
from numbers import Integral

import numpy as np

from skclip_icm._containers import check_texts
from skclip_icm._estimators import Interval, StrOptions, validate_params
from skclip_icm.interventions._callables import call_reproducibly

#: Styles of a picture, as templates with a slot ``{}`` for its content.
TEMPLATES = (
    "a photo of a {}.",
    "a blurry photo of a {}.",
    "a dark photo of a {}.",
    "a black and white photo of a {}.",
    "a close-up photo of a {}.",
    "a sketch of a {}.",
    "a painting of a {}.",
    "a watercolour of a {}.",
    "a cartoon of a {}.",
    "an icon of a {}.",
    "line art of a {}.",
    "a 3D render of a {}.",
    "a sculpture of a {}.",
    "a silhouette of a {}.",
)

#: Groups of words and phrases, any of which may stand for another of its group.
LEXICON = {
    "colour": "red blue green yellow black white brown grey purple pink".split(),
    "medium": "photo sketch drawing painting cartoon".split(),
    "weather": ["sunny", "rainy", "snowy", "foggy", "cloudy"],
    "in weather": ["in the sun", "in the rain", "in the snow", "in the fog"],
    "background": [
        "on the beach",
        "in the forest",
        "in the street",
        "in the kitchen",
        "in the mountains",
        "against a white wall",
    ],
    "time": ["at dawn", "at noon", "at dusk", "at night"],
}


@validate_params(
    {
        "contents": "no_validation",
        "by": [StrOptions({"templates", "lexicon"}), "array-like", dict, callable],
        "n_interventions": [Interval(Integral, 1, None, closed="left")],
        "random_state": [Integral],
    },
    prefer_skip_nested_validation=True,
)
def captions(contents, by="templates", *, n_interventions=1, random_state=0):
    """Make pairs of captions that differ in what should not matter.

    Parameters
    ----------
    contents : sequence of str, length n
        Names of classes or concepts, or whole captions.
    by : {"templates", "lexicon"}, sequence, dict or callable, default="templates"
        How a caption is edited.

        - "templates" or a sequence of at least two templates such as ``"a sketch of a
          {}."``: the content is put into two templates drawn at random. "templates"
          is `TEMPLATES`.
        - "lexicon" or a dict of groups, each a list of at least two words or phrases:
          one word or phrase that the content holds is swapped for another of its
          group; where it holds none, a phrase of several words is appended.
          "lexicon" is `LEXICON`.
        - A callable, such as a captioner or a language model: it is given the content
          and returns the edited caption. A second positional parameter that is
          required or called ``rng`` is given a `numpy.random.Generator`.
    n_interventions : int, default=1
        Pairs drawn for each content.
    random_state : int, default=0
        Seed. A pair depends on the seed and its content, not on the order or number
        of contents.

    Returns
    -------
    captions : list of str, length n * n_interventions
        The pairs of one content follow each other.
    edited : list of str, length n * n_interventions
        Their edits.

    Raises
    ------
    TypeError
        If a content is not a string, or the callable returns something else.
    ValueError
        If there are no contents, a template has no slot, a group or list has fewer
        than two entries, a content holds no word of a lexicon without phrases, or no
        caption was changed.

    Notes
    -----
    The words edited must not be what the classes are about: with a class "polar bear"
    the colours of the lexicon are harmless, with "red panda" they are not.

    Examples
    --------
    >>> from skclip_icm.interventions import captions
    >>> captions(["dog"], by=["a photo of a {}.", "a sketch of a {}."])
    (['a sketch of a dog.'], ['a photo of a dog.'])
    >>> captions(["a red car"], by={"colour": ["red", "orange"]})
    (['a red car'], ['an orange car'])
    >>> captions(["a car"], by=lambda caption: caption + " at night")
    (['a car'], ['a car at night'])

    Their embeddings fit the projection of image embeddings:

    >>> from skclip_icm import CLIPFeaturizer, ICMTransformer
    >>> featurizer = CLIPFeaturizer("demo")
    >>> U, V = map(featurizer.encode_text, captions(["dog", "car", "rose"]))
    >>> icm = ICMTransformer(pairs=(U, V))
    """
    contents = check_texts(contents, "contents")
    make_pair = _pair_maker(by)
    pairs = [
        make_pair(content, f"contents[{index}]", _seed(random_state, content, draw))
        for index, content in enumerate(contents)
        for draw in range(n_interventions)
    ]
    if all(caption == edit for caption, edit in pairs):
        raise ValueError(
            "by returned every caption unchanged, so the pairs say nothing. Return a "
            "caption in which the style differs."
        )
    originals, edited = zip(*pairs, strict=True)
    return list(originals), list(edited)


def check_templates(templates, name):
    """Return `templates` as a list of strings with a slot, or raise an error."""
    templates = check_texts(templates, name)
    for index, template in enumerate(templates):
        if "{}" not in template:
            raise ValueError(
                f"{name}[{index}] is {template!r}, which has no slot for the content. "
                "Write {} where it belongs, as in 'a photo of a {}.'."
            )
    return templates


def fill(template, content):
    """Put `content` into the slot of a template."""
    # Not str.format, for which other braces in a template have a meaning.
    return template.replace("{}", content)


def _pair_maker(by):
    """Return what turns a content, its name in errors and a seed into a pair."""
    if callable(by):
        return _by_callable(by)
    if isinstance(by, str):
        by = TEMPLATES if by == "templates" else LEXICON
    return _by_lexicon(by) if isinstance(by, dict) else _by_templates(by)


def _seed(random_state, content, draw):
    text = f"{random_state} {draw} {content}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")


def _by_callable(function):
    def make_pair(content, name, seed):
        try:
            edit = call_reproducibly(function, content, seed)
        except Exception as exc:
            exc.add_note(f"This was raised by the callable on {name}, {content!r}.")
            raise
        if not isinstance(edit, str):
            raise TypeError(
                f"by returned {edit!r} of type {type(edit).__name__} for {name}, "
                f"{content!r}; expected the edited caption, a string."
            )
        return content, edit

    return make_pair


def _by_templates(templates):
    templates = list(dict.fromkeys(check_templates(templates, "by")))
    if len(templates) < 2:
        raise ValueError(
            f"by holds the template {templates[0]!r} only, expected two or more: a "
            "pair is one content in two templates."
        )

    def make_pair(content, name, seed):
        rng = np.random.default_rng(seed)
        one, other = rng.choice(len(templates), 2, replace=False)
        return fill(templates[one], content), fill(templates[other], content)

    return make_pair


def _by_lexicon(groups):
    others = _others_of_entries(groups)
    phrases = sorted({e for other in others.values() for e in other if " " in e})
    # The longest first, so that "oil painting" is found before "painting".
    entries = "|".join(map(re.escape, sorted(others, key=len, reverse=True)))
    entry = re.compile(rf"(?<!\w)(?:{entries})(?!\w)", re.IGNORECASE)

    def make_pair(content, name, seed):
        rng = np.random.default_rng(seed)
        found = list(entry.finditer(content))
        if found:
            match = found[rng.integers(len(found))]
            candidates = others[match[0].casefold()]
            return content, _swap(match, candidates[rng.integers(len(candidates))])
        if not phrases:
            raise ValueError(
                f"{name}, {content!r}, holds no word of the lexicon, and the lexicon "
                "holds no phrase of several words to append. Add a group of phrases, "
                "such as 'in the rain' and 'in the snow'."
            )
        return content, _append(content, phrases[rng.integers(len(phrases))])

    return make_pair


def _others_of_entries(groups):
    """For each entry in lower case, the entries that may stand in its place."""
    others = {}
    for group in check_texts(list(groups), "by"):
        entries = check_texts(groups[group], f"by[{group!r}]")
        if len({entry.casefold() for entry in entries}) < 2:
            raise ValueError(
                f"by[{group!r}] holds {entries[0]!r} only, expected two or more "
                "entries, to swap one for another."
            )
        for entry in entries:
            others.setdefault(entry.casefold(), []).extend(
                other for other in entries if other.casefold() != entry.casefold()
            )
    return others


def _swap(match, entry):
    before, after = match.string[: match.start()], match.string[match.end() :]
    if match[0][0].isupper():
        entry = entry[0].upper() + entry[1:]
    article = "an" if entry[0].lower() in "aeiou" else "a"
    before = re.sub(
        r"\b(a)n?(\s+)$", rf"\g<1>{article[1:]}\2", before, flags=re.IGNORECASE
    )
    return before + entry + after


def _append(caption, phrase):
    stem = caption.rstrip()
    stop = "." if stem.endswith(".") else ""
    return f"{stem.removesuffix('.')}, {phrase}{stop}"
