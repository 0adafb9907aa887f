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
import zlib
from pathlib import Path

import numpy as np

from skclip_icm._locks import Lock

_FORMAT = "embeddings-v2"  # Name of the subdirectory; count up when the layout changes.
_DATABASE_NAME = re.compile(r"rows-(\d+)\.sqlite")
_APPLICATION_ID = 0x69634D31  # In SQLite's header: tells our database from others.
_PAGE_BYTES = 16384  # Reads rows of 1280 numbers twice as fast as the usual 4096.
_OPTIONS = (
    f"PRAGMA page_size = {_PAGE_BYTES}",
    "PRAGMA auto_vacuum = INCREMENTAL",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = NORMAL",
    "PRAGMA wal_autocheckpoint = 256",  # Pages, so 4 MiB.
    f"PRAGMA journal_size_limit = {256 * _PAGE_BYTES}",
)
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY,"
    " key BLOB NOT NULL UNIQUE, row BLOB NOT NULL, crc INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS digests (id INTEGER PRIMARY KEY,"
    " stamp BLOB NOT NULL UNIQUE, digest BLOB NOT NULL)",
    f"PRAGMA application_id = {_APPLICATION_ID}",
)
_CONNECT = {"timeout": 10, "isolation_level": None, "check_same_thread": False}
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
        return self._run(_bytes_in_use, 0, must=True)

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
        records = [(k, r, _checksum(k, r)) for k, r in zip(keys, rows, strict=True)]
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
        known = dict(self._run(lambda db: list(_select(db, query, stamps)), ()))
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
        self._run(_remove_all, must=True)

    def close(self):
        """Close the database; it opens again by itself when next used."""
        with LOCK:
            if self._db is not None:
                self._db.close()
                self._db = None

    def _read(self, db, keys):
        found = {}
        query = "SELECT key, row, crc FROM rows WHERE key"
        for key, row, crc in _select(db, query, keys):
            if isinstance(row, bytes) and crc == _checksum(key, row):
                found[key] = np.frombuffer(row, "<f4").astype("f4", copy=False)
            else:
                self._report("rows", "some rows are damaged; they are made again.")
        return found

    def _insert(self, where, records):
        if records and time.monotonic() >= self._paused_until:
            if not self._run(lambda db: _write(db, where, records, self.max_bytes)):
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
            self._db, self._frozen = _open_database(file)
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
    """Return rows as little-endian float32, or say that their number is wrong."""
    rows = np.ascontiguousarray(rows, dtype="<f4")
    if rows.ndim != 2 or len(rows) != len(keys):
        expected = f"({len(keys)}, d), one row for each key"
        raise ValueError(f"rows must have shape {expected}, got {rows.shape}.")
    return rows


def _open_database(file):
    """Return a connection, and whether it sees only what is there now."""
    try:
        return _prepare(sqlite3.connect(file, **_CONNECT)), False
    except sqlite3.OperationalError as error:
        log = Path(f"{file}-wal")
        busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
        if busy or not os.path.exists(file) or (log.exists() and log.stat().st_size):
            raise
        # SQLite makes files beside the database, which a read-only directory forbids.
        uri = f"{Path(file).as_uri()}?immutable=1"
        return _prepare(sqlite3.connect(uri, uri=True, **_CONNECT), ()), True


def _prepare(db, options=_OPTIONS):
    db.text_factory = bytes  # Damage may turn numbers into text that is not UTF-8.
    # One statement, so that nobody makes the table between two.
    query = "SELECT application_id, (SELECT count(*) FROM sqlite_master)"
    try:
        found, n_tables = db.execute(f"{query} FROM pragma_application_id").fetchone()
        if found != _APPLICATION_ID and n_tables:
            raise sqlite3.DatabaseError("another program's database")
        for option in options:
            db.execute(option)
        if found != _APPLICATION_ID:
            with db:
                db.execute("BEGIN IMMEDIATE")
                for statement in _SCHEMA:
                    db.execute(statement)
    except sqlite3.Error:
        db.close()
        raise
    return db


def _select(db, query, keys):
    for start in range(0, len(keys), 500):
        some = keys[start : start + 500]
        yield from db.execute(f"{query} IN ({','.join('?' * len(some))})", some)


def _write(db, where, records, max_bytes):
    step, n_bytes = 256, sum(memoryview(part).nbytes for part in records[0][:2])
    if max_bytes is not None:  # No transaction takes more than an eighth of the bound.
        step = max(1, min(step, max_bytes // (8 * n_bytes + 1)))
    for start in range(0, len(records), step):
        with db:
            db.execute("BEGIN IMMEDIATE")
            if max_bytes is not None:
                _make_room(db, max_bytes, 2 * n_bytes * len(records[:step]))
            part = records[start : start + step]
            db.executemany(f"INSERT OR REPLACE INTO {where}", part)
    if max_bytes is not None and _bytes(db, "page_count") > max_bytes:
        _shrink(db)  # The bound is lower than it was.
    return True


def _make_room(db, max_bytes, n_bytes):
    """Drop the oldest rows until `n_bytes` more fit below the bound."""
    if _bytes_in_use(db) + n_bytes > max_bytes:
        # Digests of files take a sixth of the bound at most.
        newest = "SELECT max(id) FROM digests"
        query = f"DELETE FROM digests WHERE id <= ({newest}) - {max_bytes // 1024}"
        db.execute(query)
        # Some more than needed, so that not every batch has to.
        while _bytes_in_use(db) + n_bytes > 0.95 * max_bytes:
            oldest = "SELECT id FROM rows ORDER BY id LIMIT 64"
            if not db.execute(f"DELETE FROM rows WHERE id IN ({oldest})").rowcount:
                break


def _shrink(db):
    db.executescript("PRAGMA incremental_vacuum")  # `execute` frees one page only.
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _remove_all(db):
    for table in ("rows", "digests"):
        db.execute(f"DELETE FROM {table}")
    _shrink(db)


def _bytes_in_use(db):
    return _bytes(db, "page_count") - _bytes(db, "freelist_count")


def _bytes(db, pragma):
    return db.execute(f"PRAGMA {pragma}").fetchone()[0] * _PAGE_BYTES


def _checksum(key, row):
    return zlib.crc32(row, zlib.crc32(key))


def _resolve(path):
    return os.path.realpath(os.path.expanduser(os.fsdecode(path)))


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
