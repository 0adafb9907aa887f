"""Time loading a model against open_clip's own loading, from random weights on disk.

Run from the root of the repository: python benchmarks/loading.py [--models NAME ...]

A run replaces the rows of its models in results/loading.json and writes the table anew.
"""

import hashlib
import os
import statistics
import sys
from datetime import date
from pathlib import Path
from time import perf_counter

from machine import cpu, installed, load_average
from machine.by_model import run, settings

MODELS = ("ViT-B-32", "ViT-B-16", "RN50", "RN50x16", "ViT-B-16-SigLIP", "convnext_base")
REPEATS = 5
SEED = 0
PACKAGES = ("torch", "open_clip_torch", "timm", "safetensors", "openvino")
LABELS = (
    "torch",
    "torch, from the hub",
    "openvino, converted",
    "openvino, converting",
)


def main(arguments=None):
    run("loading", __doc__, MODELS, measure, markdown, arguments)


def measure(name, folder):
    import open_clip

    file, blob = random_weights(name, folder)
    theirs = {"open_clip": lambda: open_clip.create_model(name, str(file)).eval()}
    ours = {
        "torch": lambda: load(name, file, "torch"),
        "torch, from the hub": lambda: load(name, blob, "torch"),
    }
    seconds = {}
    if installed("openvino"):
        seconds["openvino, converting"] = [timed(lambda: load(name, file, "openvino"))]
        ours["openvino, converted"] = lambda: load(name, file, "openvino")
    seconds |= {label: [] for label in (*theirs, *ours)}
    # In turns, so that a busy moment of the machine meets all of them; the first round
    # brings the file into memory.
    for round_ in range(REPEATS + 1):
        for label, how in {**theirs, **ours}.items():
            elapsed = timed(how)
            if round_:
                seconds[label].append(elapsed)
    medians = {label: statistics.median(times) for label, times in seconds.items()}
    megabytes = file.stat().st_size / 1e6
    return {"megabytes": megabytes, "seconds": medians, "measured": machine()}


def random_weights(name, folder):
    """Write weights; return their path, and one as in the hub's cache."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(SEED)
    file = folder / "weights.safetensors"
    save_file(open_clip.create_model(name).state_dict(), file)
    with open(file, "rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    (folder / "blobs").mkdir()
    os.link(file, folder / "blobs" / digest)
    blob = folder / "blob.safetensors"
    blob.symlink_to(Path("blobs", digest))
    return file, blob


def load(name, file, backend):
    from skclip_icm._encoding.encoder import load_encoder

    options = {"device": "cpu", "dtype": "float32", "backend": backend}
    return load_encoder(name, file, **options)


def timed(run):
    from skclip_icm import unload_models

    start = perf_counter()
    loaded = run()
    elapsed = perf_counter() - start
    del loaded
    unload_models()
    return elapsed


def machine():
    packages = {package: installed(package) for package in PACKAGES}
    about = {"python": sys.version.split()[0], "cpu": cpu(), "cores": os.cpu_count()}
    load = round(load_average(), 2)
    measured = {"repeats": REPEATS, "seed": SEED, "date": date.today().isoformat()}
    return {**packages, **about, **measured, "load": load}


def markdown(rows):
    lines = [
        "Seconds to load random float32 weights from disk: all that images and",
        "texts need, and a fingerprint of every byte. In brackets, divided by the time",
        "of `open_clip.create_model` with the same file. A file in the hub's cache is",
        "checked against its digest, and converted for OpenVINO, when first loaded.",
        "",
        f"Medians in one process, the file in memory. {settings(rows)}.",
        "",
        "| model | MB | open_clip | torch | torch, from the hub's cache | OpenVINO | "
        "OpenVINO, converting |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in rows.items():
        seconds = row["seconds"]
        cells = [f"{row['megabytes']:.0f}", f"{seconds['open_clip']:.2f}"]
        cells += [ratio(seconds.get(label), seconds["open_clip"]) for label in LABELS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def ratio(seconds, unit):
    return "" if seconds is None else f"{seconds:.2f} ({seconds / unit:.2f})"


if __name__ == "__main__":
    main()
