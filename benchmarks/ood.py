"""Every system of the paper, and what people would use instead, on unseen domains.

    python benchmarks/ood.py --node-modules node_modules
    python benchmarks/ood.py --folder PACS --model ViT-B-16 --pretrained openai

Data sets: ELPV, emoji styles, coloured and rotated MNIST, corrupted ELPV, or any folder
laid out as domain/class/image. Writes benchmarks/results/ood-<data>.json for each, and
benchmarks/results/ood.md from all such files that are there.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from machine import cpu, installed
from ood_benchmark.data import LOADERS, load_task
from ood_benchmark.evaluate import (
    LEFT_OUT,
    LEFT_OUT_WORST,
    evaluate_case,
    evaluate_fold,
    folds,
)
from ood_benchmark.methods import METHODS
from ood_benchmark.tables import (
    from_json,
    replace,
    summarise,
    to_json,
    to_markdown,
)
from tqdm import tqdm

import skclip_icm
from skclip_icm import CLIPFeaturizer
from skclip_icm.demo.__main__ import add_cache_option

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("numpy scipy scikit-learn torch open_clip_torch concept-erasure").split()


def main(argv=None):
    options = _parse(argv)
    featurizer = CLIPFeaturizer(
        options.model, options.pretrained, cache=options.cache, verbose=True
    )
    options.results.mkdir(parents=True, exist_ok=True)
    for name in [*_asked(options), *options.folder]:
        try:
            task = load_task(name, featurizer, options.node_modules)
        except (FileNotFoundError, ImportError) as error:
            if options.data or name in options.folder:
                raise
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        result = run(task, options.seeds, options.n_jobs, options.methods)
        result |= _setting(options)
        path = options.results / f"ood-{task.name}.json"
        if options.methods:
            result = replace(from_json(path.read_text(encoding="utf-8")), result)
        else:
            result = summarise(result)
        path.write_text(to_json(result), encoding="utf-8")
        print(f"Wrote {path}.")
    write_summary(options.results)


def run(task, n_seeds=3, n_jobs=1, methods=None):
    """Evaluate a data set; return what its JSON file holds, but for the setting."""
    start = time.perf_counter()
    seeds = range(n_seeds)
    left_out = [(seed, *fold) for seed in seeds for fold in folds(task)]
    if methods:  # some only, and none of those that are fitted without each domain
        left_out = []
    cases = [(case, seed) for seed in seeds for case in task.cases]
    calls = [
        *(
            delayed(evaluate_case)(task, *call, methods or tuple(METHODS))
            for call in cases
        ),
        *(delayed(evaluate_fold)(task, *fold, seed) for seed, *fold in left_out),
    ]
    parallel = Parallel(n_jobs, return_as="generator")
    done = list(tqdm(parallel(calls), task.name, total=len(calls), unit="fit"))
    fold_results = {
        (seed, remaining): result
        for (seed, remaining, _), result in zip(
            left_out, done[len(cases) :], strict=True
        )
    }
    records, missing = [], {}
    for (case, seed), (found, lacking) in zip(cases, done, strict=False):
        _add_left_out(found, case, seed, fold_results if not methods else None)
        records += found
        missing |= lacking
    return {
        "data": task.name,
        "description": task.description,
        "n_images": len(task.target),
        "classes": task.class_names,
        "domains": task.domain_names,
        "targets": [task.domain_names[target] for _, target in task.cases],
        "n_seeds": n_seeds,
        "metrics": list(task.metrics),
        "views": list(task.view_names),
        "missing": missing,
        "encoding_seconds": task.encoding_seconds,
        "seconds": time.perf_counter() - start,
        "records": records,
    }


def write_summary(results):
    """Write ood.md from all the JSON files in a folder, in the order of `LOADERS`."""
    paths = sorted(results.glob("ood-*.json"))
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    order = list(LOADERS)
    found.sort(
        key=lambda r: order.index(r["data"]) if r["data"] in order else len(order)
    )
    (results / "ood.md").write_text(to_markdown(found), encoding="utf-8")
    print(f"Wrote {results / 'ood.md'}.")


def _add_left_out(records, case, seed, fold_results):
    """Give each record its mean score in the domains left out, and their time."""
    sources, _ = case
    scored = []
    for domain in sources if fold_results is not None else ():
        remaining = tuple(other for other in sources if other != domain)
        if remaining:
            scored.append((domain, *fold_results[seed, remaining]))
    for record in records:
        protocol = record["protocol"]
        key = record["method"], record["setting"]
        values = [
            scores[protocol, domain, *key]
            for domain, scores, _ in scored
            if (protocol, domain, *key) in scores
        ]
        means = np.mean(values, axis=0).tolist() if values else (np.nan, np.nan)
        record["scores"] |= dict(zip((LEFT_OUT, LEFT_OUT_WORST), means, strict=True))
        record["fold_seconds"] = sum(seconds[protocol] for *_, seconds in scored)


def _asked(options):
    return options.data or ([] if options.folder else list(LOADERS))


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
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        metavar="METHOD",
        help="renew these rows of an earlier result, such as 'zero-shot'",
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each target")
    parser.add_argument("--n-jobs", type=int, default=2, help="processes")
    parser.add_argument("--node-modules", type=Path, default=Path("node_modules"))
    add_cache_option(parser, "benchmarks")
    parser.add_argument("--model", default="demo", help="as in CLIPFeaturizer")
    parser.add_argument("--pretrained", default=None, help="as in CLIPFeaturizer")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args(argv)


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
