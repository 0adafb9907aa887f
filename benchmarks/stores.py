"""Which store keeps embeddings on disk: SQLite, LMDB or diskcache?

Run `pip install lmdb diskcache`, then `python benchmarks/stores.py`. It takes some
minutes and writes benchmarks/results/stores.json and stores.md. Every store gets the
same rows and keeps and verifies a CRC-32 of key and row.
"""

import argparse
import contextlib
import datetime
import hashlib
import json
import multiprocessing
import os
import platform
import shutil
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
import warnings
import zlib
from importlib.metadata import version
from pathlib import Path

import numpy as np
from machine import cpu

from skclip_icm import EmbeddingCache

try:
    import diskcache
    import lmdb
except ImportError as error:
    print(f"{error}: left out; `pip install lmdb diskcache` to measure the stores.")
    sys.exit()

SEED = 0
N, D, BATCH = 10_000, 1280, 64
REPEATS = 5
KILLS = 20
ENCODING_SECONDS = 0.010  # one image with ViT-B-16 on two cores, roughly
RESULTS = Path(__file__).parent / "results"

FORK = multiprocessing.get_context("fork")
KEYS = [hashlib.sha256(b"%d" % i).digest() for i in range(2 * N)]
ROWS = np.random.default_rng(SEED).standard_normal((N, D), dtype=np.float32)


def packed(keys, rows):
    for key, row in zip(keys, rows, strict=True):
        yield key, row.tobytes() + zlib.crc32(row, zlib.crc32(key)).to_bytes(4)


def unpacked(key, value):
    if value is None:
        return None
    row = memoryview(value)[:-4]
    right = zlib.crc32(row, zlib.crc32(key)).to_bytes(4) == bytes(value[-4:])
    return np.frombuffer(row, np.float32) if right else None


class LMDB:
    """Fsync at every commit, as is its default; or never, as our SQLite nearly is."""

    def __init__(self, path, sync=True):
        self.env = lmdb.open(str(path), map_size=2**30, sync=sync)

    def put_many(self, keys, rows):
        with self.env.begin(write=True) as transaction:
            for key, value in packed(keys, rows):
                transaction.put(key, value)

    def get_many(self, keys):
        with self.env.begin() as transaction:
            return [unpacked(key, transaction.get(key)) for key in keys]

    def close(self):
        self.env.close()


class DiskCache:
    """Values are bytes, which it keeps without pickle; one transaction a batch."""

    def __init__(self, path):
        self.cache = diskcache.Cache(path, eviction_policy="none", size_limit=2**33)

    def put_many(self, keys, rows):
        with self.cache.transact():
            for key, value in packed(keys, rows):
                self.cache[key] = value

    def get_many(self, keys):
        return [unpacked(key, self.cache.get(key)) for key in keys]

    def close(self):
        self.cache.close()


STORES = {
    "SQLite (EmbeddingCache)": EmbeddingCache,
    "LMDB": LMDB,
    "LMDB, no fsync": lambda path: LMDB(path, sync=False),
    "diskcache": DiskCache,
}


@contextlib.contextmanager
def directory():
    path = tempfile.mkdtemp()
    try:
        yield path
    finally:
        shutil.rmtree(path)


def write(store, first=0, n=N):
    for i in range(0, n, BATCH):
        stop = min(i + BATCH, n)
        store.put_many(KEYS[first + i : first + stop], ROWS[i:stop])


def bytes_on_disk(path):
    files = [p for p in Path(path).rglob("*") if p.is_file()]
    return sum(p.stat().st_blocks * 512 for p in files)


def write_and_read(make):
    with directory() as path:
        store = make(path)
        begin = time.perf_counter()
        write(store)
        written = time.perf_counter()
        store.close()
        store = make(path)
        opened = time.perf_counter()
        rows = store.get_many(KEYS[:N])
        read = time.perf_counter()
        assert all(np.array_equal(a, b) for a, b in zip(rows, ROWS, strict=True))
        store.close()
        return {
            "write_rows_per_s": N / (written - begin),
            "read_10000_rows_s": read - opened,
            "bytes_per_byte_of_rows": bytes_on_disk(path) / ROWS.nbytes,
        }


def _write_half(make, path, first, barrier):
    barrier.wait()
    store = make(path)
    write(store, first, N // 2)
    store.close()


def two_writers(make):
    with directory() as path:
        make(path).close()
        barrier = FORK.Barrier(3)
        args = [(make, path, first, barrier) for first in (0, N)]
        workers = [FORK.Process(target=_write_half, args=a) for a in args]
        for worker in workers:
            worker.start()
        barrier.wait()
        begin = time.perf_counter()
        for worker in workers:
            worker.join()
        seconds = time.perf_counter() - begin
        store = make(path)
        for first in (0, N):
            rows = store.get_many(KEYS[first : first + N // 2])
            assert all(
                np.array_equal(a, b) for a, b in zip(rows, ROWS[: N // 2], strict=True)
            )
        store.close()
        return {"two_writers_rows_per_s": N / seconds}


def _write_and_tell(make, path, finished):
    store = make(path)
    for i in range(0, N - BATCH, BATCH):
        store.put_many(KEYS[i : i + BATCH], ROWS[i : i + BATCH])
        finished.send(i + BATCH)


def kills(make):
    """Count finished rows that are missing, and wrong rows, after kill -9."""
    rng = np.random.default_rng(SEED)
    n_missing = n_wrong = n_finished = 0
    for _ in range(KILLS):
        with directory() as path:
            receiver, sender = FORK.Pipe(duplex=False)
            writer = FORK.Process(target=_write_and_tell, args=(make, path, sender))
            writer.start()
            sender.close()
            time.sleep(rng.uniform(0.05, 0.4))
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
            finished = 0
            with contextlib.suppress(EOFError):
                while True:
                    finished = receiver.recv()
            store = make(path)
            rows = store.get_many(KEYS[:N])
            store.close()
            n_finished += finished
            n_missing += sum(row is None for row in rows[:finished])
            n_wrong += sum(
                row is not None and not np.array_equal(row, right)
                for row, right in zip(rows, ROWS, strict=True)
            )
    return {
        "kills": KILLS,
        "finished_rows": n_finished,
        "missing_rows": n_missing,
        "wrong_rows": n_wrong,
    }


def _read_damaged(make, path, answer):
    warnings.simplefilter("ignore")
    try:
        store = make(path)
        rows = store.get_many(KEYS[:1000])
        store.put_many(KEYS[:1000], ROWS[:1000])
        again = store.get_many(KEYS[:1000])
    except Exception as error:
        answer.send(f"raises {type(error).__name__}")
    else:
        n, m = (sum(row is not None for row in r) for r in (rows, again))
        answer.send(f"{n} of 1,000 rows read, {m} after writing them again")


def truncated(make):
    """Tell what happens when the largest file has lost its second half."""
    with directory() as path:
        store = make(path)
        write(store, n=1000)
        store.close()
        files = [p for p in Path(path).rglob("*") if p.is_file()]
        largest = max(files, key=lambda p: p.stat().st_blocks)
        os.truncate(largest, largest.stat().st_blocks * 512 // 2)
        receiver, sender = FORK.Pipe(duplex=False)
        reader = FORK.Process(target=_read_damaged, args=(make, path, sender))
        reader.start()
        sender.close()
        try:
            result = receiver.recv()
        except EOFError:
            reader.join()
            name = signal.Signals(-reader.exitcode).name
            result = f"process killed by {name}"
        reader.join()
        return {"half_of_file_lost": result}


def price_of_noting_use():
    """Time to note the use of N rows, in a table beside them and in the rows."""
    seconds = {}
    for table in ("uses", "rows"):
        with directory() as path:
            cache = EmbeddingCache(path)
            write(cache)
            cache.close()
            db = sqlite3.connect(next(Path(path).rglob("*.sqlite")))
            db.execute("PRAGMA synchronous = NORMAL")
            if table == "uses":
                db.execute("CREATE TABLE uses (id INTEGER PRIMARY KEY, used INTEGER)")
                db.execute("INSERT INTO uses SELECT id, id FROM rows")
            else:
                db.execute("ALTER TABLE rows ADD COLUMN used INTEGER")
                db.execute("UPDATE rows SET used = id")
            db.execute(f"CREATE INDEX by_age ON {table} (used)")
            db.commit()
            ids = db.execute("SELECT id FROM rows").fetchall()
            begin = time.perf_counter()
            query = f"UPDATE {table} SET used = {2 * N} WHERE id = ?"
            with db:
                db.executemany(query, ids)
            seconds[f"in_{table}_s"] = time.perf_counter() - begin
            db.close()
    return seconds


def medians(measurements):
    return {
        name: statistics.median(m[name] for m in measurements)
        for name in measurements[0]
    }


def measure():
    timed = {name: [] for name in STORES}
    noting = []
    for _ in range(REPEATS):  # Interleaved, so that a busy moment meets all alike.
        for name, make in STORES.items():
            timed[name].append({**write_and_read(make), **two_writers(make)})
        noting.append(price_of_noting_use())
    stores = {
        name: {**medians(timed[name]), **kills(make), **truncated(make)}
        for name, make in STORES.items()
    }
    return {
        "date": datetime.date.today().isoformat(),
        "seed": SEED,
        "cpu": cpu(),
        "n_cpus": os.cpu_count(),
        "load_average": os.getloadavg(),
        "repeats": REPEATS,
        "rows": [N, D],
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "sqlite": sqlite3.sqlite_version,
            "lmdb": version("lmdb"),
            "diskcache": version("diskcache"),
        },
        "stores": stores,
        "noting_10000_uses": medians(noting),
    }


def report(results):
    versions = ", ".join(f"{k} {v}" for k, v in results["versions"].items())
    lines = [
        "# Stores for embeddings",
        "",
        f"{results['date']}, {results['cpu']} ({results['n_cpus']} cores, load average "
        f"{results['load_average'][0]:.1f}), {versions}, seed {results['seed']}. "
        f"Rows of {D} float32, written {BATCH} at a time; medians of "
        f"{results['repeats']} runs, the stores in turn.",
        "",
        "| store | write, rows/s | two writers, rows/s | read 10,000 rows, s "
        "| size / rows | finished rows missing, wrong rows after "
        f"{KILLS} kills | half of the file lost |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, r in results["stores"].items():
        lines.append(
            f"| {name} | {r['write_rows_per_s']:,.0f} "
            f"| {r['two_writers_rows_per_s']:,.0f} | {r['read_10000_rows_s']:.3f} "
            f"| {r['bytes_per_byte_of_rows']:.2f} "
            f"| {r['missing_rows']} of {r['finished_rows']:,}, {r['wrong_rows']} "
            f"| {r['half_of_file_lost']} |"
        )
    chosen = results["stores"]["SQLite (EmbeddingCache)"]
    noting = results["noting_10000_uses"]
    ratio = N * ENCODING_SECONDS / chosen["read_10000_rows_s"]
    lines += [
        "",
        f"Reading is {ratio:,.0f} times faster than encoding at "
        f"{1000 * ENCODING_SECONDS:.0f} ms an image. SQLite is chosen: it needs no "
        "further package, grows and shrinks as needed (LMDB's size is fixed when it is "
        "opened, and it drops nothing when full), and damage to its file is an error "
        "that can be handled (LMDB reads through a memory map).",
        "",
        f"Noting the use of 10,000 rows takes {noting['in_uses_s']:.3f} s in a table "
        f"of its own and {noting['in_rows_s']:.3f} s in the rows, and makes every read "
        "wait for writers. So a bound drops the rows written first, not those used "
        "least recently.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    # No options, but --help and a mistaken word do not write results.
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    measured = measure()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "stores.json").write_text(json.dumps(measured, indent=2) + "\n")
    (RESULTS / "stores.md").write_text(report(measured))
    print(report(measured))
