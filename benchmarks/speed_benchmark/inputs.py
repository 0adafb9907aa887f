"""Images and random weights; speed does not depend on what they show or know."""

import json
import os
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

TINY = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 224,
        "layers": 1,
        "width": 64,
        "head_width": 32,
        "patch_size": 32,
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 64,
        "heads": 2,
        "layers": 1,
    },
}


def random_weights(folder, quick, seed):
    """Return a model's name and the file of its random weights."""
    name = "ViT-B-32"
    if quick:
        name = "speed-benchmark-tiny"
        (folder / f"{name}.json").write_text(json.dumps(TINY))
        open_clip.add_model_config(folder / f"{name}.json")
    torch.manual_seed(seed)
    path = folder / f"{name}.safetensors"
    save_file(open_clip.create_model(name).state_dict(), path)
    return name, str(path)


def arrays(n, size, seed):
    return np.random.default_rng(seed).integers(0, 256, (n, *size, 3), np.uint8)


def jpeg_files(folder, n, seed, width=2000, height=1500):
    """Paths of distinct JPEG files of about 0.7 MB, as a camera's of that size.

    Noise at all scales, with the spectrum of natural images (amplitude proportional
    to one over frequency), and some grain.
    """
    rng = np.random.default_rng(seed)
    scales = [2**k for k in range(2, 11)]
    base = sum(
        _resized(rng.standard_normal((s, s, 3)), width, height) / s for s in scales
    )
    paths = []
    for i in range(n):
        # Decoding takes as long for a rolled image; drawing one takes seconds.
        pixels = np.roll(base, 37 * i, axis=1)
        pixels = 128 + 55 * pixels / pixels.std()
        pixels += rng.normal(0, 6, (height, width, 1))
        paths.append(folder / f"{i}.jpg")
        _save(pixels, paths[-1], quality=90)
    return paths


def png_files(folder, n, seed, side=96):
    paths = []
    for i, pixels in enumerate(arrays(n, (side // 8, side // 8), seed)):
        paths.append(folder / f"{i}.png")
        _save(_resized(pixels, side, side), paths[-1])
    return paths


def _resized(channels, width, height):
    bands = [
        Image.fromarray(np.float32(channels[..., c])).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        for c in range(3)
    ]
    return np.stack([np.asarray(band) for band in bands], axis=-1)


def _save(pixels, path, **options):
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, **options)
    # As files of yesterday: those just written could still change unnoticed.
    yesterday = time.time() - 86_400
    os.utime(path, (yesterday, yesterday))


def folder_in(parent, name):
    path = Path(parent) / name
    path.mkdir()
    return path
