"""Files that appear when they are complete."""

import os
from contextlib import contextmanager


@contextmanager
def replacing(path):
    """Give a path to write to that takes the place of `path`; nothing is left if not.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from skclip_icm._replacing import replacing
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(Path(folder) / "a.txt") as unfinished:
    ...         _ = unfinished.write_text("all of it")
    ...     print([file.name for file in Path(folder).iterdir()])
    ['a.txt']
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
