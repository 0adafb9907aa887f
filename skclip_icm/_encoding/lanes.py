"""The model's side of the encode pass: batches of pixels in, embeddings out.

On a CPU the model runs on several batches at once, each on its share of the processors:
so no thread ever waits for another to finish its part of a product.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from skclip_icm._locks import Lock

# Forward passes at a time on a CPU; each needs memory for its activations.
_MAX_LANES = 8

# What is said by allocators that have no exception of their own: those of cuBLAS, of
# MPS and of torch on a CPU.
_OUT_OF_MEMORY = "out of memory", "ALLOC_FAILED", "allocate memory", "enough memory"

_lanes_lock = Lock()


def start_lanes(encoder, n_batches, n_threads):
    """Return a pool of threads that each run the model, and their number."""
    import torch

    def limit():
        torch.set_num_threads(n_each)
        started.wait()

    if encoder.device.type != "cpu":
        # While a GPU computes, the other thread stacks the next batch.
        n_lanes = 2 if encoder.device.type == "cuda" else 1
        return ThreadPoolExecutor(n_lanes), n_lanes
    with _lanes_lock:
        total = torch.get_num_threads()
        n_usable = min(total, n_threads)
        # Few batches could leave lanes idle at the end.
        n_lanes = max(1, min(n_usable, _MAX_LANES, n_batches // 2))
        n_each = n_usable // n_lanes
        pool = ThreadPoolExecutor(n_lanes, thread_name_prefix="skclip_icm-model")
        if n_each != total:
            # torch keeps the number for each thread, and for threads to come.
            started = threading.Barrier(n_lanes)
            for future in [pool.submit(limit) for _ in range(n_lanes)]:
                future.result()
            torch.set_num_threads(total)
    return pool, n_lanes


def encode_batch(cells, pixels, encoder):
    """Embed a batch; in smaller ones if it is too much for the device's memory."""
    batch = _stack(pixels, encoder.device.type == "cuda")
    parts, start = [], 0
    while start < len(batch):
        size = min(len(batch) - start, encoder.max_batch_size or len(batch))
        part = batch[start : start + size]
        try:
            parts.append(encoder.encode_images(part))
            start += size
            continue
        except (MemoryError, RuntimeError) as error:
            if size == 1 or not _is_out_of_memory(error):
                raise
        # Remembered, so that no later batch fails on the way to what fits.
        encoder.max_batch_size = (size + 1) // 2
    return cells, _finite(np.concatenate(parts), cells, encoder)


def _is_out_of_memory(error):
    import torch

    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or any(text in str(error) for text in _OUT_OF_MEMORY)


def _finite(embeddings, cells, encoder):
    """Return embeddings of finite images, or raise RuntimeError if they are not."""
    bad = ~np.isfinite(embeddings).all(axis=1)
    if bad.any():
        row = cells[int(bad.argmax())][0]
        raise RuntimeError(
            f"row {row}: the model gives NaN or infinity, computing in {encoder.dtype} "
            f"on {encoder.device}. Set dtype='bfloat16' or 'float32'; if it stays so, "
            "the weights are damaged."
        )
    return embeddings


def _stack(pixels, pin):
    """Stack (H, W, 3) arrays to a tensor (b, 3, H, W), in channels-last order."""
    import torch

    shape = len(pixels), *pixels[0].shape
    try:
        # From pinned memory, a GPU copies while the processor goes on.
        batch = torch.empty(shape, dtype=torch.uint8, pin_memory=pin)
    except RuntimeError:  # there is only so much of it
        batch = torch.empty(shape, dtype=torch.uint8)
    np.stack(pixels, out=batch.numpy())
    return batch.permute(0, 3, 1, 2)
