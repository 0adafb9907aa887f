"""Labels of rows, of classes and of domains: every path takes them from here.

A label is never turned into another one: not by a cast that merges two of them, and not
by one that makes a name of a missing value.
"""

import datetime

import numpy as np
from sklearn.base import is_regressor
from sklearn.utils import column_or_1d

from skclip_icm._containers import entries, is_missing, refuse_tables, unwrapped
from skclip_icm._projection.arrays import to_numpy

_TIMES = datetime.date | datetime.timedelta  # Python's


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
    if labels.dtype.kind in "OfcmM":
        _check_present(labels, name)
    if labels.dtype == object:
        _refuse_lists(labels, name, n)
    if len(labels) != n:
        raise ValueError(
            f"{name} has {len(labels)} entries, expected {n}: Found input variables "
            "with inconsistent numbers of samples. Give one label for each row of X."
        )
    if labels.dtype == object:
        labels = distinguishable(labels, name)
    if name == "y" and labels.dtype.kind == "f":
        _refuse_fractions(labels)
    return labels


def check_target(y, estimator, n):
    """Return what an estimator is to predict, labels as `check_labels` does it.

    Numbers of a regressor and indicators of several classes are left as they are.
    """
    indicators = getattr(y, "ndim", 1) == 2 and y.shape[1] > 1
    if y is None or indicators or is_regressor(estimator):
        return y
    return check_labels(y, "y", n)


def distinguishable(labels, name):
    """Return labels as an array without a cast that merges two, or raise TypeError.

    For those that come one by one, or from several chunks, of which some may be text
    and others not.
    """
    return _check_alike(join(labels), name)


def comparable(predicted, labels, method):
    """Return predictions as an array that can be compared with labels.

    Raises ValueError if they cannot be sorted together, as text and numbers: numpy
    would compare them without an error, and find all different.
    """
    predicted = np.asarray(predicted)
    if predicted.ndim != 1:
        raise ValueError(
            f"{method} predicts an array of shape {predicted.shape}, expected "
            f"({len(labels)},): one class for each row."
        )
    if labels.dtype.kind in "mM" and all(isinstance(p, _TIMES) for p in predicted):
        predicted = predicted.astype(f"{labels.dtype.kind}8[us]")
    both = join(labels, predicted)
    try:
        _check_alike(both, "y")
    except TypeError as error:
        y, guess = as_python(labels[0]), as_python(predicted[0])
        raise ValueError(
            f"y[0] is {y!r} of type {type(y).__name__}, but {method} predicts "
            f"{guess!r} of type {type(guess).__name__}: give y as the labels that it "
            "was fitted on."
        ) from error
    # What has no type in common numpy would compare as floats, and times as integers.
    return both[len(labels) :] if both.dtype == object else predicted


def join(*labels):
    """Return the labels of several sequences in one array, each as it is.

    In the type that numpy has for all if they stay what they are, else as objects: so
    for strings that end in a null character, integers beyond 64 bits, and numbers that
    would become one float, such as 2**53 and 2**53 + 1, signed and unsigned.
    """
    kinds = {getattr(getattr(some, "dtype", None), "kind", "O") for some in labels}
    if len(kinds) == 1 and "O" not in kinds:
        return np.concatenate(labels)
    # Python's own numbers compare exactly, unlike signed and unsigned ones of numpy.
    values = [label for some in labels for label in python_values(some)]
    try:
        converted = np.array(values)
    except ValueError:  # of sequences that differ in length
        converted = np.empty((0, 0))
    if converted.ndim == 1 and converted.tolist() == values:
        return converted
    return np.fromiter(values, dtype=object, count=len(values))


def python_values(labels):
    """Return the labels of a sequence as Python's own, which all libraries share.

    So they are the same in whatever a chunk comes.
    """
    kind = getattr(getattr(labels, "dtype", None), "kind", "")
    if kind in ("m", "M"):
        coarse = labels.astype(f"{kind}8[us]")  # the finest that Python has
        if isinstance(labels[0].item(), int) and (coarse == labels).all():
            labels = coarse
    return list(map(as_python, labels))


def as_python(label):
    """Return a label as messages show it: 'a', not numpy.str_('a')."""
    if not isinstance(label, np.generic):
        return label
    value = label.item()
    # An integer stands for a time in units that are finer than Python's.
    return label if label.dtype.kind in "mM" and isinstance(value, int) else value


def _as_array(labels, name, expected):
    refuse_tables(labels, name, expected)
    if np.ma.isMaskedArray(labels):
        values = np.ma.getdata(labels).astype(object)
        values[np.ma.getmaskarray(labels)] = None
        return values
    if getattr(getattr(labels, "dtype", None), "time_unit", "") == "ns":
        return _times_of_polars(labels)
    # Not of Arrow, where a null among dictionary-encoded chunks becomes another label,
    # nor of polars, which has numbers of 128 bits.
    of_arrow = hasattr(labels, "to_pylist") or hasattr(labels, "to_arrow")
    is_array = hasattr(labels, "__array__") or hasattr(labels, "__array_namespace__")
    if is_array and (not of_arrow or hasattr(labels, "columns")):
        labels = to_numpy(labels)
        # One by one: numpy's own strings of any length may have a value for missing
        # ones, records hold several, and scikit-learn takes no complex numbers.
        labels = labels.astype(object) if labels.dtype.kind in "TVc" else labels
        if labels.dtype != object:
            return labels
        plain = np.fromiter(map(unwrapped, labels.flat), object, labels.size)
        return plain.reshape(labels.shape)
    # As objects: a common type would make strings of numbers, and of NaN.
    return np.array(entries(labels, name, expected), dtype=object)


def _times_of_polars(labels):
    """Return times in nanoseconds; as Python's they would lose some of them.

    By the numbers, since the oldest polars crashes where it makes numpy's times.
    """
    kind = "M" if hasattr(labels.dtype, "time_zone") else "m"
    numbers = labels.to_physical().to_list()
    numbers = ["NaT" if number is None else number for number in numbers]
    return np.array(numbers, dtype=f"{kind}8[ns]")


def _refuse_lists(labels, name, n):
    for row, label in enumerate(labels):
        # Of sets, too: "less" is "part of" for them, by which none is sorted.
        if isinstance(label, list | tuple | dict | set | frozenset | np.ndarray):
            raise ValueError(
                f"{name} holds lists of labels, expected ({n},) labels, one for each "
                f"row of X: {name}[{row}] is {label!r}."
            )


def _refuse_fractions(y):
    with np.errstate(invalid="ignore"):  # infinity
        fractions = y % 1 != 0
    if fractions.any():
        row = int(np.argmax(fractions))
        raise ValueError(
            f"Unknown label type: y[{row}] is {as_python(y[row])!r}, expected class "
            "labels; numbers with a fraction are for regression. Bin them, for example "
            "by numpy.digitize."
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


def _shown(label):
    return repr(as_python(label))
