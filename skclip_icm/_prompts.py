"""Names of classes, the prompts that these make, and their embeddings."""

import hashlib
import re
import warnings
from collections.abc import Mapping

import numpy as np
from sklearn.utils.multiclass import check_classification_targets

from skclip_icm._containers import check_texts, entries
from skclip_icm._encoding.places import cache_place
from skclip_icm._encoding.stores import open_cache
from skclip_icm._labels import as_python, check_labels
from skclip_icm.interventions._captions import check_templates, fill

_ROWS_AT_ONCE = 1024
_MAX_TOLD = 5
# One text in batches of different sizes, in bfloat16, is about that far from itself.
_SAME = 1e-5
_OTHER_SLOT = re.compile(r"\{[^{}]+\}")  # such as those of str.format and of f-strings
# How a warning of classes that look alike begins, and what it advises.
_WORDS = (
    "The model gives",
    "It may not know these words, not tell upper from lower case, or see only the "
    "beginning of long texts: give class_names that differ in other words.",
)
_MAP = (
    "After the map of icm, the model gives",
    "It keeps too few directions: give a smaller lam, more n_components, or "
    "method='whitening' with a larger shrinkage.",
)


def name_classes(class_names, y, n):
    """Return the labels of the classes in `n` rows, and the names of each."""
    if y is not None:
        y = check_labels(y, "y", n)
        check_classification_targets(y)
    if class_names is None:
        if y is None:
            raise ValueError(
                "The classes have no names: give class_names, such as ['cat', 'dog'], "
                "or labels y."
            )
        labels = np.unique(y)
        if labels.dtype.kind in "biuf":
            _warn_of_numbers(labels)
        return labels, [
            [name] for name in check_texts(list(map(str, labels)), "classes_")
        ]
    if isinstance(class_names, Mapping):
        names = _synonyms(list(class_names.values()))
        labels = check_labels(list(class_names), "class_names", len(names))
    else:
        names = _synonyms(class_names)
        firsts = [synonyms[0] for synonyms in names]
        labels = check_labels(firsts, "class_names", len(names))
        if y is not None and y.dtype.kind in "biuf":
            labels = np.arange(len(names))
    _check_distinct(names)
    if y is None:
        return labels, names
    _check_named(y, labels)
    if y.dtype.kind in "biuf":
        coded = labels.astype(y.dtype)
        # Of more classes than its type can count, y holds some only.
        labels = coded if (coded == labels).all() else labels
    order = np.argsort(labels)
    return labels[order], [names[i] for i in order]


def _warn_of_numbers(labels):
    shown = ", ".join(map(repr, labels[:_MAX_TOLD].tolist()))
    more = ", ..." if len(labels) > _MAX_TOLD else ""
    warnings.warn(
        f"class_names is None and the labels are {shown}{more}, so the prompts name "
        "the classes by these. Give class_names, such as ['cat', 'dog'] for 0 and 1; "
        "if the images do show numbers, give y as strings.",
        UserWarning,
        stacklevel=5,
    )


def _synonyms(class_names):
    """Return the names of each class as a list."""
    classes = entries(class_names, "class_names", "a list of strings")
    classes = [
        entries(c, f"class_names[{i}]", "strings") if _is_several(c) else [c]
        for i, c in enumerate(classes)
    ]
    check_texts([names[0] for names in classes], "class_names")
    return [check_texts(its, f"class_names[{i}]") for i, its in enumerate(classes)]


def _is_several(entry):
    try:
        return not isinstance(entry, str | bytes) and len(entry) > 0
    except TypeError:  # as arrays without dimensions say
        return False


def _check_distinct(classes):
    names = [name for names in classes for name in dict.fromkeys(names)]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(
            f"class_names holds {min(twice)!r} more than once; the prompts of two "
            "classes must differ."
        )


def _check_named(y, labels):
    unknown = np.flatnonzero(~np.isin(y, labels))
    if unknown.size:
        shown = ", ".join(repr(label) for label in labels[:5].tolist())
        more = ", ..." if len(labels) > 5 else ""
        raise ValueError(
            f"y[{unknown[0]}] is {as_python(y[unknown[0]])!r}, an unknown class: "
            f"class_names names the {len(labels)} labels {shown}{more}. A list names "
            "the labels 0, 1, ... in this order, or is the list of the labels. For "
            "other labels give a dict, such as {-1: 'intact', 1: 'broken'}."
        )


def prompts_of(labels, names, templates):
    """Return the prompts of each class."""
    if isinstance(templates, Mapping):
        by_class = _templates_by_class(labels, templates)
    else:
        templates = [templates] if isinstance(templates, str) else templates
        by_class = [check_templates(templates, "templates")] * len(labels)
    for template in dict.fromkeys(text for some in by_class for text in some):
        if other := _OTHER_SLOT.search(template):
            raise ValueError(
                f"templates holds {template!r}, whose {other[0]} would be read as it "
                "is written. The slot for the name is {}."
            )
    # A prompt without a slot is the same for all names.
    return [
        list(dict.fromkeys(fill(template, name) for template in some for name in its))
        for some, its in zip(by_class, names, strict=True)
    ]


def _templates_by_class(labels, templates):
    labels = labels.tolist()
    wrong = [label for label in templates if label not in labels]
    wrong += [label for label in labels if label not in templates]
    if wrong:
        raise ValueError(
            f"templates has the labels {list(templates)}, expected those of all "
            f"classes, {labels}: they differ in {wrong[0]!r}. Give each class its "
            "prompts, or a list of templates for all."
        )
    return [
        check_texts([t] if isinstance(t, str) else t, f"templates[{label!r}]")
        for label, t in ((label, templates[label]) for label in labels)
    ]


def class_embeddings(featurizer, prompts):
    encoded = _encode_prompts(featurizer, [text for some in prompts for text in some])
    ends = np.cumsum([len(some) for some in prompts])
    return unit(np.stack([rows.mean(axis=0) for rows in np.split(encoded, ends[:-1])]))


def warn_of_map(names, rows, kept, mapped):
    """Warn of classes that a map makes alike, or of which it leaves nothing.

    `kept` is the share of their length that it leaves them, beside that of images.
    Those whose `rows` were alike before it have been told.
    """
    lost = [name[0] for name, share in zip(names, kept, strict=True) if share < _SAME]
    if lost:
        warnings.warn(
            f"After the map of icm, nothing is left of the prompts of {lost[0]!a}"
            f"{f' and {len(lost) - 1} more' if lost[1:] else ''}: where they are "
            f"predicted is a matter of rounding. {_MAP[1]}",
            UserWarning,
            stacklevel=6,
        )
    else:
        warn_of_coinciding(names, unit(mapped), rows, _MAP, stacklevel=7)


def warn_of_coinciding(names, rows, before=None, texts=_WORDS, stacklevel=4):
    """Warn of classes of which the first is predicted always, the others never."""
    told = []
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        alike = _alike(rows, start)
        if before is not None:
            alike &= ~_alike(before, start)
        pairs = np.argwhere(np.triu(alike, 1)) + start
        pairs = pairs[: _MAX_TOLD + 1]
        told += [f"{names[i][0]!a} and {names[j][0]!a}" for i, j in pairs]
        if len(told) > _MAX_TOLD:
            break
    if told:
        more = ", and so on" if len(told) > _MAX_TOLD else ""
        warnings.warn(
            f"{texts[0]} the same embedding to the prompts of "
            f"{'; of '.join(told[:_MAX_TOLD])}{more}: of these classes only one can "
            f"ever be predicted. {texts[1]}",
            UserWarning,
            stacklevel=stacklevel,
        )


def _alike(rows, start):
    return rows[start : start + _ROWS_AT_ONCE] @ rows[start:].T > 1 - _SAME


def _encode_prompts(featurizer, prompts):
    """Unit embeddings of texts, each encoded once for any number of fits."""
    fingerprint = featurizer._encoder().fingerprint
    store = open_cache(cache_place(featurizer))
    keys = [
        hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
        for key in (f"{fingerprint}\0text\0{prompt}" for prompt in prompts)
    ]
    rows = store.get_many(keys)
    missing = [i for i, row in enumerate(rows) if row is None]
    if missing:
        encoded = featurizer.encode_text([prompts[i] for i in missing])
        encoded = unit(np.asarray(encoded, dtype=np.float32))
        store.put_many([keys[i] for i in missing], encoded)
        for i, row in zip(missing, encoded, strict=True):
            rows[i] = row
    return np.stack(rows)


def unit(rows):
    """Return rows of unit length, or of zeros, whatever the size of the numbers."""
    largest, smallest = (f(axis=1, keepdims=True) for f in (rows.max, rows.min))
    peaks = np.maximum(largest, -smallest)
    rows = rows / np.where(peaks > 0, peaks, 1)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows /= np.maximum(norms, np.finfo(rows.dtype).tiny)
    return rows
