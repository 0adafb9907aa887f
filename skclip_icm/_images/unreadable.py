"""Rows whose images cannot be read: found, told and dropped before a fit."""

import os
import warnings
from collections.abc import Mapping, Set
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from joblib import cpu_count, effective_n_jobs
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import _num_samples

from skclip_icm._images.decoding import decode
from skclip_icm._images.inputs import ImageError, as_items, is_column, read_content

_MAX_TOLD = 10


def drop_unreadable(X, *arrays, n_jobs=None):
    """Drop the rows whose images cannot be read, before anything is fitted.

    Every image is read and decoded, and none is embedded. A featurizer with
    ``on_error="nan"`` makes NaN of such rows, with which `ICMTransformer` and most
    classifiers neither fit nor predict: give them what is left here.

    Parameters
    ----------
    X : sequence of length n
        Images, as for `CLIPFeaturizer`.
    *arrays : array-like of length n, or None
        Labels, groups and whatever else goes with the rows. None stays None.
    n_jobs : int or None, default=None
        Threads. None: one for each processor.

    Returns
    -------
    X : sequence
        The images that can be read, in the kind of container that `X` is; `X` itself
        if this is all.
    *arrays : array-like
        The same rows of each array.
    errors : list of ImageError
        Why each other row was dropped; ``error.row`` is its number in `X`.

    Raises
    ------
    ValueError
        If lengths differ, or no image can be read.

    Warns
    -----
    UserWarning
        If rows are dropped; it names ten of them.

    See Also
    --------
    CLIPFeaturizer : Its ``on_error="nan"`` keeps such rows, as NaN.

    Examples
    --------
    >>> import warnings
    >>> import numpy as np
    >>> from skclip_icm import drop_unreadable
    >>> images = [np.zeros((8, 8, 3), np.uint8), None, np.ones((8, 8, 3), np.uint8)]
    >>> with warnings.catch_warnings(action="ignore"):
    ...     X, y, errors = drop_unreadable(images, ["cat", "dog", "car"])
    >>> len(X), y, errors[0].row
    (2, ['cat', 'car'], 1)
    """
    items = as_items(X)
    n = len(items)
    for i, array in enumerate(arrays):
        if isinstance(array, Set | Mapping):
            raise TypeError(
                f"arrays[{i}] is of type {type(array).__name__}, expected a list or "
                "array with an entry for each image of X."
            )
        if array is not None and _num_samples(array) != n:
            raise ValueError(
                f"arrays[{i}] has {_num_samples(array)} rows, expected {n}: one for "
                "each image of X."
            )
    n_threads = cpu_count() if n_jobs is None else effective_n_jobs(n_jobs)
    with ThreadPoolExecutor(n_threads) as pool:
        found = list(pool.map(lambda row: _find_error(items[row], row), range(n)))
    errors = [error for error in found if error is not None]
    if not errors:
        return X, *arrays, []
    if len(errors) == n:
        raise ValueError(f"None of the {n} images of X can be read. {errors[0]}")
    shown = "\n".join(str(error) for error in errors[:_MAX_TOLD])
    warnings.warn(
        f"{len(errors)} of {n} images cannot be read and are dropped, with their rows "
        f"of the other arrays. The first ones:\n{shown}",
        UserWarning,
        stacklevel=2,
    )
    kept = np.flatnonzero([error is None for error in found])
    rows = (None if a is None else _take(a, kept) for a in (X, *arrays))
    return *rows, errors


def _find_error(item, row):
    name = os.fsdecode(item) if isinstance(item, str | os.PathLike) else ""
    try:
        decode(read_content(item, row), row, name)
    except ImageError as error:
        return error
    return None


def _take(array, rows):
    if hasattr(array, "to_pylist"):  # of Arrow
        return array.take(rows)
    if is_column(array) and hasattr(array.source, "select"):
        # A column again, whose images are read when they are needed.
        return array.source.select(rows)[array.column_name]
    return _safe_indexing(array, rows)
