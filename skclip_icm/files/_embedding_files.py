"""Embeddings that lie in files, read chunk by chunk."""

import glob
import math
import os
import re
from bisect import bisect_right
from itertools import accumulate
from numbers import Integral
from pathlib import Path

import numpy as np

from skclip_icm._images.reading import as_path, working_directory
from skclip_icm.files._parts import NpyPart, ParquetPart

# Memory for the rows of one chunk. BLAS runs at full speed on a small part of this.
CHUNK_BYTES = 32 * 2**20


class EmbeddingFiles:
    """Embeddings in ``.npy`` or Parquet files, as one array of shape (n, d).

    Counterparts under several interventions may lie in one file, as an array of shape
    (n, k, d) or as a column of tensors of shape (k, d). Only what the files say of
    their shape is read when this object is made. Rows come by `chunks`;
    ``numpy.asarray`` of this object reads all of them.

    Parameters
    ----------
    source : path or list of paths
        A file; a pattern such as "img_emb/img_emb_*.npy"; a folder, for all its
        ``.npy`` files, or its ``.parquet`` files if `column` is given, without hidden
        ones; or a list of files. Files of a folder or pattern are ordered by the
        numbers in their names (2 before 10), a list stays in its order. This is how
        clip-retrieval and img2dataset number their parts.
    column : str, default=None
        For Parquet, the column that holds the embeddings, as lists or tensors of
        floats.

    Attributes
    ----------
    paths : list of pathlib.Path
        The files, in order.
    shape : tuple of int
        (n, d), or (n, k, d) of counterparts in one file.
    dtype : dtype
        Of the chunks: float64 if a file holds float64, else float32. Files of float16
        are converted chunk by chunk.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or a number in the sequence of parts is missing.
    ValueError
        If a file is neither NumPy nor Parquet, holds something else than floats (no
        file is ever unpickled) or more than one array, or the parts differ in width.

    See Also
    --------
    fit_files : Fit an `ICMTransformer` to embeddings in files.
    transform_files : Write the transformed embeddings to files.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> from skclip_icm import EmbeddingFiles
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for i in range(3):
    ...         np.save(f"{folder}/img_emb_{i}.npy", np.eye(4, 2, dtype=np.float16))
    ...     Z = EmbeddingFiles(folder)
    ...     print(Z.shape, Z.dtype, [len(chunk) for chunk in Z.chunks(5)])
    (12, 2) float32 [5, 5, 2]
    """

    def __init__(self, source, column=None):
        self.column = column
        # Absolute: the working directory may change before they are read.
        self.paths = [path.absolute() for path in _find(source, column)]
        self._parts = [open_part(path, column) for path in self.paths]
        filled = [part for part in self._parts if part.n_rows]
        if not filled:
            raise ValueError(f"{source}: no file there holds a row.")
        for part in filled:
            if part.row_shape != filled[0].row_shape:
                raise ValueError(
                    f"{part.path} holds {_features(part)}, {filled[0].path} "
                    f"{_features(filled[0])}: give files of one model."
                )
        self._ends = list(accumulate(part.n_rows for part in self._parts))
        self.shape = (self._ends[-1], *filled[0].row_shape)
        wide = any(part.dtype.itemsize == 8 for part in filled)
        self.dtype = np.dtype(np.float64 if wide else np.float32)

    def __len__(self):
        return self.shape[0]

    def __repr__(self):
        shape = " x ".join(map(str, self.shape))
        return f"<EmbeddingFiles: {shape} {self.dtype} in {len(self.paths)} files>"

    def __array__(self, dtype=None, copy=None):
        if copy is False:
            raise ValueError(
                "copy=False, but rows of files are read into a new array. Leave copy "
                "out."
            )
        return next(self.chunks(len(self))).astype(dtype or self.dtype, copy=False)

    def chunks(self, n_rows=None):
        """Read the rows in order.

        Parameters
        ----------
        n_rows : int, default=None
            Rows in a chunk, at least 1, across the bounds of files; the last may have
            fewer. None is as many as fit into 32 MiB.

        Returns
        -------
        chunks : iterator of ndarray of shape (`n_rows`, d) or (`n_rows`, k, d)
            The next rows, each time in an array of its own.

        Raises
        ------
        ValueError
            If `n_rows` is not a whole number from 1 on.
        """
        if n_rows is None:
            row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
            n_rows = max(1, CHUNK_BYTES // row_bytes)
        if isinstance(n_rows, bool) or not isinstance(n_rows, Integral) or n_rows < 1:
            raise ValueError(
                f"n_rows is {n_rows!r}, expected a whole number of rows from 1 on, or "
                "None for as many as fit into 32 MiB."
            )
        return self._chunks(min(int(n_rows), len(self)))

    def _chunks(self, n_rows):
        chunk, filled = None, 0
        for part in self._parts:
            for piece in part.pieces():
                while len(piece):
                    if chunk is None:
                        chunk = np.empty((n_rows, *self.shape[1:]), self.dtype)
                        filled = 0
                    taken = piece[: n_rows - filled]
                    chunk[filled : filled + len(taken)] = taken
                    filled += len(taken)
                    piece = piece[len(taken) :]
                    if filled == n_rows:
                        yield chunk
                        chunk = None
        if chunk is not None:
            yield chunk[:filled]

    def locate(self, row):
        """Say where a row is.

        Parameters
        ----------
        row : int
            Number of the row, from 0 on.

        Returns
        -------
        path : pathlib.Path
            Its file.
        row : int
            Its number in that file, from 0.

        Raises
        ------
        IndexError
            If there is no such row.
        """
        is_number = isinstance(row, Integral) and not isinstance(row, bool)
        if not is_number or not 0 <= row < len(self):
            raise IndexError(
                f"row {row!r} is not there: rows have the numbers 0 to {len(self) - 1}."
            )
        part = bisect_right(self._ends, row)
        before = self._ends[part] - self._parts[part].n_rows
        return self.paths[part], int(row) - before


def _find(source, column):
    if isinstance(source, list | tuple):
        paths = [as_path(path, f"source[{i}]") for i, path in enumerate(source)]
        if not paths:
            raise ValueError("source is an empty list, expected paths of files.")
        return paths
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            f"source is of type {type(source).__name__}, expected a path or a list of "
            "paths."
        )
    path = as_path(source)
    if path.is_file():
        return [path]
    suffix = ".npy" if column is None else ".parquet"
    if path.is_dir():
        # Hidden ones are unfinished, or what macOS keeps beside a file.
        found = [p for p in path.glob(f"*{suffix}") if not p.name.startswith(".")]
    else:
        found = [Path(name) for name in glob.glob(str(path))]
    if not found:
        what = f"a folder without {suffix} files" if path.is_dir() else "no such file"
        raise FileNotFoundError(
            f"{source}: {what}. The working directory is {working_directory()}."
        )
    found.sort(key=_by_numbers)
    _check_numbers(found)
    return found


def _by_numbers(path):
    texts = re.split(r"(\d+)", path.name)  # every second one is a number
    return [int(text) if i % 2 else text for i, text in enumerate(texts)]


def _check_numbers(paths):
    """Find files that are not parts of one series, are there twice, or are missing."""
    series = {re.sub(r"\d+", "*", path.name) for path in paths}
    if len(series) > 1:
        raise ValueError(
            f"{paths[0].parent} holds several series of files: {sorted(series)}. Give "
            "one of them as a pattern, or the files of all as a list."
        )
    numbers = [
        (path.parent, *map(int, re.findall(r"\d+", path.name))) for path in paths
    ]
    for path, number, before in zip(paths[1:], numbers[1:], numbers, strict=False):
        if number == before:
            raise ValueError(
                f"{path.parent}: {path.name!r} has the number of another part. Remove "
                "the one that is a copy, or give a list of files."
            )
    _check_gaps(paths)


def _check_gaps(paths):
    """Find a part that is missing, where the number of the part ends the names."""
    parts = [re.fullmatch(r"(.*?)(\d+)", path.stem, re.DOTALL) for path in paths]
    if None in parts or len({part[1] for part in parts}) > 1:
        return
    prefix, numbers = parts[0][1], sorted({int(part[2]) for part in parts})
    # Some writers count from 1; of these no one can tell whether part 0 is missing.
    first = min(1, numbers[0])
    gap = next((i for i, n in enumerate(numbers, first) if i != n), None)
    if gap is not None and numbers[0] <= 1:
        raise FileNotFoundError(
            f"{paths[0].parent}: of the parts '{prefix}{numbers[0]}' to "
            f"'{prefix}{numbers[-1]}', number {gap} is missing "
            f"({numbers[-1] + 1 - first - len(numbers)} in all). Restore them, or give "
            "a list of files."
        )


def _features(part):
    *several, d = part.row_shape
    return " counterparts of ".join([*map(str, several), f"{d} features"])


def open_part(path, column):
    """Return a file of embeddings with its rows, or raise an error that says why."""
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder, expected a file: a pattern or list names files."
        )
    if not path.is_file():
        there = os.path.lexists(path)
        what = "a link to nothing, or no regular file" if there else "no such file"
        raise FileNotFoundError(
            f"{path}: {what}. The working directory is {working_directory()}."
        )
    if column is not None:
        return ParquetPart(path, column)
    if path.suffix == ".parquet":
        raise ValueError(
            f"{path}: name the column that holds the embeddings: "
            "EmbeddingFiles(..., column=...)."
        )
    return NpyPart(path)
