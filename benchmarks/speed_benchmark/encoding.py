"""Sections on encoding: ready arrays, JPEG and PNG files, and a warm cache."""

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch

from skclip_icm._encoding.encoder import load_encoder
from skclip_icm._images.decoding import decode
from skclip_icm.datasets import fetch_elpv

from .encoders import (
    NoCache,
    bare_model,
    bare_openvino,
    dataloader_loop,
    featurizer,
    open_clip_loop,
    sentence_transformers_clip,
)
from .inputs import arrays, folder_in, jpeg_files, png_files
from .measure import Aim, min_cosine, one_thread, take_turns

OURS = "CLIPFeaturizer"
TORCH = 'CLIPFeaturizer, backend="torch"'
INT8 = 'CLIPFeaturizer, dtype="int8"'
BFLOAT16 = 'CLIPFeaturizer, dtype="bfloat16"'
REDUCED = 'CLIPFeaturizer, jpeg_decoding="reduced"'
BARE = "(a) bare model in torch, same dtype"
BARE_OPENVINO = "(e) bare model in OpenVINO, same dtype"
LOOP = "(b) open_clip loop, float32"
SENTENCE = "(c) sentence-transformers"
LOADER = "(d) DataLoader loop, float32"
DECODE = "decoding and resizing, one thread"
DECODE_REDUCED = "the same, reduced"
FORWARD = "forward pass, one thread"
BATCH_SIZES = (8, 32, 128)
OVER_SENTENCE = {OURS: 2.7, REDUCED: 3.3}  # for large JPEG files


def ready_arrays(job):
    n = job.sizes["arrays"]
    images = arrays(n, (224, 224), job.seed)
    batch_size = _best_batch_size(job, images)
    calibration = arrays(100, (224, 224), job.seed + 1)
    clips = {
        OURS: featurizer(job.model),
        TORCH: featurizer(job.model, backend="torch"),
        INT8: featurizer(job.model, dtype="int8", calibration=calibration),
    }
    for clip in clips.values():
        clip.transform(images[:2])  # converts and quantises
    contestants = {
        **{name: partial(clip.transform, images) for name, clip in clips.items()},
        BARE: bare_model(job.model, images),
        BARE_OPENVINO: bare_openvino(job.model, images),
        **_others(job, images, batch_size),
    }
    timed = take_turns(contestants, job.repeats)
    computed = [*clips, BARE, BARE_OPENVINO, LOADER]
    _add_cosines(timed, timed[LOOP]["result"], computed)
    return {
        "title": f"{n} uint8 arrays, 224 x 224",
        "notes": [f"{LOOP}: batches of {batch_size}, its best of {BATCH_SIZES}."],
        "contestants": timed,
        "aims": [
            Aim("speed over (e)", _ratio(timed, BARE_OPENVINO, OURS), at_least=0.95),
            *_aims_over_others(timed, "bcd"),
            *_aims_over_others(timed, "bcd", INT8, 4.5),
            *(_aim_on_cosine(timed, name) for name in (OURS, INT8)),
        ],
    }


def demo_encoder(job):
    """The encoder of the extra ``demo``, a convolutional one, on photographs."""
    n = job.sizes["arrays"]
    paths = [str(path) for path in fetch_elpv().images[:n]]
    model = ("demo", None)
    clips = {
        OURS: featurizer(model),
        TORCH: featurizer(model, backend="torch"),
        BFLOAT16: featurizer(model, dtype="bfloat16"),
    }
    for clip in clips.values():
        clip.transform(paths[:2])
    timed = take_turns(
        {name: partial(clip.transform, paths) for name, clip in clips.items()},
        job.repeats,
    )
    exact = featurizer(model, backend="torch", dtype="float32").transform(paths)
    _add_cosines(timed, exact, list(clips))
    return {
        "title": f"The demo encoder, {n} photographs of 300 x 300",
        "notes": [],
        "contestants": timed,
        "aims": [
            Aim(f"{name}: speed over torch", _ratio(timed, TORCH, name), at_least=4)
            for name in (OURS, BFLOAT16)
        ]
        + [_aim_on_cosine(timed, name) for name in (OURS, BFLOAT16)],
    }


def first_embedding(job):
    """Seconds until the first embedding of many files is in the cache."""
    n = job.sizes["many"]
    paths = jpeg_files(folder_in(job.folder, "many"), n, job.seed, 256, 192)
    featurizer(job.model).transform(paths[:2])

    class FoundError(Exception):
        pass

    class First(NoCache):
        def put_many(self, keys, rows):
            raise FoundError

    def first():
        try:
            featurizer(job.model, cache=First()).transform(paths)
        except FoundError:
            return None

    timed = take_turns({"until the first batch is encoded": first}, job.repeats)
    [row] = timed.values()
    return {
        "title": f"The first of {n:,} JPEG files, 256 x 192",
        "notes": [],
        "contestants": timed,
        "aims": [Aim("seconds with a loaded model", row["seconds"], at_most=2)],
    }


def jpegs(job):
    n = job.sizes["jpegs"]
    paths = jpeg_files(folder_in(job.folder, "jpegs"), n, job.seed)
    contestants = {
        OURS: lambda: featurizer(job.model).transform(paths),
        REDUCED: lambda: featurizer(job.model, jpeg_decoding="reduced").transform(
            paths
        ),
        BARE: bare_model(job.model, arrays(n, (224, 224), job.seed)),
        **_others(job, paths, 32),
        **_work(job, paths),
    }
    timed = take_turns(contestants, job.repeats)
    _add_cosines(timed, timed[LOOP]["result"], [OURS, REDUCED, LOADER])
    bounds = {
        OURS: _bound(job, timed, DECODE),
        REDUCED: _bound(job, timed, DECODE_REDUCED),
    }
    return {
        "title": f"{n} JPEG files, 2000 x 1500",
        "notes": [
            f"What {job.n_cores} cores allow, (CPU time of decoding + CPU time of the "
            f"forward pass) / {job.n_cores}: {bounds[OURS]:.2f} s, reduced "
            f"{bounds[REDUCED]:.2f} s.",
        ],
        "contestants": timed,
        "aims": [
            *(
                Aim(
                    f"{name}: share of what the cores allow",
                    bound / timed[name]["seconds"],
                    at_least=0.9,
                )
                for name, bound in bounds.items()
            ),
            *(
                aim
                for name in (OURS, REDUCED)
                for aim in _aims_over_others(timed, "c", name, OVER_SENTENCE[name])
            ),
            *(_aim_on_cosine(timed, name) for name in (OURS, REDUCED)),
        ],
    }


def pngs(job):
    n = job.sizes["pngs"]
    paths = png_files(folder_in(job.folder, "pngs"), n, job.seed)
    contestants = {
        OURS: lambda: featurizer(job.model).transform(paths),
        BARE: bare_model(job.model, arrays(n, (224, 224), job.seed)),
        **_others(job, paths, 32),
    }
    timed = take_turns(contestants, job.repeats)
    _add_cosines(timed, timed[LOOP]["result"], [OURS, LOADER])
    return {
        "title": f"{n} PNG files, 96 x 96",
        "notes": [],
        "contestants": timed,
        "aims": [_aim_on_cosine(timed, OURS)],
    }


def warm_cache(job):
    n = job.sizes["jpegs"]
    paths = jpeg_files(folder_in(job.folder, "cached"), n, job.seed)
    load_encoder(*job.model, device="cpu")
    caches = tempfile.mkdtemp(dir=job.folder)
    runs = iter(range(1000))

    def first():
        job.cache = str(Path(caches) / str(next(runs)))
        return featurizer(job.model, cache=job.cache).fit_transform(paths)

    def again():
        return featurizer(job.model, cache=job.cache).fit_transform(paths)

    timed = take_turns({"first call": first, "repeated": again}, job.repeats)
    assert np.array_equal(*(timed[name]["result"] for name in timed))
    return {
        "title": f"fit_transform of {n} JPEG files with a cache on disk",
        "notes": [],
        "contestants": timed,
        "aims": [
            Aim(
                "speed of a repeat over the first call",
                _ratio(timed, "first call", "repeated"),
                at_least=50,
            )
        ],
    }


def _others(job, items, batch_size):
    contestants = {LOOP: open_clip_loop(job.model, items, batch_size)}
    try:
        contestants[SENTENCE] = sentence_transformers_clip(job.folder, items, job.quick)
    except ImportError as error:
        print(f"{SENTENCE} is left out: {error}")
    return {**contestants, LOADER: dataloader_loop(job.model, items)}


def _best_batch_size(job, images):
    loops = {b: open_clip_loop(job.model, images[:128], b) for b in BATCH_SIZES}
    timed = take_turns(loops, 1 if job.quick else 2)
    return min(timed, key=lambda batch_size: timed[batch_size]["seconds"])


def _work(job, paths):
    """What has to be done for JPEG files, part by part and in one thread."""
    encoder = load_encoder(*job.model, device="cpu")
    blank = torch.zeros(32, 3, *encoder.image_size, dtype=torch.uint8)

    def decode_all(target):
        for path in paths:
            encoder.resize(decode(path.read_bytes(), target=target))

    def forward():
        with one_thread():
            for start in range(0, len(paths), 32):
                encoder.encode_images(blank[: len(paths) - start])

    return {
        DECODE: lambda: decode_all(None),
        DECODE_REDUCED: lambda: decode_all(encoder.image_size),
        FORWARD: forward,
    }


def _bound(job, timed, decoding):
    work = timed[decoding]["cpu_seconds"] + timed[FORWARD]["cpu_seconds"]
    return work / job.n_cores


def _ratio(timed, slow, fast):
    return timed[slow]["seconds"] / timed[fast]["seconds"]


def _aims_over_others(timed, letters, ours=OURS, wanted=3.0):
    return [
        Aim(f"{ours}: speed over ({letter})", _ratio(timed, name, ours), wanted)
        for letter in letters
        for name in timed
        if name.startswith(f"({letter})")
    ]


def _aim_on_cosine(timed, name):
    cosine = timed[name]["min_cosine"]
    return Aim(f"{name}: smallest cosine to float32", cosine, at_least=0.999)


def _add_cosines(timed, exact, names):
    for name in names:
        timed[name]["min_cosine"] = min_cosine(timed[name]["result"], exact)
