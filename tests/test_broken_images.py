"""Thousands of broken images, and what they must not do to the good ones.

They are read in a process of their own, so that a crash or a hang is seen as such and
peak memory can be measured.
"""

import io
import json
import logging
import os
import resource
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from broken_images import (
    Corpus,
    _whole_files,
    encoded,
    make_corpus,
    png,
    png_chunk,
)
from PIL import Image

from skclip_icm import CLIPFeaturizer
from skclip_icm._encoding.encoder import Encoder, load_encoder
from skclip_icm._encoding.stores import _MemoryStore
from skclip_icm._images import decoding as images
from skclip_icm._images.decoding import ImageError, decode
from skclip_icm._images.pillow_state import IGNORE_PILLOW

ROOT = Path(__file__).parents[1]
MEBIBYTE = 2**20

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX paths")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def outcome(corpus):
    """What a new process found out; see `_read_all`."""
    text = json.dumps([[str(path) for path in paths] for paths in corpus])
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, __file__],
        input=text,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,  # a hang, not a slow machine
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_the_corpus_is_large_and_always_the_same(corpus):
    assert len(corpus.good) + len(corpus.broken) >= 2000
    one, other = (dict(_whole_files(np.random.default_rng(0))) for _ in range(2))
    assert one == other


def test_good_images_do_not_notice_broken_ones(outcome):
    assert outcome["good rows failed"] == 0
    assert outcome["good rows changed"] == 0


def test_rows_that_failed_are_nan_and_the_others_are_not(outcome):
    assert outcome["failed rows not NaN"] == outcome["other rows NaN"] == 0
    assert 2000 < outcome["n failed"]


def test_raising_and_marking_agree_on_every_image(outcome):
    assert outcome["verdicts that differ"] == []


def test_errors_name_row_path_and_remedy(outcome):
    assert outcome["unhelpful errors"] == []


def test_no_image_takes_long(outcome):
    assert outcome["slowest"][0] < 20, outcome["slowest"]


def test_memory_is_bounded(outcome):
    # One of the largest images that are allowed, in Pillow's four bytes a pixel, its
    # copy, and what is smaller beside it.
    allowed = 2 * 4 * images.MAX_PIXELS + 300 * MEBIBYTE
    assert outcome["peak"] < allowed, outcome["peak"]


def _read_all(corpus):
    """Read all images, with both policies; run in a process of its own.

    A cheap function of the pixels stands in for the model. Warnings are errors.
    """
    load_encoder("demo", None)
    Encoder.encode_images = _thinned
    logging.getLogger("skclip_icm").setLevel(logging.ERROR)
    warnings.simplefilter("error")
    before = _peak_bytes()

    options = {"normalize": False, "n_jobs": 2, "cache": _MemoryStore()}
    alone = CLIPFeaturizer("demo", **options).transform(corpus.good)
    options["cache"] = _MemoryStore()
    marking = CLIPFeaturizer("demo", on_error="nan", **options)
    paths = corpus.good + corpus.broken
    order = np.random.default_rng(0).permutation(len(paths))
    shuffled = marking.transform([paths[i] for i in order])
    rows = np.empty_like(shuffled)
    rows[order] = shuffled
    failed = set(order[marking.failed_].tolist())

    raising = CLIPFeaturizer("demo", **options)  # with the rows that are cached now
    differ, unhelpful, slowest = [], [], (0, "")
    for i, path in enumerate(paths):
        start = time.process_time()
        try:
            again = raising.transform([path])[0]
        except ImageError as error:
            text = str(error)
            helpful = error.row == 0 and text.startswith("row 0: '")
            if not (helpful and path[:100] in text and len(text) < 1000):
                unhelpful.append(text)
            same = i in failed
        else:
            same = i not in failed and np.array_equal(again, rows[i])
        if not same:
            differ.append(path)
        slowest = max(slowest, (time.process_time() - start, path))
    nan = np.isnan(rows)
    is_failed = np.isin(np.arange(len(paths)), list(failed))
    n_good = len(corpus.good)
    return {
        "n failed": len(failed),
        "good rows failed": int(is_failed[:n_good].sum()),
        "good rows changed": int((rows[:n_good] != alone).any(axis=1).sum()),
        "failed rows not NaN": int((~nan[is_failed].all(axis=1)).sum()),
        "other rows NaN": int(nan[~is_failed].any(axis=1).sum()),
        "verdicts that differ": differ,
        "unhelpful errors": unhelpful[:3],
        "slowest": slowest,
        "peak": _peak_bytes() - before,
    }


def _thinned(self, pixels):
    thinned = pixels.reshape(len(pixels), -1)[:, ::117][:, :1280].numpy()
    return (thinned + 1.0) / 256.0  # as of a model, nothing but zeros is never given


def _peak_bytes():
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def test_embeddings_are_those_of_a_run_without_broken_images(corpus):
    """The same with the real encoder, in this process, on some of the files."""
    good = corpus.good[::4]
    broken = corpus.broken[:: len(corpus.broken) // 60]
    options = {"on_error": "nan", "batch_size": 8}
    alone = CLIPFeaturizer("demo", cache=_MemoryStore(), **options)
    among = CLIPFeaturizer("demo", cache=_MemoryStore(), **options)
    expected = alone.transform(good)
    assert alone.failed_ == []
    # Broken ones first, last and in between, so that batches differ.
    mixed = broken[:20] + good[:9] + broken[20:40] + good[9:] + broken[40:]
    Z = among.transform(mixed)
    position = {path: row for row, path in enumerate(mixed)}
    np.testing.assert_array_equal(Z[[position[path] for path in good]], expected)
    assert 20 < len(among.failed_) <= len(broken)


def _warned_of():
    """Good files that Pillow warns of when it reads them, by format."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "x" * 30
    image = Image.new("RGB", (8, 4))
    jpeg = encoded(image, "JPEG", exif=exif)
    # The text is said to be longer than the file.
    jpeg = jpeg.replace(b"\0\0\0\x1f", b"\0\0\xff\xff")
    tiff = encoded(image, "TIFF", tiffinfo={305: "x" * 30})
    tiff = tiff.replace(
        struct.pack("<HHI", 305, 2, 31), struct.pack("<HHI", 305, 2, 9**9)
    )
    frames = png_chunk(b"acTL", struct.pack(">II", 0, 0))  # an animation without any
    rows = zlib.compress(bytes(4 * (1 + 3 * 8)))
    return {"JPEG": jpeg, "TIFF": tiff, "PNG": png(8, 4, data=rows, extra=frames)}


@pytest.mark.parametrize("image_format", ["JPEG", "TIFF", "PNG"])
def test_what_a_user_does_with_warnings_decides_nothing(image_format):
    """A damaged EXIF block that Pillow warns of may still say how to turn an image."""
    content = _warned_of()[image_format]
    with warnings.catch_warnings(record=True) as shown:
        warnings.resetwarnings()
        expected = np.asarray(decode(content))
    assert shown  # what is no error is for the user's filters to show or not
    for action in ("ignore", "error"):
        with warnings.catch_warnings():
            warnings.resetwarnings()
            warnings.simplefilter("ignore")
            opened = Image.open(io.BytesIO(content))
            warnings.simplefilter(action)
            filters = list(warnings.filters)
            for source in (content, opened):
                np.testing.assert_array_equal(decode(source), expected)
            assert warnings.filters == filters


def _reset():
    warnings.resetwarnings()
    warnings.simplefilter("error")


def _catch():
    with warnings.catch_warnings():
        warnings.simplefilter("error")


@pytest.mark.parametrize("change", [warnings.resetwarnings, _reset, _catch])
def test_no_image_is_lost_while_another_thread_changes_warnings(change):
    contents = [*_warned_of().values(), encoded(Image.new("RGB", (8, 4)), "PNG")]
    stop = threading.Event()

    def change_on_and_on():
        while not stop.is_set():
            change()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [decode(content).size for content in contents]
        thread = threading.Thread(target=change_on_and_on)
        interval = sys.getswitchinterval()
        thread.start()
        try:
            sys.setswitchinterval(1e-5)
            for _ in range(100):
                assert [decode(content).size for content in contents] == expected
        finally:
            sys.setswitchinterval(interval)
            stop.set()
            thread.join()
        assert IGNORE_PILLOW not in warnings.filters


@pytest.mark.parametrize("size", [(2, 600), (3000, 11)])
def test_a_strip_of_pixels_is_refused_before_it_is_enlarged(size):
    with pytest.raises(ImageError, match="row 7: .* 256 times as long"):
        decode(np.zeros((*size, 3), np.uint8), 7)
    assert decode(np.zeros((2, 512, 3), np.uint8)).size == (512, 2)


@pytest.mark.parametrize(
    "mode", ["L", "P", "1", "CMYK", "LA", "PA", "La", "RGBA", "I", "I;16", "F"]
)
def test_a_large_image_is_converted_in_bands_to_the_same_pixels(mode, monkeypatch):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (23, 17, 4), dtype=np.uint8)
    if mode in ("I", "I;16", "F"):
        values = pixels[..., 0].astype(float)
        dtypes = {"I": np.int32, "I;16": np.uint16, "F": np.float32}
        scale = 1 / 256 if mode == "F" else 257
        image = Image.fromarray((values * scale).astype(dtypes[mode]))
    else:
        image = Image.fromarray(pixels)
        image = image.convert("LA").convert(mode) if mode == "La" else image
        image = image if mode == "La" else image.convert(mode)
    if mode == "P":
        image.info["transparency"] = 3
    assert image.mode == mode
    whole = np.asarray(decode(image))
    monkeypatch.setattr(images, "_BAND_PIXELS", 40)
    np.testing.assert_array_equal(decode(image), whole)


def is_held(lock):
    def enter():
        entered = lock._inside.acquire(blocking=False)
        if entered:
            lock._inside.release()
        return entered

    with ThreadPoolExecutor(1) as pool:  # for this thread might enter once more
        return not pool.submit(enter).result()


def test_large_images_are_decoded_and_resized_one_at_a_time(monkeypatch):
    monkeypatch.setattr(images, "LARGE_PIXELS", 50)
    content = encoded(Image.new("RGB", (8, 8)), "PNG")
    at_once = []

    def resize(image):
        at_once.append(is_held(images._LARGE))
        return image.resize((4, 4))

    assert decode(content, resize=resize).size == (4, 4)
    assert decode(np.zeros((4, 4), np.uint8), resize=resize).size == (4, 4)
    assert at_once == [True, False]
    assert not is_held(images._LARGE)


if __name__ == "__main__":
    print(json.dumps(_read_all(Corpus(*json.load(sys.stdin)))))
