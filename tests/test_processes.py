"""Many threads and many processes use one featurizer, one model and one pipeline."""

import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import joblib
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline

from skclip_icm import CLIPFeaturizer, ICMTransformer, ZeroShotClassifier
from skclip_icm._encoding.encoder import unload_models
from skclip_icm._encoding.stores import _MemoryStore

LONG = 300  # seconds after which a process is taken to hang


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (8, 40, 40, 3), np.uint8)


@pytest.fixture(scope="module")
def pipe(images):
    """Fitted; it holds nothing of the images but in the cache of this process."""
    steps = CLIPFeaturizer("demo", n_jobs=1), ICMTransformer(), LogisticRegression()
    return make_pipeline(*steps).fit(images, np.arange(8) % 2)


def in_threads(n_threads, work):
    """Call work(0), ..., all at the same moment, and return what they return."""
    barrier = threading.Barrier(n_threads)

    def started_together(number):
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(n_threads) as pool:
        return list(pool.map(started_together, range(n_threads)))


# Threads


def test_transform_from_many_threads(images):
    expected = CLIPFeaturizer("demo", cache=_MemoryStore()).transform(images)
    shared = CLIPFeaturizer("demo", cache=_MemoryStore())
    orders = [np.random.default_rng(i).permutation(len(images)) for i in range(6)]
    results = in_threads(6, lambda i: shared.transform(images[orders[i]]))
    for order, Z in zip(orders, results, strict=True):
        assert_array_equal(Z, expected[order])


def test_fit_transform_from_many_threads(images):
    """Each with pairs of its own, encoded when first asked for."""
    options = {"cache": _MemoryStore(), "interventions": ["invert", "color_jitter"]}
    expected = CLIPFeaturizer("demo", **options).fit_transform(images)
    expected = expected.counterparts
    shared = CLIPFeaturizer("demo", **options | {"cache": _MemoryStore()})

    def work(number):
        Z = shared.fit_transform(images[number:])
        return Z.counterparts

    for number, counterparts in enumerate(in_threads(4, work)):
        # Batches are of other images, and some versions of torch round otherwise then.
        assert_allclose(counterparts, expected[number:], atol=1e-6)


def test_threads_that_ask_for_the_same_counterparts(images):
    featurizer = CLIPFeaturizer("demo", cache=_MemoryStore(), interventions="invert")
    Z = featurizer.fit_transform(images)
    results = in_threads(4, lambda number: Z[number:].counterparts)
    for number, counterparts in enumerate(results):
        assert_array_equal(counterparts, Z.counterparts[number:])


def test_threads_load_one_model(images):
    unload_models()
    featurizers = [CLIPFeaturizer("demo", cache=_MemoryStore()) for _ in range(4)]

    def work(number):
        featurizers[number].transform(images[:2])
        return featurizers[number]._encoder()

    assert len(set(map(id, in_threads(4, work)))) == 1


def test_a_fitted_pipeline_serves_many_threads(pipe, images):
    expected = pipe.predict_proba(images)
    results = in_threads(6, lambda i: pipe.predict_proba(images[i : i + 1])[0])
    np.testing.assert_allclose(results, expected[:6], atol=1e-6)


def test_zero_shot_texts_and_images_in_threads(images):
    classifier = ZeroShotClassifier(
        CLIPFeaturizer("demo", cache=_MemoryStore()),
        ICMTransformer(),
        class_names=["cat", "dog"],
    )
    expected = clone(classifier).fit(images).predict_proba(images)
    for fitted in in_threads(3, lambda _: clone(classifier).fit(images)):
        assert_array_equal(fitted.predict_proba(images), expected)


# Processes


def _transform(pipe, images):
    """Run in a child; a cache of its own, so that the model has to run."""
    featurizer = clone(pipe[0]).set_params(cache=_MemoryStore())
    return featurizer.transform(images)


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_children_embed_as_their_parent_does(method, pipe, images):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip("not on this platform")
    expected = pipe[0].transform(images)  # so that the model has run in this process
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        found = pool.submit(_transform, pipe, images).result(LONG)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_while_threads_encode(pipe, images):
    """Locks that a thread holds at that moment are open in the child."""
    stop = threading.Event()

    def encode_on_and_on():
        while not stop.is_set():
            _transform(pipe, images)

    thread = threading.Thread(target=encode_on_and_on)
    thread.start()
    try:
        context = multiprocessing.get_context("fork")
        for _ in range(3):
            child = context.Process(target=_transform, args=(pipe, images))
            child.start()
            child.join(LONG)
            assert child.exitcode == 0
    finally:
        stop.set()
        thread.join()


FORK = """
import multiprocessing, sys, time
import numpy as np, torch
from skclip_icm import CLIPFeaturizer
from skclip_icm._encoding.encoder import unload_models

def work():
    assert np.allclose(featurizer.encode_text(texts), expected, atol=1e-5)
    unload_models()
    assert np.allclose(featurizer.encode_text(texts), expected, atol=1e-5)

torch.set_num_threads(2)
torch.ones(500, 500) @ torch.ones(500, 500)  # starts the threads of OpenMP
featurizer = CLIPFeaturizer("demo")
texts = [f"a photo of a cat, number {i}" for i in range(100)]
expected = featurizer.encode_text(texts)
time.sleep(1)  # the threads of the last call have ended by then
child = multiprocessing.get_context("fork").Process(target=work)
child.start()
child.join(300)  # it hangs, or it takes a second
child.kill()
sys.exit(child.exitcode != 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_after_openmp_has_run():
    """Its threads are not there in the child, where others wait for them for ever."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    run = subprocess.run(
        [sys.executable, "-c", FORK], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]


@pytest.mark.parametrize("backend", ["loky", "multiprocessing", "threading"])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_joblib_backends(backend, pipe, images):
    expected = pipe.predict(images)
    parts = np.array_split(images, 4)
    with joblib.parallel_config(backend, n_jobs=2):
        found = joblib.Parallel()(joblib.delayed(pipe.predict)(part) for part in parts)
    assert_array_equal(np.concatenate(found), expected)


def test_cross_validation_in_processes_is_that_in_one(pipe, images):
    y = np.arange(8) % 2
    unfitted = clone(pipe)
    one = cross_val_score(unfitted, images, y, cv=2, error_score="raise")
    two = cross_val_score(unfitted, images, y, cv=2, n_jobs=2, error_score="raise")
    assert_array_equal(one, two)
