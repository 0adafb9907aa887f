"""Solar cells of a kind of module never seen: a linear probe, with and without ICM.

Run by ``python -m skclip_icm.demo``. Trains on the cells of monocrystalline modules and
tests on those of polycrystalline ones, and the other way round. No label of the domain
to be predicted is used, for fitting or for choosing parameters.
"""

import argparse
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline

from skclip_icm._version import __version__
from skclip_icm.datasets import fetch_elpv
from skclip_icm.featurizer import CLIPFeaturizer
from skclip_icm.icm import ICMTransformer
from skclip_icm.model_selection import invariant_search

SEED = 0
PROBE = LogisticRegression(class_weight="balanced", max_iter=1000)
PIPELINE = Pipeline([("icm", ICMTransformer()), ("clf", clone(PROBE))])
GRID = {"icm__lam": [0.3, 1, 3, 10]}


def main(argv=None):
    """Run the comparison, print its table and save the table and a figure."""
    arguments = _parse(argv)
    start = time.perf_counter()
    data = fetch_elpv()
    print(
        f"ELPV: {len(data.images)} photographs of solar cells. Encoding them and their "
        "interventions\n(kept on disk: the next run skips this) ..."
    )
    featurizer = CLIPFeaturizer(
        "demo", cache=arguments.cache, random_state=SEED, verbose=True
    )
    Z = featurizer.intervene(data.images)
    Z.counterparts  # noqa: B018  encodes them here, under a progress bar of their own

    results, fitted = {}, None
    for train, test in ((0, 1), (1, 0)):
        direction = f"{data.domain_names[train]} to {data.domain_names[test]}"
        print(f"Fitting {direction} ...")
        seen, unseen = data.domains == train, data.domains == test
        models = _fit(Z[seen], data.target[seen])
        fitted = fitted or models["ICM"]
        for name, model in models.items():
            scores = _score(model, Z[unseen], data.target[unseen])
            results.setdefault(name, {})[direction] = scores
        print(f"  chosen under intervention: {models['ICM'].best_params_}")

    print("\n" + _table(results))
    arguments.output.mkdir(parents=True, exist_ok=True)
    report = {"results": results, "seed": SEED, **_setting()}
    (arguments.output / "demo.json").write_text(json.dumps(report, indent=2) + "\n")
    figure = _figure(featurizer, data.images, fitted)
    figure.savefig(arguments.output / "demo.png", dpi=120)
    seconds = time.perf_counter() - start
    print(f"\nSaved demo.json and demo.png in {arguments.output}.")
    print(f"Done in {seconds:.0f} s.")


def _parse(argv):
    parser = argparse.ArgumentParser("python -m skclip_icm.demo", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("demo-results"), help="folder for results"
    )
    add_cache_option(parser, "demo")
    return parser.parse_args(argv)


def add_cache_option(parser, name):
    """Let a program keep embeddings, by default in a folder `name` of the user's."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument(
        "--cache",
        type=Path,
        default=home / "skclip-icm" / name,
        help="folder in which embeddings are kept (default: %(default)s)",
    )


def _fit(Z, y):
    """Fit the raw probe and ICM, choosing lam under intervention in this domain."""
    folds = StratifiedKFold(2, shuffle=True, random_state=SEED)
    search = invariant_search(PIPELINE, GRID, scoring="roc_auc", cv=folds)
    return {"raw probe": clone(PROBE).fit(Z, y), "ICM": search.fit(Z, y)}


def _score(model, Z, y):
    return {
        "auc": roc_auc_score(y, model.decision_function(Z)),
        "balanced_accuracy": balanced_accuracy_score(y, model.predict(Z)),
    }


def _table(results):
    directions = list(next(iter(results.values())))
    columns = [*directions, "mean"]
    lines = [
        " " * 12 + "".join(f"{column:>22}" for column in columns),
        " " * 12 + f"{'AUC':>12}{'bal. acc.':>10}" * len(columns),
    ]
    for name, scores in results.items():
        pairs = [tuple(scores[direction].values()) for direction in directions]
        pairs.append(tuple(np.mean(pairs, axis=0)))
        cells = "".join(f"{auc:12.3f}{accuracy:10.3f}" for auc, accuracy in pairs)
        lines.append(f"{name:<12}{cells}")
    return "\n".join(lines)


def _figure(featurizer, images, search):
    import matplotlib.pyplot as plt

    from skclip_icm.plotting import InterventionDisplay, SpectrumDisplay

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 6), width_ratios=(2, 3), layout="constrained"
    )
    InterventionDisplay.from_estimator(featurizer, images[::656], ax=left)
    SpectrumDisplay.from_estimator(search, ax=right)
    return figure


def _setting():
    packages = ("numpy", "scipy", "scikit-learn", "torch", "open_clip_torch")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "versions": {
            "skclip-icm": __version__,
            **{package: version(package) for package in packages},
        },
    }


if __name__ == "__main__":
    main()
