"""Chunks, Gram matrices and eigenvectors, for numpy and any other array library.

numpy arrays, the usual case, go through BLAS and LAPACK routines that use the symmetry
of the matrices. With scikit-learn's array API dispatch on, any other array stays in its
library and on its device.
"""

import mmap

import numpy as np
from scipy.linalg import eigh
from scipy.linalg.blas import dsyr, dsyrk
from sklearn.utils._array_api import (
    _is_numpy_namespace,
    _max_precision_float_dtype,
    get_namespace_and_device,
)

# Rows turned to float64 at a time: enough for BLAS to run at full speed, few enough
# that the float64 copy of a piece stays small beside the float32 data.
CHUNK_ROWS = 4096


def float64_chunks(X):
    """Yield (first row, float64 copy) of successive pieces of the rows of `X`.

    On a device without float64 the copies are in float32.

    Parameters
    ----------
    X : array of shape (n, ...)
        Rows. Pages of a memory map are given back once they are copied, so that the
        resident memory does not grow to the size of the file.

    Yields
    ------
    start : int
        First row of the piece.
    chunk : array of shape (m, ...)
        A copy to change at will, until the next: they share their memory, since fresh
        pages would take longer than the copy.
    """
    xp, dtype, _ = wide(X)
    is_numpy = _is_numpy_namespace(xp)
    if is_numpy:
        buffer = np.empty((min(X.shape[0], CHUNK_ROWS), *X.shape[1:]))
    for start, chunk in chunks(X):
        if is_numpy:
            copy = buffer[: len(chunk)]
            np.copyto(copy, chunk)
            yield start, copy
        else:
            yield start, xp.astype(chunk, dtype, copy=True)


def chunks(X):
    """Yield (first row, rows) of successive pieces of `X`, without a copy.

    Pages of a memory map are given back after use.
    """
    mapping = _file_mapping(X)
    n = X.shape[0]
    for start in range(0, n, CHUNK_ROWS):
        yield start, X[start : min(start + CHUNK_ROWS, n), ...]
        if mapping is not None:
            mapping.madvise(mmap.MADV_DONTNEED)


def is_mapped(X):
    """Say whether `X` is a view of a file of which `chunks` gives pages back."""
    return _file_mapping(X) is not None


def wide(X):
    """Return namespace, widest float dtype and device of the array `X`."""
    xp, _, device = get_namespace_and_device(X)
    return xp, _max_precision_float_dtype(xp, device), device


def zeros(shape, like):
    """Zeros in the widest float dtype, where the array `like` is."""
    xp, dtype, device = wide(like)
    if _is_numpy_namespace(xp):
        return np.zeros(shape, order="F")
    return xp.zeros(shape, dtype=dtype, device=device)


def to_wide(values, like):
    """Turn numpy `values` into the widest float dtype, where `like` is."""
    xp, dtype, device = wide(like)
    if _is_numpy_namespace(xp):
        return np.asarray(values, np.float64)
    return xp.asarray(values, dtype=dtype, device=device)


def add_gram(total, rows):
    """Return ``total + rows.T @ rows``; for numpy, only its upper half is valid.

    The symmetric rank-k update of BLAS does half the work of a general product, and
    adds in place when `total` is in Fortran order.
    """
    if not isinstance(total, np.ndarray):
        return total + rows.T @ rows
    # A C-ordered block is, transposed, in the Fortran order that BLAS wants: no copy.
    return dsyrk(1.0, rows.T, beta=1.0, c=total, overwrite_c=True)


def add_outer(total, v, weight):
    """Return ``total + weight * outer(v, v)``, in the form of `add_gram`."""
    if not isinstance(total, np.ndarray):
        return total + weight * v[:, None] * v[None, :]
    return dsyr(weight, v, a=total, overwrite_a=True)


def check_same_library(X, transformer, method):
    """Raise unless `X` is of the array library and device that `fit` has seen.

    Raises
    ------
    ValueError
        If it is not; in the words of scikit-learn.
    """
    xp, _, device = wide(X)
    its_xp, _, its_device = wide(transformer.components_)
    if its_xp is not xp or str(its_device) != str(device):
        raise ValueError(
            f"Inputs passed to {type(transformer).__name__}.{method}() must use the "
            "same namespace and the same device as those passed to fit(): found "
            f"{xp.__name__} on {device}, fitted with {its_xp.__name__} on "
            f"{its_device}. Convert X, or fit again."
        )


def map_rows(X, directions, shift):
    """Return ``X @ directions.T - shift``, chunk by chunk where `X` is a file.

    Parameters
    ----------
    X : array of shape (n, d)
        Rows.
    directions : array of shape (r, d)
        In the library and dtype of `X`.
    shift : array of shape (r,)
        In the library and dtype of `X`.

    Returns
    -------
    mapped : array of shape (n, r)
        In the dtype of `X`.
    """
    if not is_mapped(X):
        mapped = X @ directions.T
    else:
        mapped = np.empty((X.shape[0], len(directions)), dtype=X.dtype)
        for start, rows in chunks(X):
            np.matmul(rows, directions.T, out=mapped[start : start + len(rows)])
    mapped -= shift
    return mapped


def symmetric(total):
    """Complete what `add_gram` has summed up."""
    if not isinstance(total, np.ndarray):
        return total
    whole = np.triu(total)
    whole += np.triu(total, 1).T
    return whole


def descending_eigh(M):
    """Eigenvalues of symmetric `M`, largest first, and eigenvectors as rows."""
    if isinstance(M, np.ndarray):
        # Divide and conquer is the fastest driver when all eigenvectors are wanted.
        eigenvalues, vectors = eigh(
            M, driver="evd", overwrite_a=True, check_finite=False
        )
        return eigenvalues[::-1], vectors[:, ::-1].T
    xp = wide(M)[0]
    eigenvalues, vectors = xp.linalg.eigh(M)
    return xp.flip(eigenvalues), xp.flip(vectors, axis=1).T


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
