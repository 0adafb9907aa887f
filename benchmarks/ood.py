"""Every system of the paper, and what people would use instead, on unseen domains.

    python benchmarks/ood.py --node-modules node_modules
    python benchmarks/ood.py --folder PACS --model ViT-B-16 --pretrained openai
    python benchmarks/ood.py --protocol paper --folder PACS --model ViT-B-16
    python benchmarks/ood.py --train imagenet/train --test imagenet-r imagenet-sketch

Data sets: ELPV, emoji styles, coloured and rotated MNIST, corrupted ELPV, on which the
rule and the grids were settled; or any folder laid out as domain/class/image, or one
folder of classes to train on and others to test on. Writes results/ood-<data>.json as
soon as each is done, and results/ood.md from all such files that are there.
"""

import argparse
import json
import platform
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from machine import cpu, installed
from ood_benchmark import paper
from ood_benchmark.data import causal, embed, n_encodings
from ood_benchmark.evaluate import evaluate_case, evaluate_fold, folds
from ood_benchmark.methods import BASELINE, METHODS
from ood_benchmark.rules import LEFT_OUT
from ood_benchmark.sources import (
    LOADERS,
    class_names_from,
    limited,
    load_folder,
    load_folders,
)
from ood_benchmark.summary import RULES_SEED, from_json, renew, summarise, to_json
from ood_benchmark.tables import to_markdown
from tqdm import tqdm

import skclip_icm
from skclip_icm import CLIPFeaturizer
from skclip_icm.demo.__main__ import add_cache_option

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("numpy scipy scikit-learn torch open_clip_torch concept-erasure").split()


def main(argv=None):
    options = _parse(argv)
    options.results.mkdir(parents=True, exist_ok=True)
    asked, everything = _asked(options)
    for name, load in asked.items():
        try:
            source = load()
        except (FileNotFoundError, ImportError) as error:
            if not everything:
                raise
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        if source is not None and options.limit:
            source = limited(source, options.limit)
        if options.protocol == "paper":
            result = paper.run(source, _featurizer(options, normalize=False))
            _write(options, "ood-paper", result | _setting(options), paper.to_json)
            continue
        result = run(_embedded(source, options), options) | _setting(options)
        path = options.results / f"ood-{result['data']}.json"
        if options.methods and path.exists():
            result = renew(from_json(path.read_text(encoding="utf-8")), result)
        _write(options, "ood", result, to_json)
    write_summary(options.results)


def run(task, options):
    """Evaluate a data set; return what its JSON file holds, but for the setting."""
    start = time.perf_counter()
    names = tuple(METHODS)
    if options.methods:  # and what they are compared with
        names = tuple(dict.fromkeys([*options.methods, BASELINE]))
    cases = [(case, seed) for seed in range(options.seeds) for case in task.cases]
    calls = [delayed(evaluate_case)(task, *call, names) for call in cases]
    left_out = [] if options.methods else list(folds(task))
    calls += [delayed(evaluate_fold)(task, *fold, RULES_SEED) for fold in left_out]
    parallel = Parallel(options.n_jobs, return_as="generator")
    done = list(tqdm(parallel(calls), task.name, total=len(calls), unit="fit"))
    done, scored = done[: len(cases)], done[len(cases) :]
    by_remaining = {
        fold[0]: scores for fold, scores in zip(left_out, scored, strict=True)
    }
    missing, runs = {}, []
    for (case, seed), (records, outcomes, lacking) in zip(cases, done, strict=True):
        if seed == RULES_SEED:
            _add_left_out(records, case, by_remaining)
        runs.append((records, outcomes))
        missing |= lacking
    return {
        "data": task.name,
        "description": task.description,
        "n_images": len(task.target),
        "classes": task.class_names,
        "domains": task.domain_names,
        "targets": [task.domain_names[target] for _, target in task.cases],
        "n_seeds": options.seeds,
        "metrics": list(task.metrics),
        "views": list(task.view_names),
        "missing": missing,
        "encoding_seconds": task.encoding_seconds,
        **summarise(task, runs),
        "seconds": time.perf_counter() - start,
        "records": [record for records, _ in runs for record in records],
    }


def write_summary(results):
    """Write the tables of all the JSON files in a folder, in the order of `LOADERS`."""
    found, of_paper = [], []
    for path in sorted(results.glob("ood-*.json")):
        kind = of_paper if path.name.startswith("ood-paper-") else found
        kind.append(json.loads(path.read_text(encoding="utf-8")))
    order = [*LOADERS, *(result["data"] for result in found)]
    found.sort(key=lambda result: order.index(result["data"]))
    for name, text in (
        ("ood.md", to_markdown(found) if found else None),
        ("ood-paper.md", paper.to_markdown(of_paper) if of_paper else None),
    ):
        if text is not None:
            (results / name).write_text(text, encoding="utf-8")
            print(f"Wrote {results / name}.")


def _embedded(source, options):
    if source is None:
        return causal()
    print(f"{source.name}: {n_encodings(source):,} images to encode, each of their")
    print("interventions being one; those in the cache are not encoded again.")
    return embed(source, _featurizer(options))


def _add_left_out(records, case, by_remaining):
    """Give the records of a case their mean score in the training domains left out."""
    sources, _ = case
    for record in records:
        key = record["method"], record["setting"]
        values = []
        for domain in sources:
            remaining = tuple(other for other in sources if other != domain)
            values.append(by_remaining.get(remaining, {}).get((domain, *key)))
        if record["protocol"] == "shift" and None not in values:
            record["scores"] = {**record["scores"], LEFT_OUT: float(np.mean(values))}


def _asked(options):
    """Return functions that load data sets, by name, and whether these are all."""
    names = options.class_names and class_names_from(options.class_names)
    asked = {str(root): partial(load_folder, root, names) for root in options.folder}
    if options.train:
        asked["train"] = partial(load_folders, options.train, options.test, names)
    everything = not (asked or options.data)
    for name in options.data or (LOADERS if everything else ()):
        # What is known of a causal model are embeddings, not images.
        load = partial(LOADERS[name], options.node_modules) if name in LOADERS else None
        asked[name] = load or (lambda: None)
    return asked, everything


def _write(options, prefix, result, to_text):
    path = options.results / f"{prefix}-{result['data']}.json"
    path.write_text(to_text(result), encoding="utf-8")
    print(f"Wrote {path}.")


def _featurizer(options, **params):
    return CLIPFeaturizer(
        options.model, options.pretrained, cache=options.cache, verbose=True, **params
    )


def _parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", choices=[*LOADERS, "causal"])
    parser.add_argument(
        "--folder",
        nargs="+",
        type=Path,
        default=[],
        help="folders laid out as domain/class/image, such as PACS",
    )
    parser.add_argument("--train", type=Path, help="a folder class/image to train on")
    parser.add_argument(
        "--test", nargs="+", type=Path, default=[], help="folders class/image to test"
    )
    parser.add_argument(
        "--class-names", type=Path, help="a file of lines: folder's name, name"
    )
    parser.add_argument(
        "--limit", type=int, help="images of each class and domain, drawn at random"
    )
    parser.add_argument(
        "--protocol",
        choices=["domainbed", "paper"],
        default="domainbed",
        help="paper: as the authors' released script, for folders",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        metavar="METHOD",
        help="these rows only, such as 'zero-shot'; others of an earlier result stay",
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each target")
    parser.add_argument("--n-jobs", type=int, default=2, help="processes")
    parser.add_argument("--node-modules", type=Path, default=Path("node_modules"))
    add_cache_option(parser, "benchmarks")
    parser.add_argument("--model", default="demo", help="as in CLIPFeaturizer")
    parser.add_argument("--pretrained", default=None, help="as in CLIPFeaturizer")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    if bool(options.train) != bool(options.test):
        parser.error("--train and --test go together")
    if options.protocol == "paper" and not options.folder:
        parser.error("--protocol paper needs a --folder")
    return options


def _setting(options):
    return {
        "model": " ".join(filter(None, [options.model, options.pretrained])),
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu(),
        "n_jobs": options.n_jobs,
        "python": platform.python_version(),
        "versions": {
            "skclip-icm": skclip_icm.__version__,
            **{name: installed(name) for name in PACKAGES},
        },
    }


if __name__ == "__main__":
    main()
