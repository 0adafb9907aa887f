"""Files that appear when they are complete."""

import os
import secrets
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path):
    """Give a path to write to that takes the place of `path`; nothing is left if not.

    Each writer has a path of its own, so the last of several that write at once wins.
    Only a process that is killed leaves its unfinished file, a hidden one.

    >>> import tempfile
    >>> from skclip_icm._replacing import replacing
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(Path(folder) / "a.txt") as unfinished:
    ...         _ = unfinished.write_text("all of it")
    ...     print([file.name for file in Path(folder).iterdir()])
    ['a.txt']
    """
    target = Path(os.path.realpath(path))  # a link stays one
    if target.exists() and not target.is_file():
        what = "folder" if target.is_dir() else "device or pipe"
        raise FileExistsError(f"{path} is a {what}, expected the path of a file.")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Short: the name of the target may be as long as names can be.
    unfinished = target.with_name(f".{secrets.token_hex(8)}.unfinished")
    try:
        yield unfinished
        _to_disk(unfinished)
        if target.exists():
            shutil.copymode(target, unfinished)
        os.replace(unfinished, target)
    except OSError as error:  # such as that of a full disk, which names no file
        error.add_note(f"While {path} was written.")
        raise
    finally:
        with suppress(OSError):  # where nothing can be removed, nothing was written
            unfinished.unlink()


def remove_unfinished(folder):
    """Remove what killed writers left; nobody else may be writing there."""
    for path in folder.rglob(".*.unfinished"):
        with suppress(OSError):
            path.unlink()


def _to_disk(path):
    """Wait for the disk: else a power cut could leave the name without the content."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
