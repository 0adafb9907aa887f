"""How long ICM takes to fit, beside the logistic regression that follows it.

Run `python benchmarks/fit_cost.py`. It takes a minute or two and writes
benchmarks/results/fit_cost.json and fit_cost.md.
"""

import json
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from skclip_icm import ICMTransformer

SEED = 0
N, D, CLASSES, DOMAINS = 10_000, 1280, 10, 4
REPEATS = 3
RESULTS = Path(__file__).parent / "results"

ROWS = {
    "projection, interventional pairs": {"pairs": "interventional"},
    "projection, domain pairs": {"pairs": "domain"},
    "projection, class pairs": {"pairs": "class"},
    "projection, given pairs": {"pairs": "given"},
    "whitening, interventional pairs": {
        "pairs": "interventional",
        "method": "whitening",
    },
}


def main():
    result = measure()
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(result, indent=2) + "\n"
    (RESULTS / "fit_cost.json").write_text(text, encoding="utf-8")
    (RESULTS / "fit_cost.md").write_text(markdown(result), encoding="utf-8")
    print(markdown(result))


def measure(n=N, d=D, repeats=REPEATS):
    Z, Z_do, y, domains = draw(n, d)
    seconds = {name: [] for name in ROWS}
    after = {name: [] for name in ROWS}
    without, kept = [], {}
    # In turns, so that a busy moment of the machine meets all of them.
    for _ in range(repeats):
        without.append(timed(LogisticRegression(max_iter=1000).fit, Z, y))
        for name, params in ROWS.items():
            if params["pairs"] == "given":
                params = {"pairs": (Z, Z_do)}
            icm = ICMTransformer(**params)
            seconds[name].append(timed(icm.fit, Z, y, X_do=Z_do, domains=domains))
            kept[name] = int(icm.n_components_)
            probe = LogisticRegression(max_iter=1000)
            after[name].append(timed(probe.fit, icm.transform(Z), y))
    rows = {
        name: {
            "n_components": kept[name],
            "fit_s": statistics.median(seconds[name]),
            "logistic_regression_s": statistics.median(after[name]),
            "ratio": statistics.median(seconds[name]) / statistics.median(after[name]),
        }
        for name in ROWS
    }
    return {
        "n": n,
        "d": d,
        "classes": CLASSES,
        "domains": DOMAINS,
        "repeats": repeats,
        "seed": SEED,
        "date": time.strftime("%Y-%m-%d"),
        "cpu": platform.processor() or platform.machine(),
        "n_cpus": os.cpu_count(),
        "load_average": os.getloadavg(),
        "versions": {
            name: version(name) for name in ("numpy", "scipy", "scikit-learn")
        },
        "logistic_regression_without_s": statistics.median(without),
        "rows": rows,
    }


def draw(n, d):
    """Random unit embeddings around class and domain means, and counterparts."""
    rng = np.random.default_rng(SEED)
    y, domains = rng.integers(CLASSES, size=n), rng.integers(DOMAINS, size=n)
    content = rng.normal(size=(CLASSES, d))[y] + 2 * rng.normal(size=(n, d))
    style = rng.normal(size=(DOMAINS, d))[domains]
    Z, Z_do = (_unit(content + s) for s in (style, style + rng.normal(size=(n, d))))
    return Z, Z_do, y, domains


def timed(function, *args, **kwargs):
    start = time.perf_counter()
    function(*args, **kwargs)
    return time.perf_counter() - start


def markdown(result):
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    lines = [
        "# Cost of fitting",
        "",
        f"{result['n']:,} x {result['d']:,} random embeddings, {result['classes']} "
        f"classes, {result['domains']} domains; medians of {result['repeats']} fits. "
        f"{result['date']}, {result['cpu']} ({result['n_cpus']} cores, load average "
        f"{result['load_average'][0]:.1f}), {versions}, seed {result['seed']}.",
        "",
        "Logistic regression on the embeddings as they are takes "
        f"{result['logistic_regression_without_s']:.2f} s. It is faster after ICM the "
        "fewer directions are kept.",
        "",
        "| ICM | directions kept | fit, s | logistic regression after it, s | ratio |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in result["rows"].items():
        lines.append(
            f"| {name} | {row['n_components']} | {row['fit_s']:.2f} "
            f"| {row['logistic_regression_s']:.2f} | {row['ratio']:.2f} |"
        )
    return "\n".join([*lines, ""])


def _unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


if __name__ == "__main__":
    main()
