"""Embeddings that carry the embeddings of their intervened counterparts."""

import hashlib
import threading
import weakref

import numpy as np
from sklearn.utils._array_api import get_namespace_and_device


class PairedEmbeddings(np.ndarray):
    """Embeddings that carry the embeddings of their intervened counterparts.

    It is an ordinary, read-only float array of shape (n, d) for anything that asks.
    Selecting rows, pickling and `GridSearchCV` keep the counterparts aligned; any
    other operation (arithmetic, a column selection, ``copy()``, a transformer that
    rebuilds the array) returns a plain array without them.

    Parameters
    ----------
    embeddings : array-like of shape (n, d)
        Embeddings of the images. float32 and float64 are kept, anything else becomes
        float32.
    counterparts : array-like of shape (n, k, d) or (n, d)
        Embeddings of the same images after each of `k` interventions, row by row.

    Raises
    ------
    ValueError
        If the shapes do not fit together.

    See Also
    --------
    skclip_icm.CLIPFeaturizer.intervene : Make them from images.
    skclip_icm.ICMTransformer : Uses them when fitting.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip_icm import PairedEmbeddings
    >>> Z = np.eye(3, dtype=np.float32)
    >>> paired = PairedEmbeddings(Z, Z[:, None, ::-1])
    >>> paired.shape, paired.counterparts.shape
    ((3, 3), (3, 1, 3))
    >>> paired[[2, 0]].counterparts[:, 0].argmax(axis=1)
    array([0, 2])
    >>> type(paired * 2)
    <class 'numpy.ndarray'>
    """

    def __new__(cls, embeddings, counterparts):  # noqa: D102  see the class
        Z = np.asarray(embeddings)
        if Z.dtype not in (np.float32, np.float64):
            Z = Z.astype(np.float32)
        if Z.ndim != 2:
            raise ValueError(
                f"embeddings must have shape (n, d), got {Z.shape}: one row for each "
                "image, also where there is one image."
            )
        if not isinstance(counterparts, LazyCounterparts):
            counterparts = _KnownCounterparts(Z, counterparts)
        return cls._attach(Z, counterparts, None)

    @classmethod
    def _attach(cls, Z, source, rows):
        # joblib hashes an array by its data, class and dtype only. The token in the
        # dtype's metadata makes `Pipeline(memory=...)` see that the counterparts of
        # two arrays differ although the embeddings are equal.
        dtype = np.dtype(Z.dtype.str, metadata={"counterparts": source.token})
        paired = np.asarray(Z).view(dtype).view(cls)
        paired._source, paired._rows = source, rows
        # Values changed in place would no longer match their counterparts.
        paired.flags.writeable = False
        return paired

    def __array_finalize__(self, parent):
        # numpy calls this for every derived array; only the methods below, which know
        # which rows are left, pass the counterparts on.
        self._source = self._rows = None

    @property
    def counterparts(self):
        """Embeddings of the counterparts, ndarray of shape (n, k, d).

        Encoded when first asked for. None if this array has lost them.
        """
        return None if self._source is None else self._source.take(self._rows)

    def __getitem__(self, key):
        selected = super().__getitem__(key)
        if self._source is None or not _selects_rows(key, selected):
            return np.asarray(selected) if np.ndim(selected) else selected
        return self._with_rows(selected, key[0] if isinstance(key, tuple) else key)

    def take(self, indices, axis=None, out=None, mode="raise"):
        """Select along an axis, as `numpy.ndarray.take`; rows stay paired."""
        taken = np.asarray(self).take(indices, axis=axis, out=out, mode=mode)
        if self._source is None or axis not in (0, -2) or taken.ndim != 2:
            return taken
        rows = np.arange(len(self)).take(indices, mode=mode)
        return self._with_rows(taken, rows)

    def copy(self, order="C"):
        """Return a plain array to change at will, without counterparts."""
        return _plain(self).copy(order)

    def __copy__(self):
        return self if self._source is None else self[:]

    def __deepcopy__(self, memo):
        return self.__copy__()

    def __array_wrap__(self, array, context=None, return_scalar=False):
        return array[()] if return_scalar else np.asarray(array)

    def __reduce_ex__(self, protocol):
        Z = _plain(self)
        if self._source is None:
            return Z.__reduce_ex__(protocol)
        return _unpickle, (Z, self.counterparts, self._source.token)

    def _with_rows(self, Z, key):
        rows = np.arange(len(self)) if self._rows is None else self._rows
        return self._attach(Z, self._source, rows[key])


class LazyCounterparts:
    """Counterparts that are computed, once per row, when they are first asked for.

    Parameters
    ----------
    compute : callable
        ``compute(rows)`` returns the float32 counterparts, shape (m, k, d), of an
        array of m row numbers.
    shape : tuple of int
        (n, k, d).
    token : str
        Names how the counterparts are made. Equal tokens on equal embeddings promise
        equal counterparts.
    """

    def __init__(self, compute, shape, token):
        self._compute = compute
        self._lock = threading.Lock()
        self._values = np.empty(shape, dtype=np.float32)
        self._missing = np.ones(shape[0], dtype=bool)
        self.token = token

    def take(self, rows=None):
        """Counterparts of `rows` (all when None), shape (m, k, d)."""
        rows = slice(None) if rows is None else rows
        with self._lock:
            asked = np.zeros_like(self._missing)
            asked[rows] = True
            todo = np.flatnonzero(asked & self._missing)
            if todo.size:
                self._values[todo] = self._compute(todo)
                self._missing[todo] = False
            return self._values[rows]


class _KnownCounterparts:
    """Counterparts that were given as an array."""

    def __init__(self, Z, counterparts, token=None):
        values = check_counterparts(counterparts, Z, "counterparts")
        self._values = values
        self.token = token or hashlib.sha256(np.ascontiguousarray(values)).hexdigest()

    def take(self, rows=None):
        return self._values if rows is None else self._values[rows]


# Frames have no room for counterparts in polars: those that are alive, by identity.
_POLARS_FRAMES = {}


class _FrameCounterparts:
    """What a pandas frame of embeddings carries in ``attrs``.

    pandas hands ``attrs`` on by deep copy through operations that select rows but also
    through ones that change values, so the frame's rows are found again by their
    labels and its values are compared before the counterparts are believed.
    """

    def __init__(self, paired, index):
        self._paired, self._index = paired, index

    def __deepcopy__(self, memo):
        return self

    def __eq__(self, other):
        return self is other

    __hash__ = object.__hash__

    def of(self, frame):
        """The paired embeddings of `frame`, or None if it is not rows of ours."""
        rows = self._index.get_indexer(frame.index) if self._index.is_unique else None
        if rows is None and self._index.equals(frame.index):
            rows = np.arange(len(frame))
        if rows is None or (rows < 0).any():
            return None
        selected = self._paired[rows]
        values = frame.to_numpy()
        return selected if np.array_equal(values, selected, equal_nan=True) else None


def attach_to_frame(frame, paired):
    """Let a frame of embeddings carry the counterparts of `paired`.

    A pandas frame keeps them through the selection of rows, pickling and worker
    processes. A polars frame keeps them as long as it is the same object, as from one
    step of a pipeline to the next.
    """
    if hasattr(frame, "attrs"):
        frame.attrs["counterparts"] = _FrameCounterparts(paired, frame.index)
    else:
        _POLARS_FRAMES[id(frame)] = paired
        weakref.finalize(frame, _POLARS_FRAMES.pop, id(frame), None)
    return frame


def find_paired(X):
    """Return `X` as `PairedEmbeddings` if it carries counterparts, else None."""
    if isinstance(X, PairedEmbeddings):
        return None if X._source is None else X
    carried = getattr(X, "attrs", {}).get("counterparts")
    if isinstance(carried, _FrameCounterparts):
        return carried.of(X)
    paired = _POLARS_FRAMES.get(id(X))
    if paired is None or not np.array_equal(X.to_numpy(), paired, equal_nan=True):
        return None
    return paired


def check_counterparts(counterparts, embeddings, name):
    """Return `counterparts` as a float array (n, k, d) that fits (n, d) embeddings.

    Raises
    ------
    ValueError
        If the number of rows, the width or the number of dimensions differ.
    """
    values = as_floats(counterparts, embeddings)
    if values.ndim == 2:
        values = values[:, None, :]
    n, d = embeddings.shape
    if values.ndim != 3 or values.shape[1] == 0:
        raise ValueError(
            f"{name} must have shape ({n}, {d}) or ({n}, k, {d}) with k >= 1, "
            f"got {tuple(np.shape(counterparts))}."
        )
    if values.shape[0] != n:
        raise ValueError(
            f"{name} has {values.shape[0]} rows, expected {n}: one row for each row of "
            "X, in the same order."
        )
    if values.shape[2] != d:
        raise ValueError(
            f"{name} has {values.shape[2]} features, expected {d}, as X: embed both "
            "with the same model."
        )
    return values


def as_floats(values, like):
    """`values` in the array library and on the device of `like`, as floats.

    float32 and float64 are kept, anything else becomes float32.
    """
    if isinstance(like, np.ndarray):
        values = np.asarray(values)
        floats = values.dtype in (np.float32, np.float64)
        return values if floats else values.astype(np.float32)
    xp, _, device = get_namespace_and_device(like)
    values = xp.asarray(values, device=device)
    floats = values.dtype in (xp.float32, xp.float64)
    return values if floats else xp.astype(values, xp.float32)


def _selects_rows(key, selected):
    if selected.ndim != 2:
        return False
    if not isinstance(key, tuple):
        return key is not None
    everything = all(
        k is Ellipsis or (isinstance(k, slice) and k == slice(None)) for k in key[1:]
    )
    return len(key) in (1, 2) and key[0] is not None and everything


def without_token(X):
    """`X` in a plain dtype: what is computed from it does not carry our token on."""
    return _plain(X) if getattr(X.dtype, "metadata", None) else X


def _plain(paired):
    """The embeddings as a base array without our token in the dtype."""
    return np.asarray(paired).view(np.dtype(paired.dtype.str))


def _unpickle(Z, counterparts, token):
    return PairedEmbeddings._attach(Z, _KnownCounterparts(Z, counterparts, token), None)
