"""One file of embeddings, read piece by piece: a NumPy file or a Parquet column.

Nothing in a file is ever unpickled. Files are read, not mapped: the pages of a map
count as resident memory, so a process would seem to grow to the size of the file.
"""

import os

import numpy as np

# Rows read at a time, to be copied into chunks of any size.
_PIECE_ROWS = 4096


class NpyPart:
    """Rows of a two-dimensional ``.npy`` file of floats.

    Parameters
    ----------
    path : pathlib.Path
        The file. Only its header is read here.

    Attributes
    ----------
    path : pathlib.Path
        The file.
    n_rows, n_features : int
        Its shape. A file without any value has no rows and 0 features, whatever its
        shape.
    dtype : dtype
        float16, float32 or float64, in the byte order of the file.

    Raises
    ------
    ValueError
        If it is no such file, or shorter than its header says.
    """

    def __init__(self, path):
        self.path = path
        with open(path, "rb") as file:
            shape, self._column_major, self.dtype = _read_header(file, path)
            self._offset = file.tell()
            found = file.seek(0, 2) - self._offset
        self.n_rows, self.n_features = _check_shape(shape, path)
        if self.dtype.kind != "f" or self.dtype.itemsize > 8:
            raise ValueError(
                f"{path}: the array is of dtype {self.dtype}, expected float16, "
                "float32 or float64."
            )
        expected = self.n_rows * self.n_features * self.dtype.itemsize
        if found < expected:
            raise ValueError(
                f"{path}: the file is cut short, {found} bytes of values instead of "
                f"{expected}. Write it again, or copy it again."
            )

    def pieces(self):
        """Yield arrays of a few thousand rows, in order, in the dtype of the file."""
        if not self.n_rows:
            return
        if self._column_major:
            yield from self._column_major_pieces()
            return
        with open(self.path, "rb") as file:
            file.seek(self._offset)
            for start in range(0, self.n_rows, _PIECE_ROWS):
                rows = min(_PIECE_ROWS, self.n_rows - start)
                values = np.fromfile(file, self.dtype, rows * self.n_features)
                yield values.reshape(rows, self.n_features)

    def _column_major_pieces(self):
        shape = (self.n_rows, self.n_features)
        mapped = np.memmap(self.path, self.dtype, "r", self._offset, shape, order="F")
        for start in range(0, self.n_rows, _PIECE_ROWS):
            yield np.asarray(mapped[start : start + _PIECE_ROWS])


class ParquetPart:
    """Rows of one column of a Parquet file, each a list of equally many floats.

    Parameters
    ----------
    path : pathlib.Path
        The file. Its footer and its first rows are read here.
    column : str
        Name of the column: a list, a list of fixed size, or a tensor of floats.

    Attributes
    ----------
    path : pathlib.Path
        The file.
    n_rows, n_features : int
        Rows, and floats in each.
    dtype : dtype
        float16, float32 or float64.

    Raises
    ------
    ImportError
        If pyarrow is missing (extra ``parquet``).
    ValueError
        If it is no Parquet file, or the column is absent or of another type.
    """

    def __init__(self, path, column):
        self.path, self._column = path, column
        with self._open() as file:
            self.n_rows = file.metadata.num_rows
            self.dtype = self._value_dtype(file.schema_arrow)
        self.n_features = 0
        if self.n_rows:
            self.n_features = next(self._lists(rows=1)).shape[1]

    def pieces(self):
        """Yield arrays of a few thousand rows, in order."""
        if self.n_rows:
            yield from self._lists(_PIECE_ROWS, self.n_features)

    def _open(self):
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise ImportError(
                f"Reading {self.path} needs pyarrow: pip install skclip-icm[parquet]."
            ) from error
        try:
            # By its bytes, as a name need not be Unicode.
            file = pa.OSFile(os.fsencode(self.path))
            # Without these two, whole row groups come into memory, gigabytes perhaps.
            return pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
        except pa.ArrowInvalid as error:
            raise ValueError(
                f"{self.path}: this is not a Parquet file ({error})."
            ) from error

    def _value_dtype(self, schema):
        import pyarrow as pa

        if self._column not in schema.names:
            raise ValueError(
                f"{self.path}: there is no column {self._column!r}; it has "
                f"{schema.names}."
            )
        kind = _storage(schema.field(self._column).type)
        lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        is_list = any(check(kind) for check in lists)
        if not is_list or not pa.types.is_floating(kind.value_type):
            raise ValueError(
                f"{self.path}: column {self._column!r} is of type {kind}, expected "
                "lists of float16, float32 or float64."
            )
        return np.dtype(kind.value_type.to_pandas_dtype())

    def _lists(self, rows, width=None):
        start = 0
        with self._open() as file:
            for batch in file.iter_batches(rows, columns=[self._column]):
                values = _to_matrix(batch.column(0), width, self, start)
                if len(values):
                    yield values
                start += len(values)


def _read_header(file, path):
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        return readers[np.lib.format.read_magic(file)](file)
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{path}: this is not a NumPy file of numbers ({error}). Write it with "
            "numpy.save."
        ) from error


def _check_shape(shape, path):
    if 0 in shape:
        return 0, 0
    if len(shape) != 2:
        raise ValueError(f"{path}: expected an array of shape (n, d), got {shape}.")
    return shape


def _storage(kind):
    """Type under an extension type, such as the tensors that Ray Data writes."""
    return getattr(kind, "storage_type", kind)


def _to_matrix(lists, width, part, start):
    """Turn an Arrow array of lists into an array of shape (n, `width`)."""
    import pyarrow.compute as pc

    lists = getattr(lists, "storage", lists)
    lengths = pc.if_else(lists.is_null(), 0, pc.list_value_length(lists)).to_numpy(
        zero_copy_only=False
    )
    if width is None and len(lengths):
        width = int(lengths[0])
    wrong = np.flatnonzero((lengths != width) | (lengths == 0))
    if wrong.size:
        row = wrong[0]
        raise ValueError(
            f"{part.path}, row {start + row}: column {part._column!r} holds "
            f"{lengths[row]} numbers, expected {width or 'at least 1'}. Drop the rows "
            "without an embedding first."
        )
    values = lists.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(lengths), width)
