"""Lanes, memory that runs out and comes back, and a GPU that is played."""

import threading
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from skclip_icm import CLIPFeaturizer  # noqa: E402
from skclip_icm._encoding import lanes  # noqa: E402
from skclip_icm._encoding.lanes import encode_batch, share, start_lanes  # noqa: E402
from skclip_icm._encoding.stores import _MemoryStore  # noqa: E402
from skclip_icm._encoding.torch_state import full_float32  # noqa: E402
from skclip_icm._encoding.torch_tower import TorchTower  # noqa: E402

CPU = torch.device("cpu")


class Memory:
    """An encoder on a device that takes `most` images at a time."""

    device, dtype = CPU, "float32"

    def __init__(self, most):
        self.most, self.sizes = most, []

    def encode_images(self, pixels):
        self.sizes.append(len(pixels))
        if len(pixels) > self.most:
            raise torch.OutOfMemoryError
        return pixels.float().mean(dim=(2, 3)).numpy() + 1


def encode(encoder, n_images=16):
    images = list(np.zeros((n_images, 4, 4, 3), np.uint8))
    _, found = encode_batch([(i, 0) for i in range(n_images)], images, encoder)
    assert found.shape == (n_images, 3)


def test_batches_grow_back_when_there_is_memory_again():
    encoder = Memory(most=4)
    encode(encoder)
    assert encoder.sizes == [16, 8, 4, 4, 4, 4]
    encoder.most = 100
    for _ in range(60):
        encode(encoder)
    encoder.sizes.clear()
    encode(encoder)
    assert encoder.sizes == [16]


def test_memory_that_stays_short_is_rarely_asked_for_again():
    encoder = Memory(most=4)
    for _ in range(200):
        encode(encoder)
    assert sum(size > 4 for size in encoder.sizes) <= 8


def test_one_image_that_is_too_much_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        encode(Memory(most=0))


def test_nan_names_the_row():
    encoder = Memory(most=9)
    encoder.encode_images = lambda pixels: np.full((len(pixels), 3), np.nan)
    with pytest.raises(RuntimeError, match="row 0: the model gives NaN.*float32"):
        encode(encoder)


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_nan_of_a_sound_image_is_an_error_and_not_kept(
    backend, photographs, monkeypatch
):
    store = _MemoryStore()
    featurizer = CLIPFeaturizer(
        "demo", backend=backend, cache=store, on_error="nan", batch_size=2, n_jobs=1
    )
    tower = featurizer._encoder()._tower
    encode, calls = tower.encode, []

    def nan_in_the_second_batch(pixels):
        calls.append(len(pixels))
        found = encode(pixels)
        found[:, 0] = np.inf if len(calls) == 2 else found[:, 0]
        return found

    with monkeypatch.context() as patch:
        patch.setattr(tower, "encode", nan_in_the_second_batch)
        with pytest.raises(RuntimeError, match="row 2: the model gives NaN or infin"):
            featurizer.transform(photographs)
    assert all(np.isfinite(row).all() for row in store._rows.values())
    assert len(store) < len(photographs)
    assert np.isfinite(featurizer.transform(photographs)).all()


def test_lanes_share_the_threads_and_leave_torchs_number():
    total = torch.get_num_threads()
    pool, n_lanes = start_lanes(Memory(9), 100, total)
    assert pool.submit(share).result() == (n_lanes, total // n_lanes)
    pool.shutdown()
    pool, n_lanes = start_lanes(Memory(9), 1, total)
    assert n_lanes == 1 and pool.submit(share).result() == (1, total)
    pool.shutdown()
    assert share() == (1, total) and torch.get_num_threads() == total


def test_lanes_that_cannot_start_end(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    before, start = threading.active_count(), threading.Thread.start

    def third_fails(self):
        if threading.active_count() >= before + 2:
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", third_fails)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        start_lanes(Memory(9), 100, 4)
    assert threading.active_count() == before


def test_float32_is_not_shortened_and_torchs_flags_stay():
    def flags():
        allowed = torch.backends.cudnn.allow_tf32
        return torch.get_float32_matmul_precision(), allowed

    before = flags()
    torch.set_float32_matmul_precision("high")
    try:
        chosen = flags()
        with full_float32("cuda"):
            with full_float32("cuda"):  # as another thread would
                pass
            inside = flags()
        assert flags() == chosen
        with full_float32("cpu"):
            assert flags() == ("highest", chosen[1])
        assert inside == ("highest", False)
    finally:
        torch.set_float32_matmul_precision(before[0])


def _precisions():
    """Name what says how float32 is computed, since torch 2.9 by kind of operation."""
    backends = torch.backends
    owners = [backends, backends.mkldnn, backends.mkldnn.matmul, backends.mkldnn.conv]
    return [*owners, backends.cuda.matmul, backends.cudnn, backends.cudnn.conv]


@pytest.mark.skipif(
    not hasattr(torch.backends.mkldnn, "matmul"), reason="this torch has one setting"
)
@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
@pytest.mark.parametrize("chosen", [0, 2, 3, 4, 6])
def test_no_kind_of_operation_is_shortened_either(chosen, device_type):
    """Where these differ, torch's older settings raise an error when they are read."""
    owner = _precisions()[chosen]
    before, used = owner.fp32_precision, [2, 3, 4] + [6] * (device_type == "cuda")

    def read():
        return [owner.fp32_precision for owner in _precisions()]

    owner.fp32_precision = "tf32"
    try:
        outside = read()
        with full_float32(device_type):
            inside = read()
        assert read() == outside and outside[chosen] == "tf32"
        assert {inside[i] for i in used} <= {"ieee", "none"}
        torch.backends.fp32_precision, general = "none", torch.backends.fp32_precision
        followed = read()  # what was not chosen itself still follows the general one
        torch.backends.fp32_precision = general
        assert chosen or followed[2] in ("none", "ieee")
    finally:
        owner.fp32_precision = before


def test_copies_have_a_stream_of_their_own(monkeypatch):
    """As CUDA asks for: copy, wait for it, keep the memory until it was used."""
    log = []
    preprocess = SimpleNamespace(mean=(0.5,) * 3, std=(0.5,) * 3)
    model = SimpleNamespace(
        encode_image=lambda batch, normalize: batch.mean(dim=(2, 3))
    )
    tower = TorchTower(model, preprocess, CPU, "float32", torch.channels_last)
    pixels = torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)
    expected = tower.encode(pixels)

    now = SimpleNamespace(wait_stream=lambda stream: log.append(("wait", stream)))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: now)
    monkeypatch.setattr(
        torch.cuda, "stream", lambda s: log.append(("on", s)) or nullcontext()
    )
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda self, s: log.append(("keep", s is now))
    )
    tower._copies = "copies"
    np.testing.assert_array_equal(tower.encode(pixels), expected)
    assert log == [("on", "copies"), ("wait", "copies"), ("keep", True)]


def test_pinned_memory_that_cannot_be_had(monkeypatch):
    empty = torch.empty

    def without(*args, pin_memory=False, **kwargs):
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory")
        return empty(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", without)
    images = list(np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3))
    batch = lanes._stack(images, pin=True)
    np.testing.assert_array_equal(batch.permute(0, 2, 3, 1).numpy(), images)
