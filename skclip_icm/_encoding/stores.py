"""Embeddings kept by content, so that no image is encoded twice.

A store maps keys of 32 bytes (digests of all that an embedding depends on) to rows of
float32, in memory or in a directory. It may forget rows and never returns a wrong
one. Digests of files are kept beside them, so that a file is not read again to learn
that it has not changed.
"""

import hashlib
import os
import stat
import time
from collections import OrderedDict

from skclip_icm.cache import LOCK, EmbeddingCache, check_rows, shared_cache

_MAX_DIGESTS = 2**20  # About 0.2 GB.
_ENTRY_BYTES = 256  # What Python takes for a row and its key beside the numbers.
_RACY_SECONDS = 2  # Coarsest modification time of a common file system (FAT).


def open_cache(cache):
    """Return the store that an estimator's parameter `cache` stands for.

    Parameters
    ----------
    cache : None, "memory", str, os.PathLike or object
        None: the store in memory that all of this process shares; it drops the least
        recently used rows beyond 512 MiB. "memory": the same without a bound. Any
        other str or path: an `EmbeddingCache` in that directory. An object with
        `get_many(keys)` and `put_many(keys, rows)`: itself.

    Returns
    -------
    object
        `get_many(keys)` returns for each key a float32 row of shape (d,), not to be
        written to, or None; `put_many(keys, rows)` keeps rows of shape (m, d).

    Raises
    ------
    TypeError
        If `cache` is none of these.
    OSError
        If the directory can be neither made nor read.

    Examples
    --------
    >>> import numpy as np
    >>> store = open_cache("memory")
    >>> store.put_many([b"a" * 32], np.ones((1, 3), dtype=np.float32))
    >>> store.get_many([b"a" * 32, b"b" * 32])
    [array([1., 1., 1.], dtype=float32), None]
    >>> store.clear()
    """
    if cache is None:
        return _BOUNDED_MEMORY
    if isinstance(cache, str) and cache == "memory":
        return _MEMORY
    if isinstance(cache, str | os.PathLike):
        cache = shared_cache(cache)
    if isinstance(cache, EmbeddingCache):
        cache.open()
    elif not (hasattr(cache, "get_many") and hasattr(cache, "put_many")):
        raise TypeError(
            "cache must be None, 'memory', a directory or an object with the methods "
            f"get_many(keys) and put_many(keys, rows), got {cache!r}."
        )
    return cache


def file_stamp(path):
    """Return a key that changes whenever the file does, without reading the file.

    Take it before reading the file. It covers path, size, inode and times.

    Parameters
    ----------
    path : str or os.PathLike
        Any path.

    Returns
    -------
    bytes or None
        None if there is no such regular file, or it changed less than 2 s ago and so
        could change again without a change of its modification time.

    Examples
    --------
    >>> file_stamp("missing.png") is None
    True
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(found.st_mode) or time.time() - found.st_mtime < _RACY_SECONDS:
        return None
    fields = found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns
    text = f"file\0{os.path.abspath(os.fsdecode(path))}\0{fields}"
    return hashlib.sha256(os.fsencode(text)).digest()


def digests_beside(store):
    """Return where the digests of files are kept whose embeddings are in a store.

    Parameters
    ----------
    store : object
        A store, as returned by `open_cache`.

    Returns
    -------
    object
        ``get_digests(stamps)`` returns for each stamp the digest or None;
        ``put_digests(stamps, digests)`` keeps them. Stamps are from `file_stamp`, taken
        before the file was read; None is passed over. A user's own object is not asked
        to keep any: they are in the memory of this process.
    """
    return store if isinstance(store, EmbeddingCache | _MemoryStore) else _MEMORY


class _MemoryStore:
    """Rows in memory; beyond `max_bytes` the least recently used are dropped."""

    def __init__(self, max_bytes=None):
        self.max_bytes = max_bytes
        self.clear()

    def __len__(self):
        return len(self._rows)

    def get_many(self, keys):
        with LOCK:
            for key in keys:
                if key in self._rows:
                    self._rows.move_to_end(key)
            return [self._rows.get(key) for key in keys]

    def put_many(self, keys, rows):
        rows = check_rows(keys, rows)
        with LOCK:
            for key, row in zip(keys, rows, strict=True):
                self._drop(key)
                row = row.copy()  # A view would keep its whole batch alive.
                row.flags.writeable = False
                self._rows[key] = row
                self.nbytes += row.nbytes + _ENTRY_BYTES
            while self.max_bytes is not None and self.nbytes > self.max_bytes:
                self._drop(next(iter(self._rows)))

    def get_digests(self, stamps):
        with LOCK:
            for stamp in stamps:
                if stamp in self._digests:
                    self._digests.move_to_end(stamp)
            return [self._digests.get(stamp) for stamp in stamps]

    def put_digests(self, stamps, digests):
        with LOCK:
            for stamp, digest in zip(stamps, digests, strict=True):
                if stamp is not None:
                    self._digests[stamp] = digest
            while len(self._digests) > _MAX_DIGESTS:
                self._digests.popitem(last=False)

    def clear(self):
        self._rows, self._digests = OrderedDict(), OrderedDict()
        self.nbytes = 0

    def _drop(self, key):
        row = self._rows.pop(key, None)
        if row is not None:
            self.nbytes -= row.nbytes + _ENTRY_BYTES


_MEMORY = _MemoryStore()
_BOUNDED_MEMORY = _MemoryStore(max_bytes=512 * 2**20)
