"""One file's content, and the error for a row that is no usable image.

Only regular files of bounded size are read.
"""

import errno
import os
import re
import stat
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

#: Largest file read, in bytes.
MAX_BYTES = 512 * 2**20

LIST_FOLDER = (
    "Of a folder laid out as domain/class/image, load_domain_folder lists the images: "
    "skclip_icm.datasets.load_domain_folder(folder).images."
)


class ImageError(ValueError):
    """One row is not a usable image.

    Parameters
    ----------
    message : str
        What was found, what was expected and how to fix it.
    row : int or None, default=None
        Position of the image in the input; None where there is only one image.

    Examples
    --------
    >>> from skclip_icm import CLIPFeaturizer, ImageError
    >>> try:
    ...     CLIPFeaturizer("demo").transform(["nowhere.jpg"])
    ... except ImageError as error:
    ...     print(error.row, error)
    0 row 0: 'nowhere.jpg': no such file. Check the path; ...
    """

    def __init__(self, message, row=None):
        super().__init__(message)
        self.row = row

    def __reduce__(self):
        return type(self), (str(self), self.row)


def row_error(row, name, found, fix):
    """Build the error for one row."""
    return ImageError(f"{_where(row, name)}: {found}. {fix}", row)


def memory_error(row, name):
    """Build the error for one row that may be a good image."""
    return MemoryError(
        f"{_where(row, name)}: there is not enough memory to read the image, which may "
        "be whole. Set n_jobs lower, or give the process more memory."
    )


def _where(row, name):
    return name if row is None else f"row {row}: {name}"


def local_path(path):
    """Return the path of a file: without "file://", and with the home for a "~"."""
    text = os.fspath(path)
    if not isinstance(text, str):
        return path
    if text.startswith("~"):
        return os.path.expanduser(text)
    if text[:6].lower() != "file:/":  # "file:a.png" is a name like any other
        return path
    parts = urlsplit(text)
    here = parts.netloc.lower() in ("", "localhost")
    return url2pathname(parts.path) if here else path


def as_path(path, name="path"):
    """Return a `Path` of what `local_path` understands, or raise TypeError."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"{name} is of type {type(path).__name__}, expected a path: a str or a "
            "pathlib.Path."
        )
    return Path(local_path(path))


def read_file(path, row):
    """Return the bytes of a regular file, or raise `ImageError`."""
    name = shorten(os.fspath(path))
    try:
        # Opening a FIFO would wait for a writer and opening a device may act on it:
        # look first, and once more at what was opened, lest it was swapped.
        _check_regular(os.stat(path), row, name)
        with open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            _check_regular(status, row, name)
            content = file.read(status.st_size)
    except ImageError:
        raise
    except MemoryError as exc:
        raise memory_error(row, name) from exc
    except (OSError, ValueError) as exc:
        raise row_error(row, name, _reason(exc), _file_fix(exc, name)) from exc
    if not content:
        raise row_error(row, name, "the file is empty", "Restore or drop it.")
    return content


def _open_without_waiting(path, flags):
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check_regular(status, row, name):
    if stat.S_ISDIR(status.st_mode):
        fix = f"Pass the paths of the files in it. {LIST_FOLDER}"
        raise row_error(row, name, "a directory", fix)
    if not stat.S_ISREG(status.st_mode):
        found = "not a regular file (FIFO, socket or device)"
        raise row_error(row, name, found, "Pass the path of an image file.")
    if status.st_size > MAX_BYTES:
        found = f"the file has {status.st_size} bytes, at most {MAX_BYTES} are read"
        raise row_error(row, name, found, "Save the image smaller.")


def _reason(exc):
    reason = {
        errno.ENOENT: "no such file",
        errno.EACCES: "no permission to read the file",
        errno.ELOOP: "a loop of symbolic links",
    }.get(getattr(exc, "errno", None))
    return reason or getattr(exc, "strerror", None) or str(exc)


def _file_fix(exc, name):
    if re.match(r"'file://", name, re.IGNORECASE):
        return (
            "Addresses are not fetched. Of a file on this machine, give 'file:///' and "
            "its whole path."
        )
    if "://" in name:
        return "Addresses are not fetched: download the file and pass its path."
    if isinstance(exc, FileNotFoundError):
        return f"Check the path; the working directory is {working_directory()}."
    return "Pass the path of a readable image file."


def working_directory():
    """Name the working directory, which somebody may have removed."""
    try:
        return repr(os.getcwd())
    except OSError:
        return "gone"


def shorten(path):
    """Show a path, the middle of a long one left out."""
    text = repr(path)
    return text if len(text) <= 300 else f"{text[:150]} ... {text[-100:]}"
