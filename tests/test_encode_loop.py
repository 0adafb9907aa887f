"""The encode loop: every image once, whatever the threads, processes and memory."""

import functools
import io
import logging
import os
import subprocess
import sys
import threading
import time
import types
from types import SimpleNamespace

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from skclip_icm import CLIPFeaturizer
from skclip_icm._encoding.encode_loop import embed
from skclip_icm._encoding.encoder import load_encoder
from skclip_icm._encoding.parallel_encode import (
    content_id,
    count_processes,
    count_threads,
)
from skclip_icm._encoding.progress import progress_bar
from skclip_icm._encoding.stores import open_cache
from skclip_icm._encoding.views import AS_IS, View, views_of
from skclip_icm._images.decoding import decode
from skclip_icm._images.inputs import ImageError


class FakeEncoder:
    """The mean colour of 4 x 4 images; remembers the sizes of its batches."""

    device = torch.device("cpu")
    fingerprint, n_features, image_size, max_batch_size = "fake", 3, (4, 4), None

    def __init__(self, most=None):
        self.most, self.sizes, self.lock = most, [], threading.Lock()

    def resize(self, image):
        return image.resize(self.image_size[::-1])

    def encode_images(self, pixels):
        with self.lock:
            self.sizes.append(len(pixels))
        if self.most is not None and len(pixels) > self.most:
            raise torch.OutOfMemoryError
        assert pixels.dtype == torch.uint8
        return pixels.float().mean(dim=(2, 3)).numpy()


class NoCache:
    def get_many(self, keys):
        return [None] * len(keys)

    def put_many(self, keys, rows):
        pass


class CountingCache(NoCache):
    def __init__(self):
        self.keys = []

    def put_many(self, keys, rows):
        self.keys += keys


def run(items, encoder=None, views=(AS_IS,), store=None, **options):
    options = {"batch_size": 4, "n_jobs": 1, "on_error": "raise", **options}
    progress = lambda n: progress_bar("test", n, verbose=False)  # noqa: E731
    encoder = FakeEncoder() if encoder is None else encoder
    store = NoCache() if store is None else store
    Z, failed, _ = embed(
        items, encoder, list(views), store, progress=progress, **options
    )
    return Z, failed


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (50, 4, 4, 3), np.uint8)


def test_rows_keep_their_order_whatever_the_batches_and_threads(images):
    expected = images.mean(axis=(1, 2))
    for batch_size in (1, 3, 50, 64):
        for n_jobs in (1, 2, 5):
            Z, failed = run(images, batch_size=batch_size, n_jobs=n_jobs)
            assert_allclose(Z[:, 0], expected, rtol=1e-5)
            assert failed == []


def test_equal_images_are_encoded_once_and_filled_in_everywhere(images):
    order = np.array([3, 1, 3, 3, 0, 1])
    encoder, store = FakeEncoder(), CountingCache()
    views = [AS_IS, View("flip", lambda image: image.transpose(0))]
    Z, _ = run(images[order], encoder, views, store)
    assert sum(encoder.sizes) == 3 * 2 == len(set(store.keys)) == len(store.keys)
    assert_allclose(Z[:, 0], images[order].mean(axis=(1, 2)), rtol=1e-5)


def test_size_that_fits_is_remembered_after_running_out_of_memory(images):
    encoder = FakeEncoder(most=5)
    Z, _ = run(images, encoder, batch_size=16)
    assert_allclose(Z[:, 0], images.mean(axis=(1, 2)), rtol=1e-5)
    assert encoder.sizes == [16, 8, 4, 4, 4, 4] + 8 * [4] + [2]
    run(images, encoder, batch_size=16)
    assert max(encoder.sizes[15:]) == 4  # and for the next call


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling create"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("[enforce fail] not enough memory: you tried to allocate 8 bytes"),
    ],
)
def test_every_kind_of_running_out_of_memory_halves_the_batch(images, error):
    class Full(FakeEncoder):
        def encode_images(self, pixels):
            if len(pixels) > 5:
                raise error
            return super().encode_images(pixels)

    Z, _ = run(images, Full(), batch_size=16)
    assert_allclose(Z[:, 0], images.mean(axis=(1, 2)), rtol=1e-5)


def test_another_error_of_the_model_is_not_taken_for_it(images):
    class Broken(FakeEncoder):
        def encode_images(self, pixels):
            self.sizes.append(len(pixels))
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    encoder = Broken()
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run(images, encoder)
    assert set(encoder.sizes) == {4}


@pytest.mark.parametrize("value", [np.nan, np.inf, 0, 1e-30, 1e30])
@pytest.mark.parametrize(
    ("numbers", "instead"),
    [
        ("float16", "Set dtype='bfloat16' or 'float32'"),
        ("bfloat16", "Set dtype='float32'"),
        ("float32", "The weights are damaged"),
    ],
)
def test_what_has_no_length_is_an_error_and_not_a_cached_row(
    images, value, numbers, instead
):
    class Overflowing(FakeEncoder):
        dtype = numbers

        def encode_images(self, pixels):
            embeddings = super().encode_images(pixels)
            embeddings[embeddings[:, 0] == images[7, :, :, 0].mean()] = value
            return embeddings

    store = CountingCache()
    message = f"row 7: the model gives NaN .* in {numbers} on cpu. {instead}"
    with pytest.raises(RuntimeError, match=message):
        run(images, Overflowing(), store=store)
    assert len(store.keys) == 4  # the batch before


def test_without_pinned_memory_batches_are_in_other_memory(images, monkeypatch):
    empty = torch.empty

    def without(*args, pin_memory=False, **kwargs):
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory")
        return empty(*args, **kwargs)

    class OnGPU(FakeEncoder):
        device = SimpleNamespace(type="cuda")

    monkeypatch.setattr(torch, "empty", without)
    Z, _ = run(images, OnGPU())
    assert_allclose(Z[:, 0], images.mean(axis=(1, 2)), rtol=1e-5)


def test_one_image_that_does_not_fit_is_an_error_and_the_rest_is_kept(images):
    encoder, store = FakeEncoder(most=0), CountingCache()
    with pytest.raises(torch.OutOfMemoryError):
        run(images, encoder, store=store)
    assert encoder.sizes[:3] == [4, 2, 1]
    assert store.keys == []


def test_all_before_a_bad_image_is_kept(images):
    items = [*images[:10], images[10].astype(int), *images[11:]]
    store = CountingCache()
    with pytest.raises(ImageError, match="row 10"):
        run(items, store=store)
    damaged = [png(image) for image in images]
    damaged[10] = damaged[10][:40]
    with pytest.raises(ImageError, match="row 10"):
        run(damaged, store=store)
    assert len(store.keys) >= 10


def test_a_file_that_changed_between_two_calls_is_encoded_again(images, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(png(images[0]))
    store = open_cache(tmp_path / "cache")
    for changed in (images[0], images[1]):
        path.write_bytes(png(changed))
        for age in (10, 9):  # seconds: old enough to be known by size and time
            Z, _ = run([path], store=store)
            assert_allclose(Z[0, 0], changed.mean(axis=(0, 1)), rtol=1e-5)
            os.utime(path, (time.time() - age,) * 2)


def test_a_file_that_changes_within_a_call_is_kept_by_what_was_read(images, tmp_path):
    path, store = tmp_path / "image.png", open_cache(tmp_path / "cache")
    path.write_bytes(png(images[0]))
    os.utime(path, (time.time() - 10,) * 2)

    class Late(FakeEncoder):
        def encode_images(self, pixels):
            path.write_bytes(png(images[1]))
            return super().encode_images(pixels)

    Z, _ = run([path], Late(), store=store)
    assert_allclose(Z[0, 0], images[0].mean(axis=(0, 1)), rtol=1e-5)
    Z, _ = run([path], store=store)
    assert_allclose(Z[0, 0], images[1].mean(axis=(0, 1)), rtol=1e-5)


_OPENED = []


def _note_opened(event, args):
    # The mode is None where the system is asked, by `os.open`.
    if event == "open" and args[1] is None and str(args[0]).endswith(".png"):
        _OPENED.append(str(args[0]))


@pytest.fixture
def opened():
    """Names of the image files that were opened, once for each time."""
    if not hasattr(_note_opened, "is_set"):
        sys.addaudithook(_note_opened)  # it stays as long as the process does
        _note_opened.is_set = True
    _OPENED.clear()
    return _OPENED


def files(images, folder, age=10):
    paths = [folder / f"{i:04}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        path.write_bytes(png(image))
        os.utime(path, (time.time() - age,) * 2)
    return paths


def test_each_file_is_opened_once_a_call_and_not_if_its_rows_are_kept(
    images, tmp_path, opened
):
    paths, store = files(images, tmp_path), open_cache(tmp_path / "cache")
    opened.clear()
    run(paths[:20], store=store)
    run(paths, views=[AS_IS, View("flip", lambda im: im.transpose(0))], store=store)
    assert sorted(opened) == sorted(map(str, [*paths[:20], *paths]))
    opened.clear()
    Z, _ = run(paths, store=store)
    assert opened == []
    assert_allclose(Z[:, 0], images.mean(axis=(1, 2)), rtol=1e-5)


def test_the_first_batch_is_encoded_before_the_last_file_is_read(
    images, tmp_path, opened
):
    shades = np.arange(4, dtype=np.uint8)[:, None, None, None, None]
    paths = files((images + shades).reshape(200, 4, 4, 3), tmp_path)
    opened.clear()
    at_first = []

    class First(FakeEncoder):
        def encode_images(self, pixels):
            at_first.append(len(opened))
            return super().encode_images(pixels)

    run(paths, First())
    assert at_first[0] < 100 and len(opened) == 200


def test_of_several_bad_images_the_first_is_named(images, tmp_path):
    items = [png(image) for image in images]
    items[30] = b"unreadable at once"
    items[7] = items[9] = items[3][:60]  # found when it is decoded, and equal
    for n_jobs in (1, 4):
        with pytest.raises(ImageError, match="row 7"):
            run(items, n_jobs=n_jobs)
        _, failed = run(items, n_jobs=n_jobs, on_error="nan")
        assert failed == [7, 9, 30]


def test_digests_of_files_outlive_rows_that_the_cache_drops(images, tmp_path, opened):
    paths, store = files(images, tmp_path), open_cache(None)
    store.clear()
    run(paths, store=store)
    store.put_many([b"%032d" % i for i in range(300)], np.ones((300, 450_000), "f4"))
    assert len(store) < 300  # all the rows from above are gone
    opened.clear()
    run(paths, store=store)
    assert len(opened) == 50  # once each, to be encoded
    opened.clear()
    run(paths, store=store)
    assert opened == []
    store.clear()


@pytest.mark.parametrize("on_error", ["raise", "nan"])
def test_rows_of_lost_counterparts_are_those_of_all_images(
    photographs, tmp_path, on_error
):
    paths = files(photographs, tmp_path)
    featurizer = CLIPFeaturizer("demo", on_error=on_error, cache=NoCache())
    Z = featurizer.fit_transform(paths)
    paths[4].unlink()
    if on_error == "raise":
        with pytest.raises(ImageError, match="row 4: .*0004.png"):
            _ = Z[[5, 4]].counterparts
    else:
        assert featurizer.failed_ == []
        assert np.isnan(Z[[5, 4]].counterparts[1]).all()
        assert featurizer.failed_ == [4]


# Callables: their embeddings are those of what they make, whatever they are


class Shift:
    """Adds `by` to all pixels; its state may change between two calls."""

    def __init__(self, by):
        self.by = by

    def __call__(self, image):
        return np.asarray(image) + np.uint8(self.by)

    def method(self, image):
        return self(image)


def changed_attribute(shift):
    def function(image):
        return np.asarray(image) + np.uint8(function.by)

    function.by = shift.by
    yield function
    function.by = 2
    yield function


def renamed_parameter(shift):
    def function(image, other=None):
        return np.asarray(image) + np.uint8(1 if other is None else 2)

    yield function

    def function(image, rng=None):
        return np.asarray(image) + np.uint8(1 if rng is None else 2)

    yield function


def wrapped_library_function(shift):
    for by in (1, 2):

        @functools.wraps(np.asarray)
        def function(image, by=by):
            return np.asarray(image) + np.uint8(by)

        yield function


def module_named_like_one_of_the_library(shift):
    for by in (1, 2):
        module = types.ModuleType("statistics")
        code = f"def function(image): return numpy.asarray(image) + numpy.uint8({by})"
        exec("import numpy\n" + code, vars(module))
        yield module.function


def same_object_with_other_state(make):
    def pair(shift):
        function = make(shift)
        yield function
        shift.by = 2
        yield function

    return pair


@pytest.mark.parametrize(
    "pair",
    [
        same_object_with_other_state(lambda shift: shift),
        same_object_with_other_state(lambda shift: shift.method),
        same_object_with_other_state(lambda shift: lambda image: shift(image)),
        same_object_with_other_state(lambda shift: functools.partial(shift)),
        changed_attribute,
        renamed_parameter,
        wrapped_library_function,
        module_named_like_one_of_the_library,
    ],
)
def test_callables_that_make_other_pixels_have_other_embeddings(pair, images):
    images = images // 2  # so that nothing overflows
    store = open_cache("memory")
    for by, function in enumerate(pair(Shift(1)), start=1):
        Z, _ = run(images, views=views_of([function], 1, 0), store=store)
        assert_allclose(Z[:, 0], images.mean(axis=(1, 2)) + by, rtol=1e-5)
    store.clear()


def test_equal_pixels_are_encoded_once_whatever_made_them(images):
    encoder, store = FakeEncoder(), open_cache("memory")
    run(images, encoder, views_of([Shift(0), lambda image: image], 2, 0), store)
    encoder.sizes.clear()
    run(images, encoder, views_of(lambda image: image.copy(), 1, 7), store)
    run(images, encoder, store=store)  # as they are
    assert encoder.sizes == []
    store.clear()


def test_a_cache_key_saves_the_rendering(images, tmp_path):
    calls = []

    def shift(image):
        calls.append(image)
        return np.asarray(image) // 2

    shift.cache_key = "shift-1"
    store = open_cache(tmp_path)
    for _ in range(2):
        run(images, views=views_of(shift, 1, 0), store=store)
        assert len(calls) == 50
    shift.cache_key = "shift-2"
    run(images, views=views_of(shift, 1, 0), store=store)
    assert len(calls) == 100


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_torch_keeps_its_number_of_threads(images):
    def available():
        with_others = []
        thread = threading.Thread(target=lambda: with_others.append(count()))
        thread.start()
        thread.join()
        return count(), *with_others

    count, before = torch.get_num_threads, torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        run(images, batch_size=2, n_jobs=4)
        run(images, batch_size=2, n_jobs=2)
        assert available() == (4, 4)
    finally:
        torch.set_num_threads(before)


# Decoding at reduced size


@pytest.mark.parametrize("size", [(1200, 900), (900, 2000), (4000, 896), (3600, 3000)])
@pytest.mark.parametrize("rotated", [False, True])
def test_reduced_jpeg_keeps_twice_what_the_model_sees(size, rotated):
    encoder = load_encoder("demo", None)
    content = jpeg(size, orientation=6 if rotated else 1)
    exact, reduced = decode(content), decode(content, target=encoder.image_size)
    assert min(reduced.size) >= 2 * 224
    assert reduced.size[0] < exact.size[0] and reduced.size[1] < exact.size[1]
    ratios = np.array(exact.size) / reduced.size
    assert_allclose(ratios[0], ratios[1], rtol=0.01)
    pixels = [np.asarray(encoder.resize(im)).astype(int) for im in (exact, reduced)]
    assert np.abs(pixels[0] - pixels[1]).mean() < 1


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_reduced_jpeg_suits_every_way_of_resizing(mode):
    from open_clip.transform import PreprocessCfg, image_transform_v2

    preprocess = PreprocessCfg(size=224, resize_mode=mode)
    steps = image_transform_v2(preprocess, is_train=False).transforms[:-3]
    content = jpeg((2000, 1500))
    sized = []
    for image in (decode(content), decode(content, target=(224, 224))):
        for step in steps:
            image = step(image)
        sized.append(np.asarray(image).astype(int))
    assert sized[0].shape == sized[1].shape == (224, 224, 3)
    assert np.abs(sized[0] - sized[1]).mean() < 1


def test_content_id_differs_only_where_decoding_can():
    target = (224, 224)
    for size, differs in [((896, 896), True), ((2000, 895), False), ((9, 9), False)]:
        content = jpeg(size)
        assert (content_id(content) != content_id(content, target=target)) == differs
    for content in (png(np.zeros((1000, 1000, 3), np.uint8)), np.zeros((999, 999))):
        assert content_id(content) == content_id(content, target=target)
    # What cannot be seen to be small counts as large.
    damaged = jpeg((9, 9))[:20]
    assert content_id(damaged) != content_id(damaged, target=target)


def jpeg(size, orientation=1):
    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(coarse).resize(size, Image.BICUBIC)
    image.save(buffer, "JPEG", quality=95, exif=exif)
    return buffer.getvalue()


# joblib's backends


def test_what_joblib_is_configured_for_is_used(monkeypatch):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 7)
    assert (count_processes(None), count_threads(None)) == (1, 7)
    assert (count_processes(2), count_threads(2)) == (1, 2)
    with joblib.parallel_config(n_jobs=3):
        assert (count_processes(None), count_threads(None)) == (1, 3)
        assert count_threads(2) == 2
    with joblib.parallel_config("threading", n_jobs=3):
        assert (count_processes(None), count_threads(None)) == (1, 3)
    with joblib.parallel_config("loky", n_jobs=3):
        assert (count_processes(None), count_processes(2)) == (3, 2)
    with joblib.parallel_config("multiprocessing", n_jobs=3):
        assert count_processes(None) == 1  # it forks
    with joblib.parallel_config("sequential"):
        assert (count_processes(2), count_threads(2)) == (1, 1)


def test_worker_processes_give_the_same_embeddings(photographs, forward_rows):
    featurizer = CLIPFeaturizer(
        "demo", cache=NoCache(), batch_size=1, interventions="invert"
    )
    X = np.concatenate([photographs, photographs[:2]])
    expected = featurizer.fit_transform(X)
    expected_counterparts = expected.counterparts
    with joblib.parallel_config("threading", n_jobs=2):
        in_threads = featurizer.fit_transform(X)
    assert_allclose(in_threads, np.asarray(expected), atol=1e-5)
    before = forward_rows()
    assert before == 6 + 6 + 6
    cache = CountingCache()
    featurizer.set_params(cache=cache)
    with joblib.parallel_config("loky", n_jobs=2):
        in_processes = featurizer.fit_transform(X)
        counterparts = in_processes.counterparts
    assert_allclose(in_processes, np.asarray(expected), atol=1e-5)
    assert_allclose(counterparts, expected_counterparts, atol=1e-5)
    assert len(cache.keys) == len(set(cache.keys)) == 12  # each row and view once
    assert forward_rows() == before  # none in this process


def test_worker_processes_on_bad_images(photographs, tmp_path, caplog):
    content = [png(image) for image in photographs]
    content[3] = content[3][:60]
    cache = CountingCache()
    featurizer = CLIPFeaturizer("demo", batch_size=2, cache=cache, on_error="nan")
    with joblib.parallel_config("loky", n_jobs=2):
        with caplog.at_level(logging.WARNING, logger="skclip_icm"):
            Z = featurizer.transform(content)
        assert featurizer.failed_ == [3]
        assert_array_equal(np.isnan(Z).any(axis=1), np.arange(6) == 3)
        assert "row 3" in caplog.text
        cache.keys.clear()
        with pytest.raises(ImageError, match="row 3"):
            featurizer.set_params(on_error="raise").transform(content)
    assert len(cache.keys) >= 2


def test_dask_workers(photographs):
    distributed = pytest.importorskip("distributed")
    featurizer = CLIPFeaturizer("demo", cache=NoCache(), batch_size=2)
    expected = featurizer.transform(photographs)
    before = torch.get_num_threads()
    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    )
    with cluster, distributed.Client(cluster), joblib.parallel_config("dask"):
        assert_allclose(featurizer.transform(photographs), expected, atol=1e-5)
    assert torch.get_num_threads() == before


def test_workers_of_a_search_start_no_processes():
    with joblib.parallel_config("loky", n_jobs=2):
        found = joblib.Parallel()(joblib.delayed(_counts)() for _ in range(2))
    assert found == [1, 1]


def _counts():
    return count_processes(2)


# Memory

MEASURED = """
import tracemalloc
import numpy as np
from test_encode_loop import FakeEncoder, run

images = np.random.default_rng(0).integers(0, 256, (8_000, 4, 4, 3), np.uint8)
encoder = FakeEncoder()
run(images[:100], encoder)
peaks = []
for n in (2_000, 8_000):
    tracemalloc.start()
    Z, _ = run(images[:n], encoder, batch_size=64, n_jobs=2)
    peaks.append(tracemalloc.get_traced_memory()[1] - Z.nbytes)
    tracemalloc.stop()
print((peaks[1] - peaks[0]) / 6_000)
"""


@pytest.mark.slow
def test_memory_beyond_the_result_is_a_digest_for_each_image():
    here = os.path.dirname(__file__)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([here, *sys.path])}
    run = subprocess.run(
        [sys.executable, "-c", MEASURED], env=env, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    # 32 bytes in a Python object, in a list and for a while in a dict.
    assert float(run.stdout) < 400


# GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
def test_gpu_gives_what_the_cpu_gives(photographs):
    on_cpu, on_gpu = (
        CLIPFeaturizer("demo", device=device, cache=NoCache(), batch_size=2)
        for device in ("cpu", "cuda")
    )
    Z = on_gpu.transform(photographs)
    assert_allclose(Z, on_cpu.transform(photographs), atol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
def test_batches_for_a_gpu_are_pinned(images):
    pinned = []

    class OnGPU(FakeEncoder):
        device = torch.device("cuda:0")

        def encode_images(self, pixels):
            pinned.append(pixels.is_pinned())
            return super().encode_images(pixels)

    run(images, OnGPU())
    assert all(pinned)


def test_cache_of_this_process_is_asked_first(photographs, forward_rows):
    featurizer = CLIPFeaturizer("demo", batch_size=2)
    Z = featurizer.transform(photographs)
    assert forward_rows() == 6
    with joblib.parallel_config("loky", n_jobs=2):
        assert_array_equal(featurizer.transform(photographs), Z)
    assert open_cache(None).nbytes > 0
