"""Labels of rows, of classes and of domains: every path takes them from here.

A label is never turned into another one: not by a cast that merges two of them, and not
by one that makes a name of a missing value.
"""

import numpy as np
from sklearn.utils import column_or_1d

from skclip_icm._containers import entries, is_missing, refuse_tables
from skclip_icm._projection.arrays import to_numpy


def check_labels(labels, name, n):
    """Return labels of `n` rows as a numpy array, or raise an error that names them."""
    labels = _as_array(labels, name, f"({n},) labels, one for each row of X")
    if labels.ndim != 1 and labels.shape[1:] != (1,):
        raise ValueError(
            f"{name} has shape {labels.shape}, expected ({n},): one label for each row "
            f"of X. Give one column, such as {name}[:, 0], or of indicators of classes "
            f"{name}.argmax(axis=1)."
        )
    labels = column_or_1d(labels, warn=True)
    if labels.dtype == object:
        _refuse_lists(labels, name, n)
    if len(labels) != n:
        raise ValueError(
            f"{name} has {len(labels)} entries, expected {n}: Found input variables "
            "with inconsistent numbers of samples. Give one label for each row of X."
        )
    if labels.dtype.kind in "OfcmM":
        _check_present(labels, name)
    if labels.dtype == object:
        labels = _check_alike(_without_loss(labels), name)
    if name == "y" and labels.dtype.kind == "f" and (labels % 1 != 0).any():
        row = int(np.argmax(labels % 1 != 0))
        raise ValueError(
            f"Unknown label type: y[{row}] is {as_python(labels[row])!r}, expected "
            "class labels; numbers with a fraction are for regression. Bin them, for "
            "example by numpy.digitize."
        )
    return labels


def comparable(predicted, labels, method):
    """Return predictions as an array that can be compared with labels.

    Raises ValueError if one is text and the other not: numpy would compare them without
    an error, and find all different. Signed and unsigned integers it would compare, or
    join, as floats, which have one value for 2**53 and 2**53 + 1.
    """
    predicted = np.asarray(predicted)
    if _holds_text(labels) != _holds_text(predicted):
        y, guess = as_python(labels[0]), as_python(predicted[0])
        raise ValueError(
            f"y[0] is {y!r} of type {type(y).__name__}, but {method} predicts "
            f"{guess!r} of type {type(guess).__name__}: give y as the labels that it "
            "was fitted on."
        )
    integers = {labels.dtype.kind, predicted.dtype.kind} == {"i", "u"}
    as_floats = integers and np.result_type(labels, predicted).kind == "f"
    return predicted.astype(object) if as_floats else predicted


def as_python(label):
    """Return a label as messages show it: 'a', not numpy.str_('a')."""
    return label.item() if isinstance(label, np.generic) else label


def _as_array(labels, name, expected):
    refuse_tables(labels, name, expected)
    if np.ma.isMaskedArray(labels):
        values = np.ma.getdata(labels).astype(object)
        values[np.ma.getmaskarray(labels)] = None
        return values
    # Not of Arrow, where a null among dictionary-encoded chunks becomes another label.
    is_array = hasattr(labels, "__array__") or hasattr(labels, "__array_namespace__")
    if is_array and not hasattr(labels, "to_pylist"):
        labels = to_numpy(labels)
        # numpy's own strings of any length may have a value for missing ones.
        return labels.astype(object) if labels.dtype.kind == "T" else labels
    # As objects: a common type would make strings of numbers, and of NaN.
    return np.array(entries(labels, name, expected), dtype=object)


def _refuse_lists(labels, name, n):
    for row, label in enumerate(labels):
        # Of sets, too: "less" is "part of" for them, by which none is sorted.
        if isinstance(label, list | tuple | dict | set | frozenset | np.ndarray):
            raise ValueError(
                f"{name} holds lists of labels, expected ({n},) labels, one for each "
                f"row of X: {name}[{row}] is {label!r}."
            )


def _check_present(labels, name):
    if labels.dtype == object:
        missing = np.fromiter(map(is_missing, labels), bool, len(labels))
    else:
        missing = labels != labels
    if missing.any():
        row = int(missing.argmax())
        raise ValueError(
            f"{name}[{row}] is {_shown(labels[row])}: Input {name} contains NaN or "
            "another missing label. Drop such rows from X, y and the others first."
        )


def _without_loss(labels):
    """Return objects in the type that numpy has for them, if they stay what they are.

    Not so are strings that end in a null character and integers beyond 64 bits.
    """
    # Python's own numbers compare exactly, unlike signed and unsigned ones of numpy.
    values = [v.item() if isinstance(v, np.number | np.bool_) else v for v in labels]
    try:
        converted = np.array(values)
    except ValueError:  # of sequences that differ in length
        return labels
    same = converted.ndim == 1 and converted.tolist() == values
    return converted if same else np.fromiter(values, dtype=object, count=len(values))


def _check_alike(labels, name):
    """Raise TypeError if objects cannot be told apart and sorted."""
    if labels.dtype != object:
        return labels
    try:
        np.unique(labels)
    except TypeError as error:
        first, types = labels[0], [type(label) for label in labels]
        row = next((r for r, kind in enumerate(types) if kind != types[0]), 1)
        raise TypeError(
            f"{name} holds labels that cannot be sorted: {name}[0] is {_shown(first)}, "
            f"{name}[{row}] is {_shown(labels[row])} ({error}). Give all of {name} as "
            "numbers, or all as strings."
        ) from error
    return labels


def _holds_text(labels):
    return labels.dtype.kind in "UST" or (
        labels.dtype == object and isinstance(labels[0], str)
    )


def _shown(label):
    return repr(as_python(label))
