"""What images there are: the container, and the content of one row.

`as_items` checks the container; `read_content` handles one row, so a broken row
never costs the others. Only regular files of bounded size are read. Torch tensors
are recognised without importing torch.
"""

import copy
import io
import os
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from skclip_icm._containers import entries, is_missing, only_column
from skclip_icm._images.reading import (
    LIST_FOLDER,
    MAX_BYTES,
    ImageError,
    local_path,
    memory_error,
    read_file,
    row_error,
    shorten,
)

__all__ = [
    "MAX_BYTES",
    "ImageError",
    "as_items",
    "check_array",
    "describe",
    "holds_images",
    "is_column",
    "memory_error",
    "read_content",
    "row_error",
]

_EXPECTED = (
    "a list, 1-d array, Series, column or one-column frame of paths, bytes, PIL "
    'images, rows {"bytes": ..., "path": ...} or uint8 arrays (H, W), (H, W, 3) or '
    "(H, W, 4); or a uint8 array (n, H, W, 3); or a uint8 torch tensor (n, 3, H, W)"
)
_ROW = "row of bytes and path"
_KINDS = ("path", "bytes", "PIL image", "array", "torch tensor", _ROW)


def as_items(X):
    """Check a container of images and return it as a sequence of rows.

    Pixels are neither copied nor looked at: a broken row is left for
    `read_content` and `decode` to report.

    Parameters
    ----------
    X : sequence, array, Series, column, one-column frame or torch tensor
        Of paths, bytes, `io.BytesIO`, PIL images or uint8 arrays (H, W), (H, W, 1),
        (H, W, 3) or (H, W, 4); or one array (n, H, W, C) with C in (1, 3, 4); or a
        torch tensor (n, C, H, W). Floats in [0, 1] are accepted in place of uint8.
        Mappings with "bytes" or "path", as Parquet files of images have them, are the
        bytes, or the path where there are none. Paths may begin with "~" or
        "file://". A column of a `datasets.Dataset` is read row by row, when needed.
        Missing entries (None, NaN) are kept.

    Returns
    -------
    sequence of length n
        ``X`` itself, a view of it, a list of its entries, or what fetches them.

    Raises
    ------
    TypeError
        If ``X`` is no container of images.
    ValueError
        If ``X`` is empty or has the shape of something else.
    ImageError
        If kinds are mixed; names the first row that differs.

    Examples
    --------
    >>> import numpy as np
    >>> len(as_items(["cat.jpg", "dog.jpg"]))
    2
    >>> as_items(np.zeros((5, 32, 32, 3), dtype=np.uint8))[0].shape
    (32, 32, 3)
    """
    if X is None or _kind(X) in ("path", "bytes", "PIL image", _ROW):
        if isinstance(X, str | os.PathLike) and os.path.isdir(local_path(X)):
            raise TypeError(
                f"X is the folder {shorten(X)}, expected {_EXPECTED}. {LIST_FOLDER}"
            )
        what = "None" if X is None else f"a single {_kind(X)}"
        raise TypeError(f"X is {what}, expected {_EXPECTED}. Wrap one image in a list.")
    if isinstance(X, np.ndarray):
        items = _array_items(X)
    elif _is_torch(X):
        items = _tensor_items(X)
    elif is_column(X):
        items = _Column(X)
    else:
        items = entries(X, "X", _EXPECTED)
    if len(items) == 0:
        raise ValueError(f"X holds no images, expected {_EXPECTED}, with n >= 1.")
    if isinstance(items, list):
        _check_one_kind(items)
        items = [_plain(item) for item in items]
    return items


def holds_images(X):
    """Say whether `X` is a container of images rather than an array of numbers."""
    if hasattr(X, "columns"):
        X = only_column(X, "X", _EXPECTED) if X.shape[1] == 1 else ()
    if getattr(X, "ndim", 1) == 2 and X.shape[1] == 1:
        X = X.reshape(-1)
    if getattr(X, "ndim", 1) != 1:
        return X.ndim == 4
    if is_column(X):
        X = [X[0]] if len(X) else []
    if not (isinstance(X, Sequence | np.ndarray) or hasattr(X, "to_list")):
        return False
    first = next(iter(X), None)
    kind = _kind(first)
    return first.ndim > 1 if kind in ("array", "torch tensor") else kind in _KINDS


def read_content(item, row=None):
    """Fetch what one row holds: file bytes, or the checked pixels.

    Parameters
    ----------
    item : str, os.PathLike, bytes, io.BytesIO, PIL image, array or tensor
        One entry of `as_items`.
    row : int, optional
        Its position, for the error message.

    Returns
    -------
    bytes, PIL image or uint8 array
        Bytes of a path's file; bytes and PIL images as they are; arrays and tensors
        as a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), a view where
        possible. Floats in [0, 1] become ``round(255 * x)``.

    Raises
    ------
    ImageError
        If the entry is missing, of another type, dtype, shape or range, or its file
        cannot be read. A FIFO, socket or device is refused without being opened.

    Examples
    --------
    >>> import numpy as np
    >>> read_content(np.ones((2, 2))).dtype
    dtype('uint8')
    """
    kind = _kind(item)
    if kind is None:
        raise row_error(
            row, repr(item), "the image is missing", "Drop or fill the row."
        )
    if kind == "path":
        return read_file(item, row)
    if kind == "bytes":
        try:
            content = item.getvalue() if isinstance(item, io.BytesIO) else bytes(item)
        except ValueError as error:  # it is closed
            name = f"a {type(item).__name__}"
            raise row_error(row, name, "it is closed", "Pass an open one.") from error
        if not content:
            raise row_error(row, "bytes", "they are empty", "Pass a whole image file.")
        return content
    if kind == "PIL image":
        return item
    if kind == "torch tensor":
        return check_array(_tensor_to_array(item, row), row)
    if kind == "array":
        return check_array(item, row)
    raise row_error(
        row, f"an object of type {kind}", "not an image", f"Expected {_EXPECTED}."
    )


# Containers


def _array_items(X):
    if X.dtype.kind in "OUT":
        if X.ndim == 1 or (X.ndim == 2 and X.shape[1] == 1):
            return list(np.ravel(X))
        raise ValueError(
            f"X has shape {X.shape}, expected (n,) or (n, 1) for an array of paths, "
            "bytes or images. Select the one column that holds the images."
        )
    if X.ndim == 4 and X.shape[-1] in (1, 3, 4):
        return X
    if X.ndim == 4 and X.shape[1] in (1, 3, 4):
        fix = "Put channels last: X.transpose(0, 2, 3, 1)."
    elif X.ndim == 3 and X.shape[-1] in (1, 3, 4):
        fix = "If it is one image, wrap it in a list: [X]."
    elif X.ndim == 3:
        fix = "If it is a stack of greyscale images, add an axis: X[..., None]."
    elif X.ndim == 2:
        fix = "It looks like embeddings or features already, not images."
    elif X.dtype.kind == "S":
        fix = "NumPy cuts zeros off the end of bytes: pass the files in a list."
    else:
        fix = f"Expected {_EXPECTED}."
    raise ValueError(
        f"X is a {X.dtype} array of shape {X.shape}, expected (n, H, W, 3). {fix}"
    )


def _tensor_items(X):
    if X.ndim == 4 and X.shape[1] in (1, 3, 4):
        return X
    if X.ndim == 3:
        fix = "If it is one image, wrap it in a list: [X]."
    elif X.ndim == 2:
        fix = "It looks like embeddings or features already, not images."
    else:
        fix = "Put channels first: X.permute(0, 3, 1, 2)."
    raise ValueError(
        f"X is a {X.dtype} tensor of shape {tuple(X.shape)}, expected (n, 3, H, W). "
        f"{fix}"
    )


def is_column(X):
    """Whether `X` is a column of a `datasets.Dataset`, which decodes when indexed."""
    return hasattr(X, "source") and hasattr(X, "column_name") and hasattr(X, "__len__")


class _Column(Sequence):
    """Rows of a column, fetched one at a time, as files where it holds files."""

    def __init__(self, column):
        self._rows = column
        source = column.source
        feature = getattr(source, "features", {}).get(column.column_name)
        # What the user's own transform, or a mode such as "L", makes of images, is
        # theirs. A column of structs has columns too, which cannot be cast.
        as_stored = (getattr(source, "format", None) or {}).get("type") != "custom"
        as_stored = as_stored and getattr(feature, "mode", None) in (None, "RGB")
        decodes = getattr(feature, "decode", False)
        if as_stored and decodes and hasattr(source, "cast_column"):
            # Else each row would be decoded twice, and its file not be known.
            raw = copy.copy(feature)
            raw.decode = False
            self._rows = source.cast_column(column.column_name, raw)[column.column_name]
        if len(self):
            _check_one_kind([self._rows[0]])

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, row):
        return _plain(self._rows[int(row)])


def _plain(item):
    """Return one entry without what it is wrapped in, its path as the system's."""
    if isinstance(item, Mapping):
        content = item.get("bytes")
        item = item.get("path") if is_missing(content) else content
    if type(item) is np.str_:  # which messages would show as np.str_('cat.jpg')
        item = str(item)
    return local_path(item) if isinstance(item, str | os.PathLike) else item


def _check_one_kind(items):
    first, first_row = None, None
    for row, item in enumerate(items):
        kind = _kind(item)
        if kind is None or kind == first:
            continue
        if first is not None:
            raise ImageError(
                f"X mixes kinds: row {first_row} is {_with_article(first)}, row {row} "
                f"is {_with_article(kind)}. Pass images of one kind in one call.",
                row,
            )
        if kind not in _KINDS:
            hint = ""
            if hasattr(item, "read"):
                hint = " Of an open file, pass the bytes that its read() returns."
            raise TypeError(
                f"X holds {_with_article(kind)} in row {row}, expected {_EXPECTED}."
                f"{hint}"
            )
        first, first_row = kind, row


def _kind(item):
    """Name the kind of one entry; None for a missing one, else its type's name."""
    if item is np.ma.masked:  # an array to numpy
        return None
    if isinstance(item, str | os.PathLike):
        return "path"
    if isinstance(item, bytes | bytearray | memoryview | io.BytesIO):
        return "bytes"
    if isinstance(item, Mapping) and ("bytes" in item or "path" in item):
        return _ROW
    if isinstance(item, Image.Image):
        return "PIL image"
    if isinstance(item, np.ndarray):
        return "array"
    if _is_torch(item):
        return "torch tensor"
    if is_missing(item):
        return None
    name = type(item).__name__
    return f"{type(item).__module__}.{name}" if name in _KINDS else name


def _with_article(kind):
    if kind == "bytes":
        return kind
    return f"an {kind}" if kind[0] in "aeiouAEIOU" else f"a {kind}"


def _is_torch(item):
    return type(item).__module__.startswith("torch") and hasattr(item, "is_contiguous")


# One row's content


def _tensor_to_array(tensor, row):
    name = f"{tensor.dtype} tensor of shape {tuple(tensor.shape)}"
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4):
        raise row_error(row, name, "expected (3, H, W)", "Put channels first.")
    try:
        if tensor.is_floating_point():
            tensor = tensor.float()  # NumPy has no bfloat16
        tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
        return tensor.permute(1, 2, 0).numpy()
    except (NotImplementedError, TypeError) as error:  # meta, sparse, quantised
        found = f"it has no plain values ({str(error).splitlines()[0]})"
        fix = "Pass a dense tensor of uint8, or of floats from 0 to 1."
        raise row_error(row, name, found, fix) from error


def check_array(array, row, name=""):
    """Return the pixels of one image as uint8, or say what is wrong with them."""
    name = name or f"{array.dtype} array of shape {array.shape}"
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[-1] in (1, 3, 4)):
        raise row_error(
            row, name, "expected (H, W), (H, W, 3) or (H, W, 4)", "Put channels last."
        )
    if np.ma.is_masked(array):
        raise row_error(
            row,
            name,
            "some of its pixels are masked, and an image has none that do not count",
            "Say what they look like: array.filled(0) for black.",
        )
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise row_error(
            row,
            name,
            "expected dtype uint8 (0 to 255)",
            "Scale to 0..255 and convert: array.astype('uint8').",
        )
    # Resizing and scaling back leave values such as -1e-17 and 1.0000001.
    levels = np.rint(array * np.float32(255))
    # Comparisons with NaN are false, so this refuses NaN too.
    if array.size and not (levels.min() >= 0 and levels.max() <= 255):
        if not np.isfinite(array).all():
            raise row_error(
                row, name, "it has NaN or infinity", "Fill such pixels first."
            )
        raise row_error(
            row,
            name,
            f"values from {array.min()!s} to {array.max()!s}, a float image must "
            "lie in [0, 1]",
            "Divide by the largest possible value, or convert to uint8.",
        )
    return levels.astype(np.uint8)


# Messages


def describe(content):
    """Name an image that has no path."""
    if isinstance(content, Image.Image):
        width, height = content.size
        return f"PIL image of mode {content.mode}, {width} x {height} pixels"
    if isinstance(content, np.ndarray):
        return f"{content.dtype} array of shape {content.shape}"
    return f"{len(content)} bytes"
