"""The model's side of the encode pass: batches of pixels in, embeddings out.

On a CPU the model runs on several batches at once, each on its share of the processors:
so no thread ever waits for another to finish its part of a product.
"""

import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from skclip_icm._locks import Lock

# Forward passes at a time on a CPU; each needs memory for its activations.
_MAX_LANES = 8
# Parts that fit before larger ones are tried again; doubled by each failure.
_PATIENCE = 16
_MAX_PATIENCE = 4096

# What is said by allocators that have no exception of their own: those of cuBLAS, of
# MPS, of torch on a CPU and of OpenVINO.
_OUT_OF_MEMORY = (
    "out of memory",
    "out_of_memory",
    "ALLOC_FAILED",
    "bad_alloc",
    "allocate memory",
    "enough memory",
)

# What to set in place of a dtype in which numbers overflow or are lost.
_WIDER = {"float16": "'bfloat16' or 'float32'"}
_WIDER |= dict.fromkeys(["bfloat16", "int8"], "'float32'")

_lanes_lock = Lock()
_lane = threading.local()


def start_lanes(encoder, n_batches, n_threads):
    """Return a pool of threads that each run the model, and their number."""
    import torch

    if encoder.device.type != "cpu":
        # While a GPU computes, the other thread stacks the next batch.
        n_lanes = 2 if encoder.device.type == "cuda" else 1
        return ThreadPoolExecutor(n_lanes), n_lanes
    with _lanes_lock:
        total = torch.get_num_threads()
        n_usable = min(total, n_threads)
        n_lanes = min(n_usable, _MAX_LANES)
        # Few batches would leave lanes idle at the end.
        n_lanes = n_lanes if n_batches >= 2 * n_lanes else 1
        n_each = n_usable // n_lanes
        pool = ThreadPoolExecutor(n_lanes, thread_name_prefix="skclip_icm-model")
        started = threading.Barrier(n_lanes)

        def limit():
            _lane.share = n_lanes, n_each
            torch.set_num_threads(n_each)
            started.wait()

        try:
            for future in [pool.submit(limit) for _ in range(n_lanes)]:
                future.result()
        except BaseException:  # such as no more threads: no lane may wait for it
            started.abort()
            pool.shutdown()
            raise
        finally:
            # torch keeps the number for each thread, and for threads to come.
            torch.set_num_threads(total)
    return pool, n_lanes


def share():
    """Return the number of lanes at work, and of threads that each may use.

    Outside a lane there is one, with all threads that torch would use.
    """
    import torch

    return getattr(_lane, "share", None) or (1, torch.get_num_threads())


def encode_batch(cells, pixels, encoder):
    """Embed a batch; in smaller ones if it is too much for the device's memory."""
    batch = _stack(pixels, encoder.device.type == "cuda")
    bound = _bounds.setdefault(encoder, _Bound())
    parts, start = [], 0
    while start < len(batch):
        part = batch[start : start + bound.most]
        try:
            parts.append(encoder.encode_images(part))
        except (MemoryError, RuntimeError) as error:
            if len(part) == 1 or not _is_out_of_memory(error):
                raise
            bound.failed(len(part))
        else:
            bound.fitted(len(part))
            start += len(part)
    embeddings = np.concatenate(parts)
    return cells, sound(embeddings, encoder, lambda index: f"row {cells[index][0]}")


def sound(embeddings, encoder, name):
    """Return embeddings of sound inputs, or raise RuntimeError if they cannot be.

    `name` says by its index which input an error is about.
    """
    good = have_length(embeddings)
    if not good.all():
        bad, wider = int(good.argmin()), _WIDER.get(encoder.dtype)
        instead = f"Set dtype={wider}; if it stays so, the" if wider else "The"
        raise RuntimeError(
            f"{name(bad)}: the model gives NaN or infinity, or numbers without a "
            f"length (all zero, too small, too large): {embeddings[bad, :3]}, ..., "
            f"computing in {encoder.dtype} on {encoder.device}. "
            f"{instead} weights are damaged."
        )
    return embeddings


def have_length(embeddings):
    """Return which rows can be brought to unit length: those of a model can be."""
    with np.errstate(all="ignore"):
        squares = np.vecdot(embeddings, embeddings)
    return (squares >= np.finfo(np.float32).tiny) & (squares < np.inf)


class _Bound:
    """How many images the device's memory takes, as far as is known.

    It is remembered, so that few batches fail on the way to what fits, and tried again
    at times, since others may have freed their memory.
    """

    def __init__(self):
        self.most, self._n_fitted, self._patience = 2**31, 0, _PATIENCE

    def failed(self, size):
        self.most, self._n_fitted = (size + 1) // 2, 0
        self._patience = min(2 * self._patience, _MAX_PATIENCE)

    def fitted(self, size):
        self._n_fitted += size == self.most
        if self._n_fitted >= self._patience:
            self.most, self._n_fitted = 2 * self.most, 0


_bounds = weakref.WeakKeyDictionary()


def _is_out_of_memory(error):
    import torch

    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or any(text in str(error) for text in _OUT_OF_MEMORY)


def _stack(pixels, pin):
    """Stack (H, W, 3) arrays to a tensor (b, 3, H, W), in channels-last order."""
    import torch

    shape = len(pixels), *pixels[0].shape
    try:
        # From pinned memory, a GPU copies while the processor goes on. torch keeps
        # what it has pinned, and hands it out again once it has been copied from.
        batch = torch.empty(shape, dtype=torch.uint8, pin_memory=pin)
    except RuntimeError:  # there is only so much of it
        batch = torch.empty(shape, dtype=torch.uint8)
    np.stack(pixels, out=batch.numpy())
    return batch.permute(0, 3, 1, 2)
