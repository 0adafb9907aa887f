"""Kills, full disks, lack of memory and company: no finished row is lost or wrong.

Processes start by forking a server that has imported all that they need, so that many
of them can be killed. A cheap function of the pixels stands in for the model; it logs
what it computes, past any buffer.
"""

import contextlib
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from skclip_icm import CLIPFeaturizer
from skclip_icm._encoding.stores import EmbeddingCache

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="needs POSIX"),
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),
]
D = 24
BATCH = 8


def picture(number):
    """Return a small image that tells its number, as pixels."""
    return np.full((4, 4, 3), list(number.to_bytes(3, "big")), dtype=np.uint8)


def embedding(number):
    """Return its only right embedding."""
    return np.random.default_rng(number).standard_normal(D).astype(np.float32)


class Stub:
    """Looks like an `Encoder`; `log` is a file that gets a line for each batch."""

    fingerprint, n_features, batch_size, image_size = "stub", D, BATCH, (4, 4)
    device, max_batch_size = SimpleNamespace(type="cpu"), None

    def __init__(self, log, before=None):
        self.log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.before = before

    def resize(self, image):
        return image.resize((4, 4))

    def encode_images(self, batch):
        first = batch[:, :, 0, 0].numpy().astype(int)
        numbers = first @ [2**16, 2**8, 1]
        os.write(self.log, f"{' '.join(map(str, numbers))}\n".encode())
        if self.before is not None:
            self.before(numbers)
        return np.stack([embedding(int(number)) for number in numbers])


class Stubbed(CLIPFeaturizer):
    """A featurizer whose model is the stub."""

    def _encoder(self):
        return self.stub


def encode(numbers, cache, log, before=None):
    """Embed the images of some numbers and check every row."""
    featurizer = Stubbed(cache=cache, normalize=False, n_jobs=2, interventions=None)
    featurizer.stub = Stub(log, before)
    Z = featurizer.transform([picture(number) for number in numbers])
    assert_array_equal(Z, np.stack([embedding(number) for number in numbers]))


def computed(log):
    """Read the batches that a log tells of, as lists of numbers."""
    lines = Path(log).read_text().splitlines() if Path(log).exists() else []
    return [[int(number) for number in line.split()] for line in lines]


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", __name__])
    with pytest.MonkeyPatch.context() as patch:
        # The server has, before Python 3.13, no other way to find this module.
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        forkserver.ensure_running()
    return context


def _encode_after_telling(ready, *arguments):
    ready.send(True)
    # At least 0.15 s for all batches, so that most kills come before the end.
    encode(*arguments, before=lambda numbers: time.sleep(0.004))


def test_sixty_kills_lose_no_finished_row(processes, tmp_path):
    rng = random.Random(0)
    finished, n_killed_at_work = set(), 0
    for attempt in range(60):
        numbers = range(40 * attempt, 40 * attempt + 300)
        log = tmp_path / f"log{attempt}"
        receiver, sender = processes.Pipe(duplex=False)
        child = processes.Process(
            target=_encode_after_telling,
            args=(sender, numbers, tmp_path / "cache", log),
        )
        child.start()
        sender.close()
        with contextlib.suppress(EOFError):
            receiver.recv()
        # Often while rows are written, at times before the first or after the last.
        patience = time.monotonic() + 30
        if attempt % 6:
            while not log.exists() and child.is_alive():
                assert time.monotonic() < patience
                time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.1))
        child.kill()
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        batches = computed(log)
        n_killed_at_work += bool(batches) and child.exitcode != 0
        for batch in batches:
            assert not finished.intersection(batch), "a finished row, computed again"
        # A batch is kept before the fourth one after it begins.
        for batch in sorted(batches)[: None if child.exitcode == 0 else -4]:
            finished.update(batch)
    assert n_killed_at_work >= 10

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no damage to speak of
        encode(range(40 * 60 + 300), tmp_path / "cache", tmp_path / "last")
        assert not finished.intersection(sum(computed(tmp_path / "last"), []))
        encode(range(40 * 60 + 300), tmp_path / "cache", tmp_path / "none")
    assert computed(tmp_path / "none") == []


def test_processes_on_one_cache(processes, tmp_path):
    for n_processes in (2, 4):
        cache = tmp_path / f"cache{n_processes}"
        children = [
            processes.Process(
                target=encode,
                args=(range(100 * i, 100 * i + 400), cache, tmp_path / f"log{i}"),
            )
            for i in range(n_processes)
        ]
        for child in children:
            child.start()
        for child in children:
            child.join()
            assert child.exitcode == 0
        total = 100 * n_processes + 300
        encode(range(total), cache, tmp_path / f"after{n_processes}")
        assert computed(tmp_path / f"after{n_processes}") == []


# Lack of memory


class Greedy:
    """Takes more memory with each batch, and never gives it back."""

    def __init__(self):
        self.taken = []

    def __call__(self, numbers):
        self.taken.append(np.ones(2**26, dtype=np.uint8))


def _encode_until_memory_is_out(numbers, cache, log):
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf(
        "SC_PAGE_SIZE"
    )
    resource.setrlimit(resource.RLIMIT_AS, (used + 12 * 2**26,) * 2)
    try:
        encode(numbers, cache, log, Greedy())
    except MemoryError:
        os._exit(7)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_out_of_memory_in_the_middle(processes, tmp_path):
    arguments = range(400), tmp_path / "cache", tmp_path / "log"
    child = processes.Process(target=_encode_until_memory_is_out, args=arguments)
    child.start()
    child.join()
    assert child.exitcode == 7
    # Batches that did not fit were tried again in halves, so the last ones failed.
    whole = [batch for batch in computed(tmp_path / "log") if len(batch) == BATCH]
    finished = set(sum(sorted(whole)[:-4], []))
    assert len(finished) >= BATCH
    encode(range(400), tmp_path / "cache", tmp_path / "rest")
    assert not finished.intersection(sum(computed(tmp_path / "rest"), []))


def test_a_batch_that_is_too_large_is_halved(tmp_path):
    def at_most_three(numbers):
        if len(numbers) > 3:
            raise MemoryError

    encode(range(50), tmp_path / "cache", tmp_path / "log", at_most_three)
    encode(range(50), tmp_path / "cache", tmp_path / "none")
    assert computed(tmp_path / "none") == []


def test_no_memory_for_a_single_image_keeps_what_is_finished(tmp_path):
    def not_the_20th(numbers):
        if 20 in numbers:
            raise MemoryError

    arguments = range(50), tmp_path / "cache"
    with pytest.raises(MemoryError):
        encode(*arguments, tmp_path / "log", not_the_20th)
    encode(*arguments, tmp_path / "rest")
    assert sorted(sum(computed(tmp_path / "rest"), [])) == list(range(16, 50))


# The disk


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["-t", "tmpfs", "-o", "size=2m", "none", str(disk)]
    if shutil.which("mount") is None or os.getuid() != 0:
        pytest.skip("mounting needs root")
    if subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_disk_that_becomes_full_and_empty_again(small_disk, tmp_path):
    cache = EmbeddingCache(small_disk / "cache")
    encode(range(200), cache, tmp_path / "first")
    filling = small_disk / "filling"
    with contextlib.suppress(OSError), open(filling, "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    with pytest.warns(RuntimeWarning, match="work goes on without"):
        encode(range(3000), cache, tmp_path / "full")
    assert not set(range(200)).intersection(sum(computed(tmp_path / "full"), []))
    cache.close()

    filling.unlink()
    reopened = EmbeddingCache(small_disk / "cache")
    encode(range(300), reopened, tmp_path / "again")
    assert not set(range(200)).intersection(sum(computed(tmp_path / "again"), []))
    encode(range(300), reopened, tmp_path / "none")
    assert computed(tmp_path / "none") == []
    reopened.close()


def _encode_as_nobody(log, cache):
    if os.getuid() == 0:  # root may write anywhere
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    with warnings.catch_warnings(record=True) as reported:
        warnings.simplefilter("always")
        encode(range(300), cache, log)
    texts = [str(w.message) for w in reported]
    assert len(texts) == 1 and "work goes on" in texts[0], texts


def test_a_cache_of_somebody_else_is_read_and_not_written(processes):
    with tempfile.TemporaryDirectory() as directory:
        directory = Path(directory)
        directory.chmod(0o755)
        cache = EmbeddingCache(directory / "cache")
        encode(range(200), cache, directory / "first")
        cache.close()
        folder = directory / "cache" / "embeddings-v2"
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        log = directory / "log"
        log.touch()
        log.chmod(0o666)
        for path in (folder, folder.parent):
            path.chmod(0o555)
        arguments = log, directory / "cache"
        child = processes.Process(target=_encode_as_nobody, args=arguments)
        child.start()
        child.join()
        for path in (folder.parent, folder):
            path.chmod(0o755)
        assert child.exitcode == 0
        assert sorted(sum(computed(log), [])) == list(range(200, 300))
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_store_that_fails_on_reading_is_left_out(tmp_path):
    """A store of the user's own may forget rows, and does not change results."""
    forgetful = SimpleNamespace(
        get_many=lambda keys: [None] * len(keys), put_many=lambda keys, rows: None
    )
    encode(range(30), forgetful, tmp_path / "log")
    encode(range(30), forgetful, tmp_path / "log")
    assert sorted(sum(computed(tmp_path / "log"), [])) == sorted([*range(30)] * 2)
