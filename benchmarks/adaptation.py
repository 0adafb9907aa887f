"""What centring on a new domain gains, by the number of images and their classes.

    python benchmarks/adaptation.py
    python benchmarks/adaptation.py --folder PACS

Each domain is left out in turn; some of its images, without labels, are what
`skclip_icm.adapt` is given, and the score is that on the others. Batches are drawn at
random, or of some classes only. Writes benchmarks/results/adaptation-<data>.md; takes
some minutes, most of them for encoding.
"""

import argparse
import platform
import time
from pathlib import Path

import numpy as np
from machine import cpu, installed
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.pipeline import make_pipeline

import skclip_icm
from skclip_icm import CLIPFeaturizer, ICMTransformer, adapt
from skclip_icm.datasets import fetch_elpv, load_domain_folder
from skclip_icm.demo.__main__ import add_cache_option

RESULTS = Path(__file__).parent / "results"
NUMBERS = 0, 3, 10, 30, 100
SKEWED = 30  # images in a batch of some classes only
SEEDS = range(10)
ICM = {"method": "whitening"}


def main(argv=None):
    options = _parse(argv)
    data = load_domain_folder(options.folder) if options.folder else fetch_elpv()
    name = options.folder.resolve().name.lower() if options.folder else "elpv"
    featurizer = CLIPFeaturizer(
        options.model, options.pretrained, cache=options.cache, verbose=True
    )
    Z = featurizer.intervene(data.images)
    scores = evaluate(Z, data.target, data.domains)
    text = to_markdown(name, scores, len(data.target), data, options)
    (RESULTS / f"adaptation-{name}.md").write_text(text, encoding="utf-8")
    print(text)


def evaluate(Z, y, domains):
    """Scores by batch, method, and one for each domain left out and each seed."""
    metric = balanced_accuracy_score if len(np.unique(y)) == 2 else accuracy_score
    scores, images = {}, np.asarray(Z)
    for target in np.unique(domains):
        train, there = domains != target, np.flatnonzero(domains == target)
        models = fit(Z[train], y[train], domains[train])
        for batch, seed in ((b, s) for b in batches(y) for s in SEEDS):
            rng = np.random.default_rng(seed)
            some = draw(there, y, batch, rng)
            rest = np.setdiff1d(there, some)
            for method, model in models.items():
                if len(some):
                    model = adapt(model, images[some])
                score = metric(y[rest], model.predict(images[rest]))
                scores.setdefault(batch, {}).setdefault(method, []).append(score)
    return scores


def fit(Z, y, domains):
    """The probe and ICM, each with the mean of all rows or of each domain taken off."""
    models = {}
    for name, params in (("probe", {"lam": 0, "n_components": None}), ("ICM", ICM)):
        for center in (True, "domain"):
            model = make_pipeline(
                ICMTransformer(center=center, **params),
                LogisticRegression(class_weight="balanced", max_iter=1000),
            )
            given = {"icmtransformer__domains": domains} if center == "domain" else {}
            label = "each domain" if center == "domain" else "all rows"
            models[f"{name}, trained on rows less the mean of {label}"] = model.fit(
                Z, y, **given
            )
    return models


def batches(y):
    """(number of images, number of classes among them or None for all alike)."""
    n_classes = len(np.unique(y))
    few = sorted({1, -(-n_classes // 2)})
    return [(n, None) for n in NUMBERS] + [(SKEWED, k) for k in few]


def draw(there, y, batch, rng):
    n_images, n_classes = batch
    if n_classes is not None:
        chosen = rng.choice(np.unique(y), n_classes, replace=False)
        there = there[np.isin(y[there], chosen)]
    return rng.permutation(there)[:n_images]


def to_markdown(name, scores, n_images, data, options):
    metric = "balanced accuracy" if len(data.target_names) == 2 else "accuracy"
    lines = [
        f"# Centring on a new domain: {name}",
        "",
        f"{n_images:,} images, {len(data.domain_names)} domains, each left out in "
        f"turn; {metric} in percent on its images that were not adapted to, mean over "
        f"domains and {len(SEEDS)} draws. The last rows are batches of {SKEWED} images "
        "of some classes only.",
        "",
        "| images | " + " | ".join(next(iter(scores.values()))) + " |",
        "|---|" + "---:|" * len(next(iter(scores.values()))),
    ]
    for (n, classes), found in scores.items():
        label = f"{n}" if classes is None else f"{n}, of {classes} classes"
        label = label.replace("of 1 classes", "of one class")
        cells = [f"{100 * np.mean(values):.1f}" for values in found.values()]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    versions = [f"{p} {installed(p)}" for p in ("numpy", "scikit-learn", "torch")]
    lines += [
        "",
        f"{time.strftime('%Y-%m-%d')}, {cpu()}, Python {platform.python_version()}, "
        f"skclip-icm {skclip_icm.__version__}, {', '.join(versions)}, model "
        f"{options.model}, seeds {SEEDS.start} to {SEEDS.stop - 1}.",
    ]
    return "\n".join(lines) + "\n"


def _parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="of domain/class/image")
    parser.add_argument("--model", default="demo", help="as in CLIPFeaturizer")
    parser.add_argument("--pretrained", default=None, help="as in CLIPFeaturizer")
    add_cache_option(parser, "benchmarks")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
