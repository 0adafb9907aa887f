import contextlib
import copy
import functools
import hashlib
import multiprocessing
import os
import pickle
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from skclip_icm._encoding.stores import (
    EmbeddingCache,
    _MemoryStore,
    digests_beside,
    file_stamp,
    open_cache,
)

ROOT = Path(__file__).parents[1]
D = 64
posix_only = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")


def key(i):
    return hashlib.sha256(b"%d" % i).digest()


@functools.cache
def row(i, d=D):
    """Return the only right row for key(i)."""
    return np.random.default_rng(i).standard_normal(d).astype(np.float32)


def put(store, numbers, d=D):
    numbers = list(numbers)
    store.put_many([key(i) for i in numbers], np.stack([row(i, d) for i in numbers]))


def kept(store, numbers, d=D):
    """Return which of the numbers are kept, having checked every row."""
    numbers = list(numbers)
    rows = store.get_many([key(i) for i in numbers])
    assert len(rows) == len(numbers)
    found = [(i, r) for i, r in zip(numbers, rows, strict=True) if r is not None]
    for i, r in found:
        assert_array_equal(r, row(i, d))
    return [i for i, _ in found]


def database(directory):
    return Path(directory) / "embeddings-v2" / "rows-0.sqlite"


def run(code, *args):
    """Run `code` in a new process after importing this module's helpers."""
    code = "from test_cache import *\n" + textwrap.dedent(code)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, "-c", code, *map(str, args)]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=True)


@pytest.fixture(params=["disk", "bounded disk", "memory", "bounded memory"])
def store(request, tmp_path):
    if "memory" in request.param:
        return _MemoryStore(2**30 if "bounded" in request.param else None)
    return EmbeddingCache(tmp_path, 2**30 if "bounded" in request.param else None)


def test_rows_come_back_in_the_order_asked(store):
    put(store, range(1200))
    assert len(store) == 1200
    rows = store.get_many([key(7), key(9999), key(3), key(7)])
    assert rows[1] is None
    for r, i in zip([rows[0], rows[2], rows[3]], [7, 3, 7], strict=True):
        assert_array_equal(r, row(i))
        assert r.dtype == np.float32
    assert kept(store, range(1500)) == list(range(1200))
    assert store.get_many([]) == []
    store.put_many([], np.empty((0, D), dtype=np.float32))


def test_special_numbers_and_lengths_are_kept_bit_for_bit(store):
    numbers = np.array([[np.nan, -np.inf, -0.0, 1e-45, 3.4e38]], dtype=np.float32)
    store.put_many([key(0)], numbers)
    store.put_many([key(1)], np.empty((1, 0), dtype=np.float32))
    first, second = store.get_many([key(0), key(1)])
    assert first.tobytes() == numbers.tobytes()
    assert second.shape == (0,)


def test_a_row_put_again_replaces_the_first(store):
    put(store, range(3))
    store.put_many([key(1)], np.zeros((1, D)))
    assert not store.get_many([key(1)])[0].any()
    assert len(store) == 3


def test_kept_rows_are_not_changed_from_outside(store):
    rows = np.ones((2, D), dtype=np.float32)
    store.put_many([key(0), key(1)], rows)
    rows[:] = 0
    found = store.get_many([key(0)])[0]
    assert found.all()
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 5


def test_clear_forgets_all(store):
    put(store, range(500))
    before = store.nbytes
    store.clear()
    assert len(store) == 0
    assert store.nbytes < before
    assert kept(store, range(500)) == []


def test_number_of_rows_must_match_number_of_keys(store):
    with pytest.raises(ValueError, match=r"\(2, d\).*\(1, 3\)"):
        store.put_many([key(0), key(1)], np.ones((1, 3)))
    with pytest.raises(ValueError, match="one row for each key"):
        store.put_many([key(0)], np.ones(3))


def test_keys_are_bytes(store):
    with pytest.raises(TypeError, match="keys must be bytes.* got 'abc'"):
        store.put_many(["abc"], np.zeros((1, D)))


def test_open_cache_says_what_it_accepts(tmp_path, monkeypatch):
    assert open_cache(None) is open_cache(None)
    assert open_cache("memory") is open_cache("memory")
    assert open_cache("memory") is not open_cache(None)
    monkeypatch.chdir(tmp_path)
    disk = open_cache("kept")
    assert disk is open_cache(tmp_path / "kept")
    assert disk is open_cache(tmp_path / "other" / ".." / "kept")
    assert disk is not open_cache(tmp_path / "kept2")
    own = _MemoryStore()
    assert open_cache(own) is own
    for wrong in [True, 3, {}, b"kept"]:
        with pytest.raises(TypeError, match="get_many"):
            open_cache(wrong)
    with pytest.raises(ValueError, match="max_bytes"):
        EmbeddingCache(tmp_path, max_bytes=10)


def test_memory_drops_the_least_recently_used():
    store = _MemoryStore(max_bytes=100 * 512)
    put(store, range(100))
    kept(store, range(10))
    put(store, range(100, 190))
    assert kept(store, range(190)) == [*range(10), *range(100, 190)]
    assert store.nbytes <= store.max_bytes


def test_rows_outlive_the_process(tmp_path):
    run("put(EmbeddingCache(sys.argv[1]), range(300))", tmp_path)
    assert kept(open_cache(tmp_path), range(300)) == list(range(300))


def test_copies_and_pickles_hold_path_and_bound_only(tmp_path):
    from sklearn.base import BaseEstimator, clone  # Slow: not for the subprocesses.

    class Estimator(BaseEstimator):
        def __init__(self, cache=None):
            self.cache = cache

    cache = EmbeddingCache(tmp_path, max_bytes=2**21)
    put(cache, range(300))
    data = pickle.dumps(cache)
    assert len(data) < 300
    copies = [
        pickle.loads(data),
        copy.deepcopy(cache),
        clone(Estimator(cache)).cache,
    ]
    for other in copies:
        assert other is copies[0]
        assert (other.path, other.max_bytes) == (cache.path, cache.max_bytes)
        assert kept(other, range(300)) == list(range(300))


def test_unpickling_needs_no_directory(tmp_path):
    blocked = tmp_path / "file"
    cache = EmbeddingCache(blocked / "cache")
    blocked.touch()
    other = pickle.loads(pickle.dumps(cache))
    with pytest.raises(OSError, match="cannot be used"):
        open_cache(other)
    with pytest.warns(RuntimeWarning, match="cannot be used now"):
        assert other.get_many([key(0)]) == [None]
    put(other, range(3))


def _use(cache, numbers):
    put(cache, numbers)
    assert kept(cache, numbers) == list(numbers)


@posix_only
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_use_on_both_sides_of_a_fork(tmp_path):
    fork = multiprocessing.get_context("fork")
    cache = EmbeddingCache(tmp_path)
    put(cache, range(100))
    children = [
        fork.Process(target=_use, args=(cache, range(100 * i, 100 * i + 200)))
        for i in (1, 2, 3)
    ]
    for child in children:
        child.start()
        kept(cache, range(100))
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert kept(cache, range(500)) == list(range(500))


def test_threads_share_a_store(store):
    def work(first):
        for start_at in range(first, first + 200, 20):
            numbers = range(start_at, start_at + 20)
            put(store, numbers)
            done.append(kept(store, numbers) == list(numbers))

    done = []
    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 100, 200, 300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [True] * 40
    assert kept(store, range(500)) == list(range(500))


def _write_together(directory, first, barrier):
    warnings.simplefilter("error")
    barrier.wait()
    cache = open_cache(directory)
    for start_at in range(first, first + 300, 10):
        put(cache, range(start_at, start_at + 10))
        kept(cache, range(600))


@posix_only
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_processes_share_a_directory_from_its_first_moment(tmp_path):
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(4)
    workers = [
        fork.Process(target=_write_together, args=(tmp_path, first, barrier))
        for first in (0, 0, 150, 300)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert kept(open_cache(tmp_path), range(700)) == list(range(600))


def _write_without_end(directory, first, finished):
    for i in range(first, first + 100_000, 64):
        put(open_cache(directory), range(i, i + 64))
        finished.send(i)


@posix_only
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning", "error:Cache")
def test_kill_at_any_moment_loses_nothing_that_was_kept(tmp_path):
    fork = multiprocessing.get_context("fork")
    rng = random.Random(0)
    for attempt in range(15):
        receiver, sender = fork.Pipe(duplex=False)
        first = 100_000 * attempt
        args = tmp_path, first, sender
        writer = fork.Process(target=_write_without_end, args=args)
        writer.start()
        sender.close()
        time.sleep(rng.uniform(0.02, 0.2))
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        finished = []
        with contextlib.suppress(EOFError):
            while True:
                finished.append(receiver.recv())
        end = finished[-1] + 64 if finished else first
        cache = open_cache(tmp_path) if attempt % 2 else EmbeddingCache(tmp_path)
        assert kept(cache, range(first, end)) == list(range(first, end))
        # The batch that was being written is there as a whole or not at all.
        assert len(kept(cache, range(end, end + 64))) in (0, 64)
    assert len(cache) > 64


def test_a_damaged_row_is_a_miss_and_is_reported_once(tmp_path):
    cache = EmbeddingCache(tmp_path)
    put(cache, range(100))
    cache.close()
    data = database(tmp_path).read_bytes()
    for i in (20, 30):
        assert data.count(row(i).tobytes()) == 1
        data = data.replace(row(i).tobytes(), b"\1" + row(i).tobytes()[1:])
    # A right row under a wrong key is damage as well.
    other = key(40)[:-1] + bytes([key(40)[-1] ^ 1])
    data = data.replace(key(40), other)
    database(tmp_path).write_bytes(data)

    with pytest.warns(RuntimeWarning, match="damaged") as reported:
        found = kept(cache, range(100))
        assert cache.get_many([other]) == [None]
        assert kept(cache, range(100)) == found
    assert len(reported) == 1
    assert found == [i for i in range(100) if i not in (20, 30, 40)]
    put(cache, (20, 30, 40))
    assert kept(cache, range(100)) == list(range(100))


@pytest.mark.parametrize("truncate", [False, True])
def test_no_damage_to_the_file_gives_a_wrong_row(tmp_path, truncate):
    cache = EmbeddingCache(tmp_path / "whole")
    put(cache, range(400))
    cache.close()
    whole = bytearray(database(tmp_path / "whole").read_bytes())
    rng = random.Random(0)
    n_found = []
    for attempt in range(25):
        data = whole.copy()
        if truncate:
            del data[rng.randrange(len(data)) :]
        else:
            for _ in range(rng.choice([1, 30, 1000])):
                data[rng.randrange(len(data))] = rng.randrange(256)
            if attempt % 5 == 0:  # The pages that say where the others are.
                data[16384 * 2 : 16384 * 4] = rng.randbytes(16384 * 2)
        directory = tmp_path / str(attempt)
        database(directory).parent.mkdir(parents=True)
        database(directory).write_bytes(data)
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            cache = open_cache(directory)
            n_found.append(len(kept(cache, range(400))))
            # Twice, since damage may show only when a page is first written to.
            put(cache, range(400))
            put(cache, range(400))
            assert kept(cache, range(400)) == list(range(400))
        cache.close()
    assert min(n_found) == 0
    assert max(n_found) > 300 or truncate


def _make_text(path):
    path.write_text("notes of somebody\n" * 1000)


def _make_foreign(path):
    db = sqlite3.connect(path)
    with db:
        db.execute("CREATE TABLE rows (a, b)")
    db.close()


def _make_changed(path, change):
    EmbeddingCache(path.parents[1]).open()
    db = sqlite3.connect(path)
    db.executescript(change)
    db.close()


STOP = "CREATE TRIGGER stop BEFORE INSERT ON rows BEGIN SELECT RAISE(ABORT, 'no'); END"


@pytest.mark.parametrize(
    "make",
    [
        _make_text,
        _make_foreign,
        partial(_make_changed, change="DROP TABLE rows"),
        partial(_make_changed, change=STOP),
    ],
)
def test_what_is_no_database_of_ours_is_left_unchanged(tmp_path, make):
    database(tmp_path).parent.mkdir(parents=True)
    make(database(tmp_path))
    before = database(tmp_path).read_bytes()
    with pytest.warns(RuntimeWarning, match="rows-0.sqlite is damaged") as reported:
        cache = open_cache(tmp_path)
        put(cache, range(10))
    assert len(reported) == 1
    assert database(tmp_path).read_bytes() == before
    assert kept(cache, range(10)) == list(range(10))
    assert kept(EmbeddingCache(tmp_path), range(10)) == list(range(10))


def _meet_damage(directory, barrier):
    warnings.simplefilter("ignore")
    cache = EmbeddingCache(directory)
    barrier.wait()
    for _ in range(10):
        put(cache, range(200))
        kept(cache, range(200))
    assert kept(cache, range(200)) == list(range(200))


@posix_only
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("page", [0, 2])
def test_processes_that_find_damage_together_begin_one_database(tmp_path, page):
    cache = EmbeddingCache(tmp_path)
    put(cache, range(400))
    cache.close()
    with open(database(tmp_path), "r+b") as file:
        file.seek(16384 * page)
        file.write(random.Random(0).randbytes(16384 * 3))
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(4)
    args = tmp_path, barrier
    workers = [fork.Process(target=_meet_damage, args=args) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kept(open_cache(tmp_path), range(200)) == list(range(200))
    names = [p.name for p in database(tmp_path).parent.glob("*.sqlite")]
    assert sorted(names) == ["rows-0.sqlite", "rows-1.sqlite"]


def test_rows_of_another_format_are_left_alone(tmp_path):
    other = tmp_path / "embeddings-v0"
    other.mkdir()
    (other / "rows.sqlite").write_text("old")
    with pytest.warns(RuntimeWarning, match="embeddings-v0"):
        cache = open_cache(tmp_path)
    put(cache, range(10))
    assert kept(cache, range(10)) == list(range(10))
    assert (other / "rows.sqlite").read_text() == "old"


def test_a_bound_keeps_the_newest_rows(tmp_path):
    bound = 2 * 2**20
    cache = EmbeddingCache(tmp_path, max_bytes=bound)
    for first in range(0, 2000, 40):
        put(cache, range(first, first + 40), d=512)
        assert cache.nbytes <= bound
        assert database(tmp_path).stat().st_size <= bound
    found = kept(cache, range(2000), d=512)
    assert found == list(range(2000 - len(found), 2000))
    assert len(found) * 512 * 4 > 0.6 * bound
    log = database(tmp_path).with_name("rows-0.sqlite-wal")
    assert log.stat().st_size < 5 * 2**20


def test_more_rows_at_once_than_the_bound_allows(tmp_path):
    cache = EmbeddingCache(tmp_path, max_bytes=2**20)
    put(cache, range(2000), d=512)
    assert cache.nbytes <= 2**20
    assert 1999 in kept(cache, range(2000), d=512)


def test_a_lower_bound_gives_space_back(tmp_path):
    put(EmbeddingCache(tmp_path), range(2000), d=512)
    smaller = EmbeddingCache(tmp_path, max_bytes=2**20)
    put(smaller, range(2000, 2010), d=512)
    assert smaller.nbytes <= 2**20
    assert database(tmp_path).stat().st_size <= 2**20
    assert kept(smaller, range(2000, 2010), d=512) == list(range(2000, 2010))


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/cache cannot be used; give one that can"):
        open_cache(tmp_path / "file" / "cache")


@posix_only
def test_a_full_disk_costs_no_work(tmp_path):
    code = """
        import resource
        cache = open_cache(sys.argv[1])
        put(cache, range(64), d=1280)
        # What the kernel answers to writes beyond this size, a full disk does as well.
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
        with warnings.catch_warnings(record=True) as reported:
            warnings.simplefilter("always")
            for first in range(64, 1280, 64):
                put(cache, range(first, first + 64), d=1280)
        assert len(reported) == 1, reported
        assert "work goes on" in str(reported[0].message)
        assert set(range(64)) <= set(kept(cache, range(1280), d=1280))
    """
    run(code, tmp_path)
    put(open_cache(tmp_path), range(300, 1280), d=1280)
    found = kept(open_cache(tmp_path), range(1280), d=1280)
    assert set(found) >= {*range(64), *range(300, 1280)}


def test_rows_are_read_while_somebody_writes_for_long(tmp_path):
    """Such as a process that was stopped amid writing."""
    put(open_cache(tmp_path), range(10))
    open_cache(tmp_path).close()
    writer = sqlite3.connect(database(tmp_path), isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    try:
        cache = open_cache(tmp_path)  # which would fail after ten seconds
        assert kept(cache, range(20)) == list(range(10))
    finally:
        writer.close()


@posix_only
def test_a_read_only_directory_can_be_read():
    with tempfile.TemporaryDirectory() as parent:  # one that others may enter
        os.chmod(parent, 0o755)
        _read_only(Path(parent))


def _read_only(parent):
    directory = parent / "shared"
    cache = EmbeddingCache(directory)
    put(cache, range(100))
    cache.close()
    before = database(directory).read_bytes()
    code = """
        os.chdir(sys.argv[1])
        row(0)  # Loads what only root may read.
        if os.getuid() == 0:  # root may write anywhere
            os.setgroups([]), os.setgid(65534), os.setuid(65534)
        cache = open_cache("shared")
        with warnings.catch_warnings(record=True) as reported:
            warnings.simplefilter("always")
            assert kept(cache, range(200)) == list(range(100))
            assert not reported
            put(cache, range(200))
            put(cache, range(200))
            assert kept(cache, range(200)) == list(range(100))
        assert len(reported) == 1, reported
        assert "work goes on" in str(reported[0].message)
        try:
            open_cache("shared/below")
        except OSError as error:
            assert "shared/below cannot be used" in str(error)
        else:
            raise AssertionError
    """
    folder = database(directory).parent
    try:
        folder.chmod(0o555)
        directory.chmod(0o555)
        run(code, parent)
    finally:
        directory.chmod(0o755)
        folder.chmod(0o755)
    assert database(directory).read_bytes() == before


@posix_only
def test_a_directory_removed_in_between_is_made_again(tmp_path):
    cache = open_cache(tmp_path / "cache")
    put(cache, range(50))
    os.rename(tmp_path / "cache", tmp_path / "moved")
    assert kept(cache, range(50)) == []
    put(cache, range(10))
    assert kept(open_cache(tmp_path / "moved"), range(60)) == list(range(50))
    assert kept(EmbeddingCache(tmp_path / "cache"), range(60)) == list(range(10))


def _old_file(path, content=b"picture", age=100):
    path.write_bytes(content)
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def test_a_stamp_stays_until_the_file_changes(tmp_path):
    path = _old_file(tmp_path / "a.png")
    stamp = file_stamp(path)
    assert len(stamp) == 32
    assert stamp == file_stamp(str(path)) == file_stamp(tmp_path / "." / "a.png")
    stamps = {stamp, file_stamp(_old_file(tmp_path / "b.png"))}
    _old_file(path, b"PICTURE", age=50)
    stamps.add(file_stamp(path))
    os.replace(_old_file(tmp_path / "c.png", age=50), path)
    stamps.add(file_stamp(path))
    _old_file(path, b"longer picture", age=50)
    stamps.add(file_stamp(path))
    assert len(stamps) == 5


@posix_only
def test_a_change_that_keeps_size_and_time_changes_the_stamp(tmp_path):
    path = _old_file(tmp_path / "a.png")
    stamp, times = file_stamp(path), os.stat(path)
    time.sleep(0.02)
    path.write_bytes(b"PICTURE")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file_stamp(path) not in (stamp, None)


def test_what_may_change_unseen_has_no_stamp(tmp_path):
    young = tmp_path / "young.png"
    young.write_bytes(b"picture")
    assert file_stamp(young) is None
    assert file_stamp(_old_file(tmp_path / "future.png", age=-3600)) is None
    assert file_stamp(tmp_path) is None
    assert file_stamp(tmp_path / "missing.png") is None
    assert file_stamp("nul\0byte") is None
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo")
        assert file_stamp(tmp_path / "fifo") is None


def test_digests_of_files_are_kept_beside_any_store(store):
    beside = digests_beside(store)
    stamps = [key(i) for i in range(5)]
    digests = [key(100 + i) for i in range(5)]
    stamps[2] = None
    assert beside.get_digests(stamps) == [None] * 5
    beside.put_digests(stamps, digests)
    assert beside.get_digests(stamps) == [*digests[:2], None, *digests[3:]]
    found = beside.get_digests([key(4), None, key(50), key(4)])
    assert found == [digests[4], None, None, digests[4]]
    assert beside.get_digests([]) == []
    beside.put_digests([None], [key(0)])
