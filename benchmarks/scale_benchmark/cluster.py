"""Embedding and fitting with Ray on one machine.

    python -m scale_benchmark.cluster ACTORS IMAGES ROWS WIDTH SEED

With 0 actors the images are embedded without Ray, in one process. Each actor has one
CPU, whose number of threads Ray sets to 1.
"""

import io
import json
import sys
import time

import numpy as np
from PIL import Image

from skclip_icm import CLIPFeaturizer, ICMTransformer
from skclip_icm.distributed import embed, fit_icm

SIDE = 256
BLOCK_IMAGES = 16


def jpegs(n, seed):
    """Files of random smooth images."""
    rng = np.random.default_rng(seed)
    files = []
    for coarse in rng.integers(0, 256, (n, 16, 16, 3), np.uint8):
        file = io.BytesIO()
        image = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        image.save(file, "jpeg")
        files.append(file.getvalue())
    return files


def rate(arrivals):
    """Rows per second in the second half, when all actors have loaded their model."""
    (start, _), *later = arrivals[(len(arrivals) - 1) // 2 :]
    return sum(n for _, n in later) / (later[-1][0] - start)


def embed_locally(files, featurizer):
    arrivals = []
    for start in range(0, len(files), BLOCK_IMAGES):
        block = files[start : start + BLOCK_IMAGES]
        featurizer.intervene(block).counterparts  # noqa: B018  computed when asked for
        arrivals.append((time.perf_counter(), len(block)))
    return arrivals


def embed_with_ray(ray, files, featurizer, actors):
    dataset = ray.data.from_items(
        [{"image": file} for file in files],
        override_num_blocks=-(-len(files) // BLOCK_IMAGES),
    )
    embedded = embed(
        dataset,
        featurizer,
        column="image",
        counterparts="embedding_do",
        batch_size=BLOCK_IMAGES,
        # All at once: these rows are in memory, so no CPU is needed to read them.
        concurrency=(actors, actors),
    )
    return [
        (time.perf_counter(), len(batch["image"]))
        for batch in embedded.iter_batches(batch_size=None, prefetch_batches=0)
    ]


def fit_with_ray(ray, rows, width, seed):
    """Seconds of fit_icm, once the workers are there."""

    def draw(batch):
        rng = np.random.default_rng([seed, int(batch["id"][0])])
        Z = rng.standard_normal((2, len(batch["id"]), width), np.float32)
        return {"embedding": Z[0], "embedding_do": Z[0] + 0.1 * Z[1]}

    dataset = ray.data.range(rows, override_num_blocks=8).map_batches(draw)
    dataset = dataset.materialize()
    for _ in range(2):
        start = time.perf_counter()
        fit_icm(
            dataset,
            ICMTransformer(),
            counterparts="embedding_do",
            batch_size=-(-rows // 8),
        )
        seconds = time.perf_counter() - start
    return seconds


def main(actors, images, rows, width, seed):
    files = jpegs(images, seed)
    featurizer = CLIPFeaturizer("demo", n_jobs=1)
    result = {"image_bytes": sum(map(len, files)) / len(files)}
    if actors == 0:
        import torch

        torch.set_num_threads(1)
        result["images_per_s"] = rate(embed_locally(files, featurizer))
        result["width"] = featurizer.transform(files[:1]).shape[1]
        return result
    import ray

    ray.init(
        address="local",
        num_cpus=actors,
        include_dashboard=False,
        object_store_memory=max(120 * 2**20, 6 * 8 * rows * width),
        log_to_driver=False,
        logging_level="error",
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    result["images_per_s"] = rate(embed_with_ray(ray, files, featurizer, actors))
    result["fit_rows_per_s"] = rows / fit_with_ray(ray, rows, width, seed)
    return result


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:]))))
