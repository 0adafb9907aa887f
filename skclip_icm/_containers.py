"""What comes in containers: entries by position, whatever the index."""

import re
from collections.abc import Mapping, Sequence
from numbers import Number

import numpy as np
from scipy.sparse import issparse

_NOT_IN_XML = re.compile("[\x00-\x08\x0b-\x1f\ufffe\uffff]")


def refuse_tables(values, name, expected):
    """Raise TypeError if `values` is a table, a lazy frame or a dict."""
    if hasattr(values, "collect"):  # before its columns are asked for, which is work
        raise TypeError(
            f"{name} is a {type(values).__name__}, whose rows are not computed yet; "
            f"expected {expected}. Call its collect() first."
        )
    # Some sparse arrays of older SciPy are dicts; scikit-learn says what to do of them.
    if isinstance(values, Mapping) and not issparse(values):
        raise TypeError(
            f"{name} is a {type(values).__name__} of the keys "
            f"{shorten(list(values))}, expected {expected}. Pass one of its values, "
            "or a list of them."
        )
    if hasattr(values, "column_names"):
        raise TypeError(
            f"{name} is a table of the columns {shorten(values.column_names)}, "
            f"expected {expected}. Select a column, such as {name}['name'], or make a "
            f"frame of it, {name}.to_pandas()."
        )
    fields = getattr(getattr(values, "dtype", None), "names", None)
    if fields:
        raise TypeError(
            f"{name} is an array of records of the fields {shorten(fields)}, expected "
            f"{expected}. Select a field, such as {name}['name'], or make an array of "
            f"all: numpy.lib.recfunctions.structured_to_unstructured({name})."
        )


def entries(values, name, expected):
    """Return the entries of a container as a list, in their order.

    Parameters
    ----------
    values : sequence, 1-d array, (n, 1) array, Series, Arrow array or one-column frame
        The container; an index plays no part.
    name : str
        What it is called, for messages.
    expected : str
        What it should be, for messages.

    Returns
    -------
    entries : list
        Its entries.

    Raises
    ------
    TypeError
        If it has no entries in an order, or is a table, a lazy frame or a dict.
    ValueError
        If it has several columns.
    """
    refuse_tables(values, name, expected)
    if isinstance(values, str | bytes):
        raise TypeError(
            f"{name} is the {_one(values)} {values!r}, expected {expected}. Wrap it "
            "in a list."
        )
    if hasattr(values, "columns"):
        values = only_column(values, name, expected)
    if isinstance(values, np.ndarray):
        if values.ndim != 1 and values.shape[1:] != (1,):
            raise ValueError(
                f"{name} has shape {values.shape}, expected {expected}. Select the one "
                "column that holds them."
            )
        return list(map(unwrapped, np.ravel(values).tolist()))
    if hasattr(values, "to_pylist"):  # of Arrow
        return values.to_pylist()
    if isinstance(values, Sequence) or hasattr(values, "__array__"):
        return list(map(unwrapped, values))
    raise no_sequence(values, name, expected)


def no_sequence(values, name, expected):
    """Return the error that what is given has no entries in an order."""
    if isinstance(values, set | frozenset):
        advice = (
            "A set has no order, so nothing says which row is whose: keep what is to "
            "be in rows in a list from the start."
        )
    elif issparse(values):
        advice = "Sparse data was passed: call its toarray() first."
    elif hasattr(values, "__iter__"):
        advice = "Turn an iterator into a list first."
    else:
        advice = "Pass a list."
    what = f"{name} is of type {type(values).__name__}, expected {expected}."
    return TypeError(f"{what} {advice}")


def unwrapped(entry):
    """Return what a scalar of Arrow, or an array or tensor without dimensions, holds.

    So a list of what iteration over a column or a data set gives is taken.
    """
    if hasattr(entry, "as_py"):
        return entry.as_py()
    if getattr(entry, "ndim", None) != 0 or isinstance(entry, np.generic):
        return entry
    return entry[()] if isinstance(entry, np.ndarray) else entry.item()


def only_column(frame, name, expected):
    """Return the one column of a frame, or raise ValueError if it has several."""
    if frame.shape[1] != 1:
        raise ValueError(
            f"{name} is a frame of {frame.shape[1]} columns, expected {expected}. "
            f"Select one column: {name}[['name']]."
        )
    return frame.iloc[:, 0] if hasattr(frame, "iloc") else frame[frame.columns[0]]


def check_texts(texts, name):
    """Return `texts` as a list of strings that are not blank, or raise an error."""
    texts = entries(texts, name, "a list of strings")
    if not texts:
        raise ValueError(f"{name} is empty, expected at least one string.")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(
                f"{name}[{index}] is {text!r} of type {type(text).__name__}, expected "
                "a string."
            )
        if not text.strip():
            raise ValueError(f"{name}[{index}] is blank, expected words.")
    return texts


def printable(text):
    """Return text that can be written: names of files may hold any bytes.

    Of control characters, SVG has lines and tabs only.
    """
    text = _NOT_IN_XML.sub(lambda found: ascii(found[0])[1:-1], str(text))
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def is_missing(value):
    """Say whether a value stands for none: None, NaN, NaT or a null of a library."""
    if value is None or type(value).__name__ in ("NAType", "NaTType", "MaskedConstant"):
        return True
    if not isinstance(value, Number | np.datetime64 | np.timedelta64):
        return False
    try:
        return bool(value != value)
    except ArithmeticError:  # Decimal("sNaN") takes part in no comparison
        return True


def _one(value):
    return "string" if isinstance(value, str) else "bytes"


def shorten(values):
    shown = ", ".join(map(repr, values[:5]))
    return f"[{shown}, ...]" if len(values) > 5 else f"[{shown}]"
