"""How fast images are encoded, searched over and fitted, beside what others use.

    python benchmarks/speed.py
    python benchmarks/speed.py --only jpegs grid_search

Weights are random, since speed does not depend on them. It takes about half an hour on
two cores, wants a quiet machine, and writes benchmarks/results/speed.json and speed.md.
Sections that are not asked for keep what the JSON file has of them.
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from machine import cpu, cpuinfo, installed, load_average
from speed_benchmark.encoding import (
    demo_encoder,
    first_embedding,
    jpegs,
    pngs,
    ready_arrays,
    warm_cache,
)
from speed_benchmark.fitting import fit_tall, fit_wide
from speed_benchmark.inputs import random_weights
from speed_benchmark.searching import grid_search
from speed_benchmark.tables import to_markdown

from skclip_icm._encoding.encoder import load_encoder

SEED = 0
SECTIONS = {
    section.__name__: section
    for section in (
        ready_arrays,
        demo_encoder,
        first_embedding,
        jpegs,
        pngs,
        grid_search,
        fit_tall,
        fit_wide,
        warm_cache,
    )
}
FULL = {
    "arrays": 256,
    "jpegs": 192,
    "many": 10_000,
    "pngs": 256,
    "search": 100,
    "tall": (100_000, 512),
    "wide": (20_000, 1280),
}
QUICK = {
    "arrays": 8,
    "jpegs": 2,
    "many": 40,
    "pngs": 8,
    "search": 20,
    "tall": (200, 16),
    "wide": (100, 32),
}
RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "numpy scikit-learn torch open_clip_torch Pillow sentence-transformers "
    "transformers openvino nncf concept-erasure"
).split()
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16")


def main(argv=None):
    options = _parse(argv)
    path = options.results / "speed.json"
    options.results.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    sections = known.get("sections", {})
    with tempfile.TemporaryDirectory() as folder:
        job = _job(Path(folder), options)
        for name in options.only or SECTIONS:
            print(f"{name} ...", flush=True)
            sections[name] = _run(SECTIONS[name], job)
            # At once: what is measured survives an interruption.
            _write(sections, job, path)


def _write(sections, job, path):
    result = {
        "setting": _setting(job),
        "sections": {name: sections[name] for name in SECTIONS if name in sections},
    }
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    text = to_markdown(result)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def _job(folder, options):
    model = random_weights(folder, options.quick, SEED)
    return SimpleNamespace(
        folder=folder,
        model=model,
        dtype=load_encoder(*model, device="cpu").dtype,
        n_cores=torch.get_num_threads(),
        quick=options.quick,
        repeats=1 if options.quick else options.repeats,
        seed=SEED,
        sizes=QUICK if options.quick else FULL,
    )


def _run(section, job):
    load = load_average()
    result = section(job)
    for row in result["contestants"].values():
        del row["result"]
    result["aims"] = [aim.as_dict() for aim in result["aims"]]
    date = time.strftime("%Y-%m-%d")
    return {**result, "date": date, "repeats": job.repeats, "load_average": load}


def _setting(job):
    return {
        "model": job.model[0],
        "dtype": job.dtype,
        "seed": SEED,
        "n_cores": job.n_cores,
        "cpu": cpu(),
        "cpu_flags": [f for f in FLAGS if f in cpuinfo("flags").split()],
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in PACKAGES},
    }


def _parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try it")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
