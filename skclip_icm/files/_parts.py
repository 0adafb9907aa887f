"""One file of embeddings, read piece by piece: a NumPy file or a Parquet column.

Nothing in a file is ever unpickled. Files are read, not mapped: the pages of a map
count as resident memory, so a process would seem to grow to the size of the file.
"""

import json
import math
import os
from contextlib import contextmanager

import numpy as np

from skclip_icm._replacing import replacing

# Rows read at a time, to be copied into chunks of any size.
_PIECE_ROWS = 4096


class NpyPart:
    """Rows of a ``.npy`` file of floats, each of shape (d,) or (k, d).

    Parameters
    ----------
    path : pathlib.Path
        The file. Only its header is read here.

    Attributes
    ----------
    path : pathlib.Path
        The file.
    n_rows : int
        Number of rows.
    row_shape : tuple of int
        (d,) or (k, d); () where there are no rows.
    dtype : dtype
        float16, float32 or float64, in the byte order of the file.

    Raises
    ------
    ValueError
        If it is no such file, or shorter or longer than its header says.
    """

    def __init__(self, path):
        self.path = path
        with open(path, "rb") as file:
            self._layout = self._read_layout(file)
        self.n_rows, self.row_shape, self.dtype, *_ = self._layout

    def pieces(self):
        """Yield arrays of a few thousand rows, in order, in the dtype of the file."""
        with open(self.path, "rb") as file:
            if self._read_layout(file) != self._layout:
                raise _changed(self.path)
            for start in range(0, self.n_rows, _PIECE_ROWS):
                rows = min(_PIECE_ROWS, self.n_rows - start)
                yield self._read_rows(file, start, rows)

    def _read_layout(self, file):
        path = self.path
        shape, column_major, dtype = _read_header(file, path)
        offset = file.tell()
        found = file.seek(0, 2) - offset
        n_rows, row_shape = _check_shape(shape, path)
        if dtype.kind != "f" or dtype.itemsize > 8:
            raise ValueError(
                f"{path}: the array is of dtype {dtype}, expected float16, float32 or "
                "float64."
            )
        expected = n_rows * math.prod(row_shape) * dtype.itemsize
        if found < expected:
            raise ValueError(
                f"{path}: the file is cut short, {found} bytes of values instead of "
                f"{expected}. Write it again, or copy it again."
            )
        if found > expected:
            raise ValueError(
                f"{path}: {found - expected} bytes follow the array of shape {shape}, "
                "such as a second array. Save each array to a file of its own."
            )
        return n_rows, row_shape, dtype, column_major, offset

    def _read_rows(self, file, start, rows):
        *_, column_major, _ = self._layout
        d = math.prod(self.row_shape)
        if not column_major:
            values = self._read_values(file, start * d, rows * d)
            return values.reshape(rows, *self.row_shape)
        columns = [
            self._read_values(file, column * self.n_rows + start, rows)
            for column in range(d)
        ]
        return np.concatenate(columns).reshape(*self.row_shape[::-1], rows).T

    def _read_values(self, file, start, n_values):
        file.seek(self._layout[-1] + start * self.dtype.itemsize)
        values = np.fromfile(file, self.dtype, n_values)
        if len(values) < n_values:
            raise _changed(self.path)
        return values


class ParquetPart:
    """Rows of one column of a Parquet file, each of equally many floats.

    Parameters
    ----------
    path : pathlib.Path
        The file. Its footer and its first rows are read here.
    column : str
        Name of the column: a list, a list of fixed size, or a tensor of floats of one
        or two dimensions.

    Attributes
    ----------
    path : pathlib.Path
        The file.
    n_rows : int
        Number of rows.
    row_shape : tuple of int
        (d,) or (k, d); () where there are no rows.
    dtype : dtype
        float16, float32 or float64.

    Raises
    ------
    ImportError
        If pyarrow is missing (extra ``parquet``).
    ValueError
        If it is no Parquet file, or the column is absent, there twice or of another
        type.
    """

    def __init__(self, path, column):
        self.path, self._column = path, column
        self._layout = self.n_rows, self.row_shape, self.dtype = self._read_layout()

    def pieces(self):
        """Yield arrays of a few thousand rows, in order."""
        if self._read_layout() != self._layout:
            raise _changed(self.path)
        if self.n_rows:
            for values in self._lists(_PIECE_ROWS, math.prod(self.row_shape)):
                yield values.reshape(len(values), *self.row_shape)

    def _read_layout(self):
        with self._open() as file:
            n_rows = file.metadata.num_rows
            field = self._field(file.schema_arrow)
        dtype, row_shape = self._value_dtype(field), ()
        if n_rows:
            width = next(self._lists(rows=1)).shape[1]
            row_shape = self._row_shape(field, width)
        return n_rows, row_shape, dtype

    def _open(self):
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise ImportError(
                f"Reading {self.path} needs pyarrow: pip install skclip-icm[parquet]."
            ) from error
        # By its bytes, as a name need not be Unicode.
        file = pa.OSFile(os.fsencode(self.path))
        with _damage_named(self.path):
            try:
                return pq.ParquetFile(
                    file,
                    # Without these two, whole row groups come into memory.
                    pre_buffer=False,
                    buffer_size=1 << 20,
                    page_checksum_verification=True,  # where the writer made them
                )
            except pa.ArrowException:
                raise
            except ValueError as error:  # of a type that a library such as Ray brings
                raise ValueError(
                    f"{self.path}: the type of a column cannot be read ({error}). "
                    "Write lists of floats."
                ) from error

    def _field(self, schema):
        count = schema.names.count(self._column)
        if count == 1:
            return schema.field(self._column)
        what = f"are {count} columns" if count else "is no column"
        raise ValueError(
            f"{self.path}: there {what} {self._column!r}; it has {schema.names}, and "
            "one of that name is needed."
        )

    def _row_shape(self, field, width):
        """Shape of a row: what is written of a tensor, else that of a list."""
        shape = _tensor_shape(field, self.path)
        shape = (width,) if shape is None else shape
        if len(shape) not in (1, 2) or math.prod(shape) != width:
            raise ValueError(
                f"{self.path}: column {self._column!r} holds {width} numbers in a row, "
                f"of shape {tuple(shape)}, expected (d,), or (k, d) for counterparts."
            )
        return tuple(shape)

    def _value_dtype(self, field):
        import pyarrow as pa

        kind = _storage(field.type)
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
            batches = file.iter_batches(rows, columns=[self._column])
            while True:
                with _damage_named(self.path):
                    batch = next(batches, None)
                    if batch is None:
                        return
                    values = _to_matrix(batch.column(self._column), width, self, start)
                if len(values):
                    yield values
                start += len(values)


def write_npy(path, shape, dtype, chunks):
    """Write a ``.npy`` file of `shape` chunk by chunk; it appears when it is whole."""
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": shape,
    }
    with replacing(path) as unfinished, open(unfinished, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        n_rows = 0
        for chunk in chunks:
            # Not `tofile`, whose errors do not say that the disk is full.
            file.write(np.ascontiguousarray(chunk, dtype).data)
            n_rows += len(chunk)
        if n_rows != shape[0]:
            raise ValueError(
                f"{path}: {n_rows} rows were given, expected {shape[0]}. What they are "
                "read from has changed since it was opened."
            )


def _changed(path):
    return ValueError(
        f"{path} has changed since it was opened. Make the EmbeddingFiles anew, when "
        "nothing writes to the files."
    )


@contextmanager
def _damage_named(path):
    """Let errors of Arrow, which name no file, name the one that is damaged."""
    import pyarrow as pa

    try:
        yield
    except MemoryError:
        raise
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:  # of the system, not of the file
            raise
        raise ValueError(
            f"{path}: this is not a Parquet file that can be read, or it is damaged "
            f"({error}). Write it again, or copy it again."
        ) from error


def _read_header(file, path):
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        return readers[np.lib.format.read_magic(file)](file)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # NumPy reads a header as a line of Python
        raise ValueError(
            f"{path}: this is not a NumPy file of numbers ({error}). Write it with "
            "numpy.save."
        ) from error


def _check_shape(shape, path):
    if shape and shape[0] == 0:
        return 0, ()
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(
            f"{path}: expected an array of shape (n, d), or (n, k, d) for "
            f"counterparts, got {shape}."
        )
    return shape[0], shape[1:]


def _storage(kind):
    """Type under an extension type, such as the tensors that Ray Data writes."""
    return getattr(kind, "storage_type", kind)


def _tensor_shape(field, path):
    """Shape in each row of a column of tensors; None for other columns."""
    order = getattr(field.type, "permutation", None)
    if order is not None and list(order) != sorted(order):
        raise ValueError(
            f"{path}: column {field.name!r} holds tensors with permuted axes "
            f"({field.type}). Write them in row-major order."
        )
    if hasattr(field.type, "shape"):  # Arrow's own, and Ray's where Ray is imported
        return field.type.shape
    written = field.metadata or {}
    if not written.get(b"ARROW:extension:name", b"").startswith(b"ray.data.arrow_ten"):
        return None
    try:
        return json.loads(written[b"ARROW:extension:metadata"])
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path}: column {field.name!r} holds tensors of Ray whose shape is not "
            "written as JSON. Read them with Ray, or write lists of floats."
        ) from error


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
