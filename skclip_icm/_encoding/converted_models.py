"""Converted models on disk, so that only the first process has to convert."""

import hashlib
import os
import shutil
import tempfile
import time
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np

# Beyond this, the models that have not been used for longest are removed.
MAX_BYTES = 4 * 2**30

_N_CHECKSUM = 32
_N_HEADER = _N_CHECKSUM + 8  # then the length of the XML part
_PREFIX = "part-"
_ABANDONED_SECONDS = 3600


def models_folder():
    """Return the folder of converted models.

    Returns
    -------
    folder : Path
        The environment variable SKCLIP_ICM_MODELS, or ``skclip-icm/models`` in the
        user's cache (XDG_CACHE_HOME, or ``~/.cache``, as for downloaded weights).
    """
    chosen = os.environ.get("SKCLIP_ICM_MODELS")
    if chosen:
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "skclip-icm" / "models"


def read_model(key):
    """Return a kept model's two parts.

    Parameters
    ----------
    key : str
        What `write_model` was given.

    Returns
    -------
    parts : (bytes, ndarray of uint8) or None
        Its XML and its weights; None if it is not there, or is damaged.
    """
    path = models_folder() / key
    try:
        content = np.fromfile(path, np.uint8)
    except OSError:
        return None
    checksum, header, body = np.split(content, [_N_CHECKSUM, _N_HEADER])
    if _checksum(content[_N_CHECKSUM:]) != checksum.tobytes():
        warnings.warn(
            f"{path} is damaged and is not used; the model is converted again.",
            stacklevel=2,
        )
        return None
    with suppress(OSError):
        os.utime(path)  # so that it counts as used
    n_xml = int.from_bytes(header.tobytes(), "little")
    return body[:n_xml].tobytes(), body[n_xml:]


def write_model(key, save):
    """Keep a model; where that cannot be done, warn and go on.

    Parameters
    ----------
    key : str
        A name for it that is good for a file.
    save : callable
        ``save(path)`` writes ``path`` and, beside it, the same name ending in .bin.
    """
    folder = models_folder()
    try:
        # Who can write here decides what is computed: nobody else.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=_PREFIX) as temporary:
            xml = Path(temporary, "model.xml")
            save(xml)
            parts = xml.read_bytes(), np.fromfile(xml.with_suffix(".bin"), np.uint8)
            # One file, and in one step: readers find all of it or nothing.
            whole = Path(temporary, "whole")
            n_xml = len(parts[0]).to_bytes(_N_HEADER - _N_CHECKSUM, "little")
            with open(whole, "wb") as file:
                for piece in (_checksum(n_xml, *parts), n_xml, *parts):
                    file.write(piece)
            os.replace(whole, folder / key)
        _drop_oldest(folder, key)
    except (OSError, RuntimeError) as error:  # OpenVINO's, where the disk is full
        warnings.warn(
            f"The converted model is not kept in {folder} ({error}), so that each "
            "process converts it again. Set the environment variable "
            "SKCLIP_ICM_MODELS to a folder that can be written to.",
            stacklevel=2,
        )


def _checksum(*pieces):
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


def _drop_oldest(folder, newest):
    found = []
    for path in folder.iterdir():
        with suppress(OSError):  # another process may remove it meanwhile
            status = path.stat()
            if path.name.startswith(_PREFIX):
                if time.time() - status.st_mtime > _ABANDONED_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)
            elif path.name != newest:
                found.append((status.st_mtime, status.st_size, path))
    left = MAX_BYTES - (folder / newest).stat().st_size
    for _, size, path in sorted(found, reverse=True):
        left -= size
        if left < 0:
            path.unlink(missing_ok=True)
