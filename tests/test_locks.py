"""A forked process can do what another thread was doing when it was forked.

In each test a thread of this process is held in the middle of something, under the
lock that guards it, and a child does the same thing from its start to its end.
"""

import io
import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from PIL import Image

from skclip_icm import CLIPFeaturizer
from skclip_icm._encoding import encoder as encoders
from skclip_icm._encoding.stores import EmbeddingCache, _MemoryStore, open_cache
from skclip_icm._images import decoding
from skclip_icm._locks import Flag, Lock
from skclip_icm.interventions import intervene
from skclip_icm.pairs import LazyCounterparts

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),
]
LONG = 120  # seconds after which a process is taken to hang


class Pause:
    """What holds one thread of one process, once."""

    def __init__(self):
        self.entered, self.leave = threading.Event(), threading.Event()
        self.held = None

    def __call__(self, *args):
        if threading.get_ident() == self.held:
            self.held = None
            self.entered.set()
            self.leave.wait(LONG)

    def run(self, work):
        self.held = threading.get_ident()
        work()


def in_child(work):
    """Run `work` in a forked process and return its exit code, or None if it hangs."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(LONG)
    child.kill()
    code = child.exitcode
    child.join()
    return code


def check_fork_in_the_middle(pause, work):
    thread = threading.Thread(target=pause.run, args=(work,))
    thread.start()
    try:
        assert pause.entered.wait(LONG)
        assert in_child(work) == 0
    finally:
        pause.leave.set()
        thread.join()


def test_loading_a_model(monkeypatch):
    pause, create = Pause(), encoders.create_model
    encoders.load_encoder("demo", None)  # imports what it needs
    monkeypatch.setattr(
        encoders, "create_model", lambda source: (pause(), create(source))[1]
    )
    encoders.unload_models()

    def load():
        encoder = encoders.load_encoder("demo", None)
        assert np.isfinite(encoder.encode_text(["a cat"])).all()

    check_fork_in_the_middle(pause, load)


def test_running_a_callable():
    pause = Pause()
    image = Image.new("RGB", (8, 8))

    def unchanged(image):
        pause()
        return image

    check_fork_in_the_middle(pause, lambda: intervene(image, unchanged))


def test_decoding_a_large_image(monkeypatch):
    monkeypatch.setattr(decoding, "LARGE_PIXELS", 50)
    pause, buffer = Pause(), io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    content = buffer.getvalue()
    check_fork_in_the_middle(pause, lambda: decoding.decode(content, resize=pause))


def test_decoding_an_image_that_is_shared(monkeypatch):
    pause, image = Pause(), Image.new("RGB", (8, 8))
    monkeypatch.setattr(image, "load", pause, raising=False)
    check_fork_in_the_middle(pause, lambda: decoding.digest(image))


def test_computing_counterparts():
    pause = Pause()

    def compute(rows):
        pause()
        return np.ones((len(rows), 1, 3), np.float32)

    lazy = LazyCounterparts(compute, (4, 1, 3))
    check_fork_in_the_middle(pause, lambda: lazy[np.arange(4)])


def test_embedding(monkeypatch, photographs):
    import torch

    pause, threads = Pause(), torch.get_num_threads
    monkeypatch.setattr(torch, "get_num_threads", lambda: (pause(), threads())[1])
    featurizer = CLIPFeaturizer("demo", cache=_MemoryStore()).fit(photographs)
    check_fork_in_the_middle(pause, lambda: featurizer.transform(photographs))


@pytest.mark.parametrize("kind", ["directory", "memory"])
def test_using_a_cache(kind, tmp_path):
    """A fork waits until no thread is in the middle of it."""
    cache = open_cache(tmp_path if kind == "directory" else "memory")
    stop = threading.Event()

    def use():
        for i in range(20):
            keys = [os.urandom(32) for _ in range(50)]
            rows = np.full((50, 64), i, dtype=np.float32)
            cache.put_many(keys, rows)
            assert all((row == i).all() for row in cache.get_many(keys))

    def use_on_and_on():
        while not stop.is_set():
            use()

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(use_on_and_on) for _ in range(2)]
        try:
            for _ in range(5):
                assert in_child(use) == 0
        finally:
            stop.set()
        for future in futures:  # which have opened new connections, after each fork
            future.result()
    cache.clear()
    if kind == "directory":
        cache.close()
        assert len(EmbeddingCache(tmp_path)) == 0  # and it is whole


def test_a_thread_that_forks_keeps_its_own_lock():
    lock = Lock()

    def enter_and_leave():
        with lock:
            pass

    def in_other_thread():
        # Here as in the parent, the forking thread is inside.
        thread = threading.Thread(target=enter_and_leave, daemon=True)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()

    with lock:
        assert in_child(in_other_thread) == 0
        assert in_child(enter_and_leave) == 0
    enter_and_leave()


def test_a_setting_is_restored_where_the_thread_that_held_it_is_gone():
    setting, pause = ["the user's"], Pause()
    write = partial(setting.__setitem__, 0)
    flag = Flag(lambda: setting[0], write, lambda value: "ours")

    def hold():
        with flag.held():
            assert setting == ["ours"]
            pause()

    def check():
        assert setting == ["the user's"]
        hold()
        assert setting == ["the user's"]

    def hold_and_fork():
        def check_inside():
            assert setting == ["ours"]  # the thread that forks is in the child, too

        with flag.held():
            assert in_child(check_inside) == 0

    thread = threading.Thread(target=pause.run, args=(hold,))
    thread.start()
    try:
        assert pause.entered.wait(LONG)
        assert in_child(check) == 0
        hold_and_fork()
        assert setting == ["ours"]
    finally:
        pause.leave.set()
        thread.join()
    assert setting == ["the user's"]
