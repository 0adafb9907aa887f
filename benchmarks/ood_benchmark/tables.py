"""The summary of all data sets as Markdown."""

import numpy as np

from .evaluate import PROTOCOLS
from .methods import BASELINE, METHODS, ROWS, is_transductive
from .rules import RULE, RULES
from .sources import LOADERS
from .summary import RULES_SEED

TITLES = {
    "shift": "Domain shift: an unseen domain",
    "open": "Open class: unseen classes in the training domains",
    "both": "Both: unseen classes in an unseen domain",
}


def to_markdown(results):
    """The summary of all data sets, then one table for each."""
    lines = [
        "# Out of distribution",
        "",
        "Percent points ± standard error, from a bootstrap over groups of images. "
        "Written by `python benchmarks/ood.py`; all numbers are in the JSON files "
        "beside this one.",
        "",
        *(f"- {r['data']}: {_metric(r)}. {r['description']}" for r in results),
        "",
        "Every method chooses its own parameters and C, from one list of C for all, by "
        f"one rule: held-out rows of the training domains, *{RULE}*, none of which "
        "methods were fitted with. An asterisk: most often a value at an end of its "
        "grid was chosen, and none within did as well. Rows are scaled to mean "
        "squared norm 1 for every classifier. †: transductive, sees the unlabelled "
        "images of the target. Where a data set was not used to settle rule and grids, "
        "its column stands apart, after the means.",
        "",
    ]
    for protocol in PROTOCOLS:
        having = [r for r in results if protocol in r["methods"]]
        if not having:
            continue
        lines += [f"## {TITLES[protocol]}", ""]
        if lacking := [r["data"] for r in results if protocol not in r["methods"]]:
            lines += [f"Fewer than four classes: {', '.join(lacking)}.", ""]
        lines += _matrix(having, protocol)
        lines += [
            f"Less *{BASELINE}*, on the same draws of images:",
            "",
            *_matrix(having, protocol, "minus baseline"),
        ]
    lines += [
        "## Choosing without target labels",
        "",
        "What each rule attains in the unseen domain, choosing as *ICM, chosen* does, "
        f"with seed {RULES_SEED}. With one training domain, none can be left out.",
        "",
        *_rules(results),
    ]
    for result in results:
        lines += [f"## {result['data']}", "", *_own_table(result)]
    return "\n".join(lines)


def _means(results):
    """Columns of means: titles, and the data sets in each. Metrics are never mixed."""
    ours = [r for r in results if r["data"] in LOADERS]
    columns = []
    for metric in dict.fromkeys(r["metrics"][0] for r in ours):
        of_metric = [r for r in ours if r["metrics"][0] == metric]
        rest = [r for r in of_metric if r["data"] != "cmnist"]
        title = f"mean {metric.replace('_', ' ')}"
        if len(of_metric) > 1:
            columns.append((title, of_metric))
        if 1 < len(rest) < len(of_metric):
            columns.append((f"{title} without cmnist", rest))
    return columns


def _matrix(results, protocol, key=None):
    """Names down, data sets and means across."""
    ours = [r for r in results if r["data"] in LOADERS]
    others = [r for r in results if r["data"] not in LOADERS]
    means = _means(results)
    head = [*(r["data"] for r in ours), *(t for t, _ in means)]
    head += [r["data"] for r in others]
    lines = ["| | " + " | ".join(head) + " |", "|---|" + "---:|" * len(head)]
    for name in ROWS:
        if not any(name in r["methods"][protocol] for r in results):
            continue
        cells = [_cell(r, protocol, name, key) for r in ours]
        cells += [_mean(group, protocol, name, key) for _, group in means]
        cells += [_cell(r, protocol, name, key) for r in others]
        lines.append(f"| {_label(name)} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _cell(result, protocol, name, key):
    value = result["methods"][protocol].get(name)
    if value is None:
        return "–"
    mark = "*" if value["at end"] and key is None else ""
    return _points(value[key or result["metrics"][0]]) + mark


def _mean(results, protocol, name, key):
    values = [r["methods"][protocol].get(name) for r in results]
    if None in values:
        return "–"
    keys = [key or r["metrics"][0] for r in results]
    pairs = np.array([v[k] for v, k in zip(values, keys, strict=True)])
    # Of different data sets, so independent.
    error = np.sqrt(np.sum(pairs[:, 1] ** 2)) / len(pairs)
    return _points((pairs[:, 0].mean(), error))


def _rules(results):
    names = [r["data"] for r in results]
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for rule in RULES:
        values = [r["rules"].get(rule) for r in results]
        cells = ["–" if v is None else f"{100 * v:.1f}" for v in values]
        lines.append(f"| {rule} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _own_table(result):
    protocols = list(result["methods"])
    keys = (*result["metrics"], "minus baseline")
    head = [f"{p}: {k.replace('_', ' ')}" for p in protocols for k in keys]
    head.append("chosen most often (shift)")
    lines = [
        f"{result['description']} {result['n_images']:,} images, "
        f"{result['n_seeds']} seeds; targets: {', '.join(result['targets'])}. "
        f"Validation under {', '.join(result['views'])}.",
        "",
        "| | " + " | ".join(head) + " |",
        "|---|" + "---:|" * (len(head) - 1) + "---|",
    ]
    for name in ROWS:
        values = [result["methods"][protocol].get(name) for protocol in protocols]
        if not any(values):
            continue
        cells = [
            "–" if value is None else _points(value[key])
            for value in values
            for key in keys
        ]
        chosen = values[0]["chosen"] if values[0] else ""
        lines.append(f"| {_label(name)} | " + " | ".join([*cells, chosen]) + " |")
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    absent = [f"{n}: {why}" for n, why in result["missing"].items() if n in METHODS]
    return [
        *lines,
        "",
        *([f"Absent: {'; '.join(absent)}.", ""] if absent else []),
        f"{result['date']}, {result['cpu']}, model {result['model']}, seeds 0 to "
        f"{result['n_seeds'] - 1}, {versions}. Encoding took "
        f"{result['encoding_seconds']:.0f} s (0 if kept from earlier), the rest "
        f"{result['seconds']:.0f} s.",
        "",
    ]


def _label(name):
    return name + (" †" if is_transductive(name) else "")


def _metric(result):
    return " and ".join(m.replace("_", " ") for m in result["metrics"])


def _points(value):
    mean, error = value
    return f"{100 * mean:.1f} ± {100 * error:.1f}"
