"""Chunks, Gram matrices and eigenvectors, for numpy and any other array library.

With scikit-learn's array API dispatch on, an array stays in its library and on its
device. This is the one place that imports what scikit-learn has for that, which is
private.
"""

import mmap
from numbers import Real

import numpy as np
from scipy.sparse import csr_array
from sklearn.utils._array_api import (
    _convert_to_numpy,
    _is_numpy_namespace,
    _max_precision_float_dtype,
    get_namespace,
    get_namespace_and_device,
)

# Memory for the float64 copy of a chunk: enough rows for BLAS to run at full speed.
CHUNK_BYTES = 32 * 2**20


def wide(X):
    """Return namespace, widest float dtype and device of the array `X`."""
    xp, _, device = get_namespace_and_device(X)
    return xp, _max_precision_float_dtype(xp, device), device


def floats(X):
    """Return the dtypes that `X` may keep: float64 and float32 of its library."""
    xp, _ = get_namespace(X)
    return [xp.float64, xp.float32]


def zeros(shape, like):
    """Zeros in the widest float dtype, where the array `like` is."""
    xp, dtype, device = wide(like)
    return xp.zeros(shape, dtype=dtype, device=device)


def to_wide(values, like):
    """Turn numpy `values` into the widest float dtype, where `like` is."""
    xp, dtype, device = wide(like)
    if _is_numpy_namespace(xp):
        return np.asarray(values, np.float64)
    return xp.asarray(values, dtype=dtype, device=device)


def to_numpy(values):
    """Return an array, of any library and device, as a numpy array."""
    if hasattr(values, "__array_namespace__") or hasattr(values, "detach"):
        values = _convert_to_numpy(values, get_namespace(values)[0])
    return np.asarray(values)


def take_rows(X, rows):
    """Rows of `X` by number, a numpy array of int, in the library of `X`."""
    if isinstance(X, np.ndarray):
        return X[rows]
    xp, _, device = wide(X)
    return xp.take(X, xp.asarray(rows, dtype=xp.int64, device=device), axis=0)


def sums_by_group(rows, codes, n_groups):
    """Sums of the rows of each group, shape (n_groups, d)."""
    if isinstance(rows, np.ndarray):
        indicator = np.ones(len(codes)), (codes, np.arange(len(codes)))
        return csr_array(indicator, shape=(n_groups, len(codes))) @ rows
    indicator = np.arange(n_groups)[:, None] == codes
    return to_wide(indicator.astype(float), rows) @ rows


def moved_mean(mean, X, prior_weight):
    """Mean of the rows of `X` and of `prior_weight` rows that are `mean`."""
    if not (isinstance(prior_weight, Real) and 0 <= prior_weight < np.inf):
        raise ValueError(
            f"prior_weight is {prior_weight!r}, expected a number from 0 on: how many "
            "rows of the new domain the mean in training counts as."
        )
    xp, dtype, _ = wide(X)
    before = xp.astype(mean, dtype)
    total = xp.zeros_like(before)
    for rows in wide_chunks(X, chunk_rows(8 * X.shape[1])):
        total = total + xp.sum(rows, axis=0)
    moved = (total + prior_weight * before) / (X.shape[0] + prior_weight)
    return xp.astype(moved, mean.dtype)


def chunk_rows(row_bytes):
    """Return how many rows of that many bytes of float64 make a chunk."""
    return max(1, CHUNK_BYTES // row_bytes)


def wide_chunks(X, n_rows):
    """Yield successive pieces of `n_rows` rows of `X` as float64 copies.

    On a device without float64 the copies are in float32. A piece may be changed at
    will, until the next: they share their memory, since fresh pages would take longer
    than the copy.
    """
    xp, dtype, _ = wide(X)
    is_numpy = _is_numpy_namespace(xp)
    if is_numpy:
        buffer = np.empty((min(X.shape[0], n_rows), *X.shape[1:]))
    for rows in chunks(X, n_rows):
        if is_numpy:
            copy = buffer[: len(rows)]
            np.copyto(copy, rows)
            yield copy
        else:
            yield xp.astype(rows, dtype, copy=True)


def chunks(X, n_rows):
    """Yield successive pieces of `n_rows` rows of `X`, without a copy.

    Pages of a memory map are given back after use, so that the resident memory does not
    grow to the size of the file.
    """
    mapping = _file_mapping(X)
    for start in range(0, X.shape[0], n_rows):
        yield X[start : min(start + n_rows, X.shape[0]), ...]
        if mapping is not None:
            mapping.madvise(mmap.MADV_DONTNEED)


def is_mapped(X):
    """Say whether `X` is a view of a file of which `chunks` gives pages back."""
    return _file_mapping(X) is not None


def add_gram(total, rows):
    """Return ``total + rows.T @ rows``, in place for numpy.

    numpy sees that the factors are one array and does half the work. SciPy has routines
    for that too, but with threads of its own, and those of both would wait busily.
    """
    gram = rows.T @ rows
    if not isinstance(total, np.ndarray):
        return total + gram
    total += gram
    return total


def descending_eigh(M):
    """Eigenvalues of symmetric `M`, largest first, and eigenvectors as rows."""
    xp = wide(M)[0]
    eigenvalues, vectors = xp.linalg.eigh(M)
    rows = xp.flip(vectors, axis=1).T
    # In memory as they are read: products of a flipped view would each copy it.
    rows = np.ascontiguousarray(rows) if isinstance(rows, np.ndarray) else rows
    return xp.flip(eigenvalues), rows


def map_rows(X, directions, shift):
    """Return ``X @ directions.T - shift``, chunk by chunk where `X` is a file."""
    if not is_mapped(X):
        mapped = X @ directions.T
    else:
        mapped = np.empty((X.shape[0], len(directions)), dtype=X.dtype)
        start = 0
        for rows in chunks(X, chunk_rows(8 * X.shape[1])):
            stop = start + len(rows)
            np.matmul(rows, directions.T, out=mapped[start:stop])
            start = stop
    mapped -= shift
    return mapped


def unmap_rows(X, directions, mean, scale):
    """Return rows nearest to `mean` that ``(row - mean) @ directions.T * scale`` maps.

    The rows of `directions` are orthogonal; `scale` is not 0.
    """
    xp = wide(X)[0]
    directions, mean = (xp.astype(values, X.dtype) for values in (directions, mean))
    squared_norms = xp.sum(directions * directions, axis=1)
    return X @ (directions / (scale * squared_norms)[:, None]) + mean


def check_same_library(X, fitted, what):
    """Raise ValueError unless `X` is of the array library and device of `fitted`."""
    xp, _, device = wide(X)
    its_xp, _, its_device = wide(fitted)
    if its_xp is not xp or str(its_device) != str(device):
        raise ValueError(
            f"Inputs passed to ICMTransformer.{what}() must use the same namespace and "
            f"the same device as those passed to fit(): found {xp.__name__} on "
            f"{device}, fitted with {its_xp.__name__} on {its_device}. Convert X, or "
            "fit again."
        )


def _file_mapping(X):
    """The memory map that `X` is a view of, if its pages can be read again."""
    base = X
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap) and isinstance(base.base, mmap.mmap):
            # Changes to a copy-on-write map are in no file.
            again = base.mode != "c" and hasattr(mmap, "MADV_DONTNEED")
            return base.base if again else None
        base = base.base
    return None
