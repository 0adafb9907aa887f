"""Time and memory against the number of rows and features, and with Ray.

    python benchmarks/scale.py
    python benchmarks/scale.py --only fits

Takes about half an hour and 4 GB of disk. --quick shows that it runs.
Writes scale.json and scale.md into benchmarks/results, with plots beside them. Each
measurement runs in a process of its own.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from machine import cpu, installed
from scale_benchmark.cluster import SIDE
from scale_benchmark.cost import IMAGES, cost, merge_seconds
from scale_benchmark.fits import METHODS, write_pairs
from scale_benchmark.plots import plot_cluster, plot_fits
from scale_benchmark.process import measure
from scale_benchmark.tables import to_markdown

SEED = 0
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("numpy", "scipy", "scikit-learn", "torch", "ray")
PARTS = ("fits", "cluster", "cost")

FULL = {
    "n": (10_000, 100_000, 1_000_000),
    "d": (256, 512, 1024, 2048),
    "fixed_n": 100_000,
    "fixed_d": 512,
    "actors": (0, 1, 2),
    "images": 640,
    "rows": 65_536,
}
QUICK = {
    "n": (300,),
    "d": (8,),
    "fixed_n": 300,
    "fixed_d": 8,
    "repeats": 1,
    "actors": (0, 1),
    "images": 48,
    "rows": 800,
}
# Of these, one run is enough: they are there for the order of magnitude.
ONCE = ("IncrementalPCA", "PCA, array")


def main(argv=None):
    options = parse(argv)
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / "scale.json"
    earlier = path.read_text(encoding="utf-8") if path.exists() else "{}"
    result = json.loads(earlier) if options.only else {}
    result |= setting()
    size = QUICK if options.quick else FULL | {"repeats": options.repeats}
    if "fits" in options.parts:
        result["fits"] = measure_fits(size)
    if "cluster" in options.parts:
        result["cluster"] = measure_cluster(size)
    if "fits" in result and "cluster" in result:
        result["cost"] = model_cost(result, options.rate, options.workers)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (options.results / "scale.md").write_text(to_markdown(result), encoding="utf-8")
    draw(result, options.results)
    print(to_markdown(result))


def measure_fits(size):
    shapes = [(n, size["fixed_d"], "n") for n in size["n"]]
    shapes += [(size["fixed_n"], d, "d") for d in size["d"]]
    rows, done = [], {}
    for n, d, varies in shapes:
        if (n, d) not in done:
            done[n, d] = measure_shape(n, d, size["repeats"])
        rows += [row | {"varies": varies} for row in done[n, d]]
    return rows


def measure_shape(n, d, repeats):
    runs = {name: [] for name in METHODS}
    with tempfile.TemporaryDirectory() as folder:
        paths = write_pairs(Path(folder), n, d, SEED)
        # In turns, so that a busy moment of the machine meets all of them.
        for repeat in range(repeats):
            for name in METHODS:
                if repeat == 0 or name not in ONCE:
                    runs[name].append(measure("fits", name, *paths))
                    print(f"{n} x {d}, {name}: {runs[name][-1]}", flush=True)
    median = {
        name: {
            key: statistics.median(run[key] for run in found)
            for key in ("seconds", "peak_mib", "before_mib")
        }
        for name, found in runs.items()
    }
    bare = median["BLAS products alone"]["seconds"]
    return [
        {"n": n, "d": d, "method": name, "ratio": found["seconds"] / bare} | found
        for name, found in median.items()
    ]


def measure_cluster(size):
    measured = []
    for actors in size["actors"]:
        # Without Ray this process decides on its threads: one, as an actor has.
        threads = {"OMP_NUM_THREADS": "1"} if actors == 0 else {}
        arguments = (actors, size["images"], size["rows"], size["fixed_d"], SEED)
        environment = {"RAY_USAGE_STATS_ENABLED": "0", **threads}
        found = measure("cluster", *arguments, **environment)
        measured.append({"actors": actors} | found)
        print(measured[-1], flush=True)
    return {
        "images": size["images"],
        "side": SIDE,
        "rows": size["rows"],
        "width": size["fixed_d"],
        "measured": measured,
    }


def model_cost(result, rate, workers):
    """Cost with what was measured here, and with another rate of embedding."""
    alone, one_actor = result["cluster"]["measured"][:2]
    basis = {
        "workers": 1,
        "rate": one_actor["images_per_s"],
        "image_bytes": alone["image_bytes"],
        "width": alone["width"],
        "counterparts": 1,
        "flops": 2 * result["cluster"]["width"] ** 2 * one_actor["fit_rows_per_s"],
        "merge_s": merge_seconds(alone["width"]),
    }
    bases = {
        "Measured here, one worker with one CPU": basis,
        "The same with a rate and a number of workers assumed": basis
        | {"rate": rate, "workers": workers},
    }
    return [
        {
            "name": name,
            "basis": basis,
            "rows": [cost(n, **basis) for n in IMAGES],
        }
        for name, basis in bases.items()
    ]


def draw(result, folder):
    if "fits" in result:
        fits = result["fits"]
        plot_fits(fits, "seconds", "seconds", folder / "scale-time.png")
        label = "largest resident memory, MiB"
        bare = ("BLAS products alone",)
        plot_fits(fits, "peak_mib", label, folder / "scale-memory.png", hidden=bare)
    if "cluster" in result:
        plot_cluster(result["cluster"]["measured"], folder / "scale-ray.png")


def setting():
    versions = {name: installed(name) for name in PACKAGES}
    return {
        "seed": SEED,
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu(),
        "n_cpus": os.cpu_count(),
        "load_average": os.getloadavg(),
        "versions": {name: v for name, v in versions.items() if v},
    }


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, written to a temporary folder"
    )
    parser.add_argument("--only", choices=PARTS, help="measure this, keep the rest")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each fit")
    parser.add_argument("--results", type=Path, help="where to write")
    parser.add_argument(
        "--rate", type=float, default=1000, help="images/s of a worker to assume"
    )
    parser.add_argument(
        "--workers", type=int, default=8, help="number of workers to assume"
    )
    options = parser.parse_args(argv)
    if options.results is None:  # tiny sizes do not replace what was measured
        options.results = Path(tempfile.mkdtemp()) if options.quick else RESULTS
    options.parts = PARTS if options.only is None else (options.only,)
    return options


if __name__ == "__main__":
    main()
