"""Embeddings that carry the embeddings of their intervened counterparts."""

from numbers import Integral

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from sklearn.utils._set_output import _wrap_data_with_container

from skclip_icm._embeddings import (
    check_embeddings,
    check_same_columns,
    column_names,
)
from skclip_icm._images.reading import as_path
from skclip_icm._locks import Lock
from skclip_icm._projection.arrays import floats
from skclip_icm._projection.differences import as_floats, check_counterparts
from skclip_icm._replacing import replacing

_USE_ASARRAY = (
    "PairedEmbeddings is no array, so that values cannot drift from their "
    "counterparts: take numpy.asarray(Z) for the embeddings alone."
)


class PairedEmbeddings(NDArrayOperatorsMixin):
    """Embeddings that carry the embeddings of their intervened counterparts.

    An immutable container of n rows: ``numpy.asarray`` gives the embeddings, and
    selecting rows, as scikit-learn's splitters and searches do, keeps the counterparts
    aligned. Arithmetic is a TypeError. Copies, pickles and joblib's hashes go by
    content, counterparts included.

    Parameters
    ----------
    embeddings : array-like of shape (n, d)
        Embeddings of the images. float32 and float64 are kept, anything else becomes
        float32.
    counterparts : array-like of shape (n, k, d) or (n, d)
        Embeddings of the same images after each of `k` interventions, row by row.

    Attributes
    ----------
    shape : tuple of int
        (n, d), that of the embeddings.
    ndim : int
        2.
    dtype : dtype
        That of the embeddings.

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
    >>> paired
    <PairedEmbeddings: 3 x 3 float32, 1 counterpart each>
    >>> paired[[2, 0]].counterparts[:, 0].argmax(axis=1)
    array([0, 2])
    >>> np.asarray(paired).sum()
    np.float32(3.0)
    """

    ndim = 2

    def __init__(self, embeddings, counterparts):
        check_embeddings(embeddings, "embeddings")
        Z = as_floats(embeddings)
        if Z.ndim != 2:
            raise ValueError(
                f"embeddings must have shape (n, d), got {Z.shape}: one row for each "
                "image, also where there is one image."
            )
        if not isinstance(counterparts, LazyCounterparts):
            columns = column_names(embeddings)
            check_same_columns(counterparts, columns, "counterparts", "embeddings")
            counterparts = as_floats(counterparts)
            counterparts = check_counterparts(counterparts, Z, "counterparts")
        self._attach(Z, counterparts, slice(None))

    def _attach(self, Z, source, rows):
        self._embeddings, self._source, self._rows = _read_only(Z), source, rows
        self.shape, self.dtype = Z.shape, Z.dtype
        return self

    @property
    def counterparts(self):
        """Embeddings of the counterparts, ndarray of shape (n, k, d).

        Those of a `CLIPFeaturizer` are encoded when first asked for.
        """
        return _read_only(self._source[self._rows])

    @classmethod
    def concatenate(cls, parts):
        """Join the rows of several.

        Parameters
        ----------
        parts : list of PairedEmbeddings
            As wide as each other, with equally many counterparts.

        Returns
        -------
        Z : PairedEmbeddings
            All rows, in order.

        Raises
        ------
        TypeError
            If a part carries no counterparts.
        ValueError
            If there are no parts, or their shapes differ.

        Examples
        --------
        >>> import numpy as np
        >>> from skclip_icm import PairedEmbeddings
        >>> Z = PairedEmbeddings(np.eye(2), np.eye(2))
        >>> PairedEmbeddings.concatenate([Z, Z[:1]]).shape
        (3, 2)
        """
        parts = list(parts)
        for i, part in enumerate(parts):
            if not isinstance(part, cls):
                raise TypeError(
                    f"parts[{i}] is of type {type(part).__name__}, expected "
                    "PairedEmbeddings: an array has no counterparts to join."
                )
        shapes = {(part.shape[1], part._source.shape[1]) for part in parts}
        if len(shapes) != 1:
            raise ValueError(
                "parts must have one width and one number of counterparts; found "
                f"(d, k) of {sorted(shapes) or 'no part at all'}."
            )
        return cls(
            np.concatenate([part._embeddings for part in parts]),
            np.concatenate([part.counterparts for part in parts]),
        )

    def save(self, path):
        """Write embeddings and counterparts to one file.

        Parameters
        ----------
        path : path
            Where to, such as "train.npz"; an existing file is replaced. It is NumPy's
            archive of two arrays, without any pickle.
        """
        path = as_path(path)
        if not path.parent.is_dir():
            raise FileNotFoundError(
                f"path={str(path)!r}: there is no folder {str(path.parent)!r}. Make it "
                "first, or save elsewhere."
            )
        # Counterparts may be computed now, and fail: a file that is there stays then.
        arrays = {"embeddings": self._embeddings, "counterparts": self.counterparts}
        with replacing(path) as unfinished, open(unfinished, "wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path):
        """Read what `save` has written.

        Parameters
        ----------
        path : path
            The file.

        Returns
        -------
        Z : PairedEmbeddings
            Embeddings and counterparts, in memory.

        Raises
        ------
        ValueError
            If the file is no such archive. Nothing in it is ever unpickled.
        FileNotFoundError
            If there is no such file.

        Examples
        --------
        >>> import numpy as np, tempfile
        >>> from skclip_icm import PairedEmbeddings
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     PairedEmbeddings(np.eye(2), np.eye(2)).save(f"{folder}/Z.npz")
        ...     PairedEmbeddings.load(f"{folder}/Z.npz")
        <PairedEmbeddings: 2 x 2 float64, 1 counterpart each>
        """
        with open(as_path(path), "rb") as opened:
            try:
                with np.load(opened, allow_pickle=False) as file:
                    return cls(file["embeddings"], file["counterparts"])
            except MemoryError:
                raise
            # A file from elsewhere: zipfile, NumPy and indexing have errors of theirs.
            except Exception as error:
                # Only what is wrong: NumPy goes on to say how to unpickle.
                reason = str(error).partition(". ")[0]
                raise ValueError(
                    f"{path}: not a file that PairedEmbeddings.save has written "
                    f"({reason})."
                ) from error

    def __len__(self):
        return self.shape[0]

    def __iter__(self):
        return iter(self._embeddings)

    def __repr__(self):
        k = self._source.shape[1]
        many = "counterpart" if k == 1 else "counterparts"
        n, d = self.shape
        return f"<PairedEmbeddings: {n} x {d} {self.dtype}, {k} {many} each>"

    def __array__(self, dtype=None, copy=None):
        return np.array(self._embeddings, dtype=dtype, copy=copy)

    def __getattr__(self, name):
        hint = f". {_USE_ASARRAY}" if hasattr(np.ndarray, name) else ""
        raise AttributeError(f"PairedEmbeddings has no attribute {name!r}{hint}")

    def __array_ufunc__(self, *args, **kwargs):
        raise TypeError(_USE_ASARRAY)

    def __getitem__(self, rows):
        if isinstance(rows, tuple):  # scikit-learn selects rows by X[rows, ...]
            rows, *others = rows
            if not all(
                o is ... or (isinstance(o, slice) and o == slice(None)) for o in others
            ):
                raise TypeError(f"Only rows can be selected. {_USE_ASARRAY}")
        if isinstance(rows, Integral) and not isinstance(rows, bool):
            return self._embeddings[rows]
        if not isinstance(rows, slice | bool | None) and rows is not ...:
            rows = np.asarray(rows)
            rows = rows if rows.size else rows.astype(np.intp)  # [] is of floats
        at = np.arange(self._source.shape[0])[self._rows][rows]
        if at.ndim > 1:  # of None, True, or an array of several dimensions
            raise TypeError(f"Only rows can be selected. {_USE_ASARRAY}")
        if at.ndim == 0:
            return self._embeddings[rows]
        selected = object.__new__(type(self))
        return selected._attach(self._embeddings[rows], self._source, at)

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        # joblib hashes the layout of an array too, which is not part of the content.
        both = self._embeddings, self.counterparts
        return type(self), tuple(a.reshape(-1).reshape(a.shape) for a in both)


class LazyCounterparts:
    """Counterparts that are computed, once per row, when they are first asked for.

    Parameters
    ----------
    compute : callable
        ``compute(rows)`` returns the float32 counterparts, shape (m, k, d), of an
        increasing array of m row numbers.
    shape : tuple of int
        (n, k, d).
    """

    def __init__(self, compute, shape):
        self.shape = shape
        self._compute = compute
        self._lock = Lock()
        self._values = np.empty(shape, dtype=np.float32)
        self._missing = np.ones(shape[0], dtype=bool)

    def __getitem__(self, rows):
        with self._lock:
            asked = np.zeros_like(self._missing)
            asked[rows] = True
            todo = np.flatnonzero(asked & self._missing)
            if todo.size:
                self._values[todo] = self._compute(todo)
                self._missing[todo] = False
            return self._values[rows]


class _CarriedByFrame(dict):
    """What a pandas frame of embeddings has in its ``attrs``.

    pandas copies ``attrs`` deeply, also through operations that change values, and
    writes them to Parquet as JSON. So this is an empty dict to JSON, one object to all
    copies, and believed only where the frame's rows and values are found again.
    """

    def __init__(self, paired, index):
        super().__init__()
        self._paired, self._index = paired, index

    def __deepcopy__(self, memo):
        return self

    def __eq__(self, other):
        return self is other

    __hash__ = object.__hash__

    def __reduce__(self):
        return type(self), (self._paired, self._index)

    def of(self, frame):
        """Return the paired embeddings of `frame`; None if it is not rows of ours."""
        if self._index.is_unique:
            rows = self._index.get_indexer(frame.index)
        elif self._index.equals(frame.index):
            rows = np.arange(len(frame))
        else:
            return None
        if (rows < 0).any():
            return None
        selected = self._paired[rows]
        same = np.array_equal(frame.to_numpy(), np.asarray(selected), equal_nan=True)
        return selected if same else None


def in_container(paired, Z, X, estimator):
    """Return `paired`, or `Z` in the frame that ``set_output`` of `estimator` asks for.

    `X` is what the estimator was given; the frame takes its index.
    """
    # scikit-learn < 1.8 takes the index of a frame, not that of a Series.
    is_series = hasattr(X, "to_frame") and not hasattr(X, "columns")
    original = X.to_frame() if is_series else X
    frame = _wrap_data_with_container("transform", Z, original, estimator)
    # scikit-learn wraps the array without its counterparts.
    return paired if frame is Z else attach_to_frame(frame, paired)


def attach_to_frame(frame, paired):
    """Let a frame of embeddings carry `paired`, if it can: pandas has ``attrs``."""
    if hasattr(frame, "attrs"):
        frame.attrs["counterparts"] = _CarriedByFrame(paired, frame.index)
    return frame


def find_paired(X):
    """Return `X` as `PairedEmbeddings` if it carries counterparts, else None."""
    if isinstance(X, PairedEmbeddings):
        return X
    carried = getattr(X, "attrs", {}).get("counterparts")
    return carried.of(X) if isinstance(carried, _CarriedByFrame) else None


def why_unpaired(X):
    """Say, of `X` that carries no counterparts, what may have become of them."""
    library = type(X).__module__.partition(".")[0]
    if library == "polars":
        return (
            "a polars frame cannot carry counterparts: use "
            'set_output(transform="pandas") or the default output'
        )
    if "counterparts" in getattr(X, "attrs", {}):
        return (
            "the values of this pandas frame are no longer those that CLIPFeaturizer "
            "gave it, so its counterparts do not belong to them"
        )
    return (
        f"it is a plain {type(X).__name__}; any step that computes new values, such as "
        "a scaler, goes behind ICMTransformer"
    )


def embedding_dtypes(X):
    """Return the dtypes that embeddings may keep, or raise if `X` holds none."""
    check_embeddings(X, "X")
    return floats(X)


def _read_only(array):
    view = array.view()
    view.flags.writeable = False
    return view
