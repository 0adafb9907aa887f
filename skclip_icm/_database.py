"""The SQLite database of an `EmbeddingCache`, and how it stays bounded."""

import os
import sqlite3
import zlib
from pathlib import Path

_APPLICATION_ID = 0x69634D31  # In SQLite's header: tells our database from others.
_PAGE_BYTES = 16384  # Reads rows of 1280 numbers twice as fast as the usual 4096.
# Of a new database only: setting them again would wait for whoever writes to it.
_LAYOUT = (
    f"PRAGMA page_size = {_PAGE_BYTES}",
    "PRAGMA auto_vacuum = INCREMENTAL",
)
_OPTIONS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = NORMAL",
    "PRAGMA wal_autocheckpoint = 256",  # Pages, so 4 MiB.
    f"PRAGMA journal_size_limit = {256 * _PAGE_BYTES}",
)
_TABLES = (
    "CREATE TABLE rows (id INTEGER PRIMARY KEY,"
    " key BLOB NOT NULL UNIQUE, row BLOB NOT NULL, crc INTEGER NOT NULL)",
    "CREATE TABLE digests (id INTEGER PRIMARY KEY,"
    " stamp BLOB NOT NULL UNIQUE, digest BLOB NOT NULL)",
)
_TABLES_IN_MASTER = [(table.encode(),) for table in _TABLES]
_CONNECT = {"timeout": 10, "isolation_level": None, "check_same_thread": False}


def connect(file):
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
        made = "SELECT sql FROM sqlite_master WHERE sql NOTNULL ORDER BY rowid"
        if found != _APPLICATION_ID and n_tables:
            raise sqlite3.DatabaseError("another program's database")
        if found == _APPLICATION_ID and list(db.execute(made)) != _TABLES_IN_MASTER:
            raise sqlite3.DatabaseError("its tables are not those that were made")
        is_new = found != _APPLICATION_ID
        for option in (*_LAYOUT, *options) if is_new else options:
            db.execute(option)
        if is_new:
            with db:
                db.execute("BEGIN IMMEDIATE")
                for table in _TABLES:  # another process may just have made them
                    db.execute(table.replace("TABLE", "TABLE IF NOT EXISTS", 1))
                db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    except sqlite3.Error:
        db.close()
        raise
    return db


def select(db, query, keys):
    for start in range(0, len(keys), 500):
        some = keys[start : start + 500]
        yield from db.execute(f"{query} IN ({','.join('?' * len(some))})", some)


def write(db, where, records, max_bytes):
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
    if bytes_in_use(db) + n_bytes > max_bytes:
        # Digests of files take a sixth of the bound at most.
        newest = "SELECT max(id) FROM digests"
        query = f"DELETE FROM digests WHERE id <= ({newest}) - {max_bytes // 1024}"
        db.execute(query)
        # Some more than needed, so that not every batch has to.
        while bytes_in_use(db) + n_bytes > 0.95 * max_bytes:
            oldest = "SELECT id FROM rows ORDER BY id LIMIT 64"
            if not db.execute(f"DELETE FROM rows WHERE id IN ({oldest})").rowcount:
                break


def _shrink(db):
    db.executescript("PRAGMA incremental_vacuum")  # `execute` frees one page only.
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def remove_all(db):
    for table in ("rows", "digests"):
        db.execute(f"DELETE FROM {table}")
    _shrink(db)


def bytes_in_use(db):
    return _bytes(db, "page_count") - _bytes(db, "freelist_count")


def _bytes(db, pragma):
    return db.execute(f"PRAGMA {pragma}").fetchone()[0] * _PAGE_BYTES


def checksum(key, row):
    return zlib.crc32(row, zlib.crc32(key))
