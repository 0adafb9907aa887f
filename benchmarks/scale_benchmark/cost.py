"""What a number of images costs, from a few measured numbers.

With n images of b bytes, k counterparts each, embeddings of d float32, and w workers
that each embed r images (with their counterparts) a second:

- embedding takes n / (w r) seconds, reads n b bytes and writes 4 d (1 + k) n bytes;
- fitting takes (1 + k) d^2 n operations, F a second on each of the workers: one
  multiplication and one addition for each entry of half a matrix, for the rows and for
  the differences;
- the sums of each B rows, 2 matrices of 8 d^2 bytes, go to the driver, which adds each
  in m seconds.
"""

import time

import numpy as np

from skclip_icm._projection.sums import Sums

IMAGES = 10**6, 10**8, 10**10
BATCH_ROWS = 16_384  # the default of fit_icm


def cost(n, *, rate, workers, image_bytes, width, flops, merge_s, counterparts=1):
    """Hours and terabytes for `n` images."""
    copies = 1 + counterparts
    batches = n / BATCH_ROWS
    return {
        "images": n,
        "embed_h": n / (workers * rate) / 3600,
        "read_tb": n * image_bytes / 1e12,
        "written_tb": n * 4 * width * copies / 1e12,
        "fit_h": n * copies * width**2 / (workers * flops) / 3600,
        "sums_tb": batches * 16 * width**2 / 1e12,
        "driver_h": batches * merge_s / 3600,
    }


def merge_seconds(width, repeats=5):
    """Time to add the sums of one batch to those so far."""
    rows = np.random.default_rng(0).standard_normal((8, width))
    parts = [Sums(rows).add(rows.copy()) for _ in range(repeats + 1)]
    start = time.perf_counter()
    for part in parts[1:]:
        parts[0].merge(part)
    return (time.perf_counter() - start) / repeats
