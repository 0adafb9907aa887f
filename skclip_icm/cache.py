"""Embeddings in a directory: an SQLite table of rows, each with its checksum.

SQLite's write-ahead log makes it safe with several processes and after a kill; the
checksum covers key and row, so that no fault of the disk becomes a wrong embedding.
What cannot be read or written costs time, never results. SQLite comes with Python
and was as fast as needed; benchmarks/stores.py compares it with two other stores.
"""

import atexit
import os
import re
import sqlite3
import time
import warnings
import weakref
from numbers import Integral

import numpy as np

from skclip_icm import _database as database
from skclip_icm._images.reading import local_path
from skclip_icm._locks import Lock

_FORMAT = "embeddings-v2"  # Name of the subdirectory; count up when the layout changes.
_DATABASE_NAME = re.compile(r"rows-(\d+)\.sqlite")
_PAUSE_SECONDS = 60  # How long not to write after writing failed.

# One lock for all stores of this process, held while it forks. Whoever holds it waits
# for the disk alone, so the fork is not kept waiting for long.
LOCK = Lock()


class EmbeddingCache:
    """Embeddings on disk, for any number of runs, processes and threads.

    A process killed at any moment leaves the database whole. If rows cannot be kept
    (disk full, directory read-only), a RuntimeWarning says so once and work goes on.
    A damaged row counts as missing; a damaged or foreign database is left where it
    is and a new one begun beside it. Pickles hold only path and bound.

    Parameters
    ----------
    path : str or os.PathLike
        Directory on a local disk (SQLite's write-ahead log does not work over a
        network), made when first used. The database is in its subdirectory
        `embeddings-v2`; those of other formats are left alone.
    max_bytes : int, optional
        Bound of the database, at least 1 MiB; a log of a few MiB comes on top. To
        stay below it, the rows written first are dropped. None: no bound.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     cache = EmbeddingCache(directory, max_bytes=2**30)
    ...     cache.put_many([b"a" * 32], np.ones((1, 3), dtype=np.float32))
    ...     print(len(cache), cache.get_many([b"a" * 32, b"b" * 32]))
    ...     cache.close()
    1 [array([1., 1., 1.], dtype=float32), None]
    """

    def __init__(self, path, max_bytes=None):
        if max_bytes is not None and not isinstance(max_bytes, Integral):
            raise TypeError(
                f"max_bytes is {max_bytes!r}, expected a number of bytes or None: "
                "1 GB is 10**9, 1 GiB is 2**30."
            )
        if max_bytes is not None and max_bytes < 2**20:
            raise ValueError(f"max_bytes must be at least {2**20}, got {max_bytes}.")
        self.path = _resolve(path)
        self.max_bytes = max_bytes
        self._folder = os.path.join(self.path, _FORMAT)
        self._db = self._opened = None
        self._frozen = False  # Whether the connection sees no changes by others.
        self._first = 0  # Number of the first database not known to be damaged.
        self._reported = set()
        self._paused_until = 0.0
        _INSTANCES.add(self)

    def __reduce__(self):
        # Copies share one instance: a grid search makes hundreds of clones.
        return shared_cache, (self.path, self.max_bytes)

    def __repr__(self):
        return f"EmbeddingCache({self.path!r}, max_bytes={self.max_bytes})"

    def __del__(self):
        if getattr(self, "_db", None) is not None:
            self._db.close()

    def __len__(self):
        query = "SELECT count(*) FROM rows"
        return self._run(lambda db: db.execute(query).fetchone()[0], 0, must=True)

    @property
    def nbytes(self):
        """Bytes of the database in use."""
        return self._run(database.bytes_in_use, 0, must=True)

    def get_many(self, keys):
        """Return the row of each key.

        Parameters
        ----------
        keys : list of bytes
            Digests, 32 bytes each.

        Returns
        -------
        list of (ndarray of shape (d,), float32, read-only) or None
            None where there is no row.
        """
        found = self._run(lambda db: self._read(db, keys), {})
        return [found.get(key) for key in keys]

    def put_many(self, keys, rows):
        """Keep one row for each key, in place of any kept before.

        Parameters
        ----------
        keys : list of bytes
            Digests, 32 bytes each.
        rows : array-like of shape (m, d)
            The rows, kept as float32.
        """
        rows = check_rows(keys, rows)
        records = [
            (k, r, database.checksum(k, r)) for k, r in zip(keys, rows, strict=True)
        ]
        self._insert("rows (key, row, crc) VALUES (?, ?, ?)", records)

    def get_digests(self, stamps):
        """Return the digests of files whose stamps are as they were, else None.

        Parameters
        ----------
        stamps : list of (bytes or None)
            What changes when the file does.

        Returns
        -------
        list of (bytes or None)
            The digests.
        """
        query = "SELECT stamp, digest FROM digests WHERE stamp"
        known = dict(self._run(lambda db: list(database.select(db, query, stamps)), ()))
        return [known.get(stamp) for stamp in stamps]

    def put_digests(self, stamps, digests):
        """Keep the digests of files, apart from rows.

        Parameters
        ----------
        stamps : list of (bytes or None)
            None is passed over.
        digests : list of bytes
            One for each stamp.
        """
        records = [r for r in zip(stamps, digests, strict=True) if r[0]]
        self._insert("digests (stamp, digest) VALUES (?, ?)", records)

    def open(self):
        """Open the database, or raise an OSError that says why it cannot be."""
        self._run(lambda db: None, must=True)

    def clear(self):
        """Remove all rows and give their space back."""
        self._run(database.remove_all, must=True)

    def close(self):
        """Close the database; it opens again by itself when next used."""
        with LOCK:
            if self._db is not None:
                self._db.close()
                self._db = None

    def _read(self, db, keys):
        found = {}
        query = "SELECT key, row, crc FROM rows WHERE key"
        for key, row, crc in database.select(db, query, keys):
            if isinstance(row, bytes) and crc == database.checksum(key, row):
                found[key] = np.frombuffer(row, "<f4").astype("f4", copy=False)
            else:
                self._report("rows", "some rows are damaged; they are made again.")
        return found

    def _insert(self, where, records):
        if records and time.monotonic() >= self._paused_until:
            if not self._run(
                lambda db: database.write(db, where, records, self.max_bytes)
            ):
                self._paused_until = time.monotonic() + _PAUSE_SECONDS

    def _run(self, task, default=None, must=False):
        """Return task(connection), or `default` if the disk does not let us."""
        with LOCK:
            for _ in range(2):
                try:
                    return task(self._connect())
                except (OSError, sqlite3.OperationalError) as error:
                    reason = error
                    break
                except sqlite3.DatabaseError as error:
                    if type(error) is not sqlite3.DatabaseError:
                        raise  # Subclasses tell of wrong use, not of a damaged file.
                    reason = error
                    self._leave_damaged(error)
        if must:
            raise OSError(
                f"The cache directory {self.path} cannot be used; give one that can "
                f"be written, or cache='memory': {reason}"
            ) from reason
        self._report("use", f"it cannot be used now ({reason}); work goes on without.")
        return default

    def _connect(self):
        """Return a connection to the newest database."""
        os.makedirs(self._folder, exist_ok=True)
        matches = map(_DATABASE_NAME.fullmatch, os.listdir(self._folder))
        number = max(self._first, *(int(m[1]) for m in matches if m), 0)
        file = os.path.join(self._folder, f"rows-{number}.sqlite")
        # Somebody else may have removed the directory or found damage.
        current = self._opened == (number, _inode(file)) and not self._frozen
        if self._db is None or not current:
            self.close()
            self._report_other_formats()
            self._opened = number, _inode(file)
            self._db, self._frozen = database.connect(file)
            self._opened = number, _inode(file)
        return self._db

    def _leave_damaged(self, error):
        # Renaming it would mix old and new files of processes that have it open.
        self.close()
        number = self._opened[0]
        self._first = number + 1
        self._report(
            number,
            f"rows-{number}.sqlite is damaged ({error}); a new database is begun. "
            "Remove the damaged one when you like.",
        )

    def _report_other_formats(self):
        names = set(os.listdir(self.path)) - {_FORMAT}
        others = sorted(n for n in names if re.fullmatch(r"embeddings-v\d+", n))
        if others:
            self._report("formats", f"{others} have other formats, so are not read.")

    def _report(self, what, text):
        if what not in self._reported:
            self._reported.add(what)
            warnings.warn(f"Cache {self._folder}: {text}", RuntimeWarning, stacklevel=2)


def shared_cache(path, max_bytes=None):
    """Return the `EmbeddingCache` that all of this process shares."""
    key = _resolve(path), max_bytes
    with LOCK:
        if key not in _SHARED:
            _SHARED[key] = EmbeddingCache(*key)
        return _SHARED[key]


def check_rows(keys, rows):
    """Return rows as little-endian float32, or say what is wrong with them."""
    strange = [key for key in keys if not isinstance(key, bytes)]
    if strange:
        raise TypeError(
            f"keys must be bytes, the digests of images; got {strange[0]!r}."
        )
    rows = np.ascontiguousarray(rows, dtype="<f4")
    if rows.ndim != 2 or len(rows) != len(keys):
        expected = f"({len(keys)}, d), one row for each key"
        raise ValueError(f"rows must have shape {expected}, got {rows.shape}.")
    return rows


def _resolve(path):
    return os.path.realpath(local_path(os.fsdecode(path)))


def _inode(path):
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _before_fork():
    # A child must not use its parent's connections; both sides open new ones.
    LOCK.__enter__()
    _close_all()


def _after_fork():
    LOCK.__exit__(None, None, None)


def _close_all():
    for cache in list(_INSTANCES):
        cache.close()


_INSTANCES = weakref.WeakSet()
_SHARED = {}

atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork,
        after_in_child=_after_fork,
    )
