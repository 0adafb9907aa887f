"""What is written: means and standard errors, as JSON and as Markdown."""

import json
import math
from itertools import groupby

import numpy as np

from .evaluate import IN_DOMAIN, LEFT_OUT, LEFT_OUT_WORST, PROTOCOLS
from .methods import METHODS
from .rules import CHOSEN, METHOD_RULE, RECIPE, RULES, candidates, choose, seconds

BASELINE = "linear probe"
ROWS = (*METHODS, CHOSEN)

TITLES = {
    "shift": "Domain shift: an unseen domain",
    "open": "Open class: unseen classes in the training domains",
    "both": "Both: unseen classes in an unseen domain",
}


def summarise(result):
    """Add to a result, by protocol, the value of each method and of each rule.

    A value is {metric: [mean, standard error]} over seeds and targets; "minus probe"
    is the difference in the first metric, run by run.
    """
    records, views = result["records"], result["views"]
    rows, rules = {}, {}
    for protocol in PROTOCOLS:
        runs = _runs(records, protocol)
        if not runs:
            continue
        by_rule = {
            rule: [choose(candidates(run), rule, views) for run in runs]
            for rule in RULES
        }
        baseline = _picks(runs, BASELINE, views)
        rows[protocol] = {
            name: _value(_picks(runs, name, views), baseline, result["metrics"])
            for name in METHODS
        }
        rules[protocol] = {
            rule: _value(picks, baseline, result["metrics"])
            for rule, picks in by_rule.items()
        }
        for rule, value in rules[protocol].items():
            if value is not None:
                value["seconds"] = float(
                    np.mean([seconds(candidates(run), rule) for run in runs])
                )
    return {**result, "methods": rows, "rules": rules}


def replace(result, new):
    """Put the rows of `new`, a run of some methods only, in place of those in `result`.

    What each rule attains stays: it is about methods that are not replaced.
    """
    names = {record["method"] for record in new["records"]}
    kept = [r for r in result["records"] if r["method"] not in names]
    result = {**result, "records": kept + new["records"]}
    result["date"] = new["date"]
    for protocol, rows in result["methods"].items():
        runs = _runs(result["records"], protocol)
        baseline = _picks(runs, BASELINE, new["views"])
        for name in (name for name in METHODS if name in names or name not in rows):
            picks = _picks(runs, name, new["views"])
            rows[name] = _value(picks, baseline, result["metrics"])
    return result


def _picks(runs, method, views):
    """The record of each run whose setting of a method is chosen."""
    return [
        choose([r for r in run if r["method"] == method], METHOD_RULE, views)
        for run in runs
    ]


def from_json(text):
    """Read what `to_json` has written, but for the times of single runs."""
    result = json.loads(text)
    columns, n_metrics = result.pop("columns"), len(result["metrics"])
    records = []
    for row in result["records"]:
        record = dict(zip(columns[:5], row, strict=False))
        record["scores"] = dict(zip(columns[5:-n_metrics], row[5:], strict=False))
        record["metrics"] = row[-n_metrics:]
        record["scores"] = {
            name: math.nan if score is None else score
            for name, score in record["scores"].items()
        }
        records.append(record)
    return {**result, "records": records}


def _with_recipe(result):
    """Add the row of what the documented rule chooses."""
    rows = {
        protocol: {**methods, CHOSEN: result["rules"][protocol][RECIPE]}
        for protocol, methods in result["methods"].items()
    }
    return {**result, "methods": rows}


def to_json(result):
    """One line for each record, so that a file stays small and can be compared."""
    columns = ["target", "seed", "protocol", "method", "setting", IN_DOMAIN]
    left = (LEFT_OUT, LEFT_OUT_WORST)
    scores = result["records"][0]["scores"]
    views = [name for name in scores if name not in (*columns, *left)]
    lines = [
        json.dumps(
            [record[column] for column in columns[:-1]]
            + [_rounded(record["scores"][v]) for v in (IN_DOMAIN, *views, *left)]
            + [_rounded(value) for value in record["metrics"]]
        )
        for record in result["records"]
    ]
    head = {key: value for key, value in result.items() if key != "records"}
    head["columns"] = [*columns, *views, *left, *result["metrics"]]
    text = json.dumps(_rounded(head), indent=1)
    return f'{text[:-2]},\n "records": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"


def to_markdown(results):
    """The summary of all data sets, then one table for each."""
    lines = [
        "# Out of distribution",
        "",
        "Percent points, mean ± standard error over seeds and targets. Written by "
        "`python benchmarks/ood.py`; all numbers are in the JSON files beside this "
        "one.",
        "",
        *(f"- {r['data']}: {_metric(r)}. {r['description']}" for r in results),
        "",
        "Every classifier is a logistic regression with C = 1 on rows of mean squared "
        "norm 1, or the prompts `a photo of a {}.` (zero-shot). Parameters of a method "
        f"are chosen by *{METHOD_RULE}*. *{CHOSEN}* takes the best of the linear "
        "probe, projections and whitenings (interventional pairs) by "
        f"*{RECIPE}*. Transductive methods, marked †, see the unlabelled images of the "
        "target.",
        "",
    ]
    for protocol in PROTOCOLS:
        lines += [f"## {TITLES[protocol]}", ""]
        having = [_with_recipe(r) for r in results if protocol in r["methods"]]
        lacking = [r["data"] for r in results if protocol not in r["methods"]]
        if lacking:
            lines += [f"Fewer than four classes, so not defined: {', '.join(lacking)}."]
            lines += [""]
        if having:
            lines += _matrix(having, protocol, "methods", ROWS)
    lines += [
        "## Choosing without target labels",
        "",
        f"What each rule attains in the unseen domain, choosing as *{CHOSEN}* does. "
        "With one training domain, leave-one-domain-out does not exist (–), and rules "
        "that use it fall back on the worst intervention. Seconds, on one core, are to "
        "fit and score all candidates once, without encoding.",
        "",
        *_matrix(results, "shift", "rules", RULES),
        *_matrix(results, "shift", "rules", RULES, cell=_seconds, mean=False),
    ]
    for result in results:
        lines += [f"## {result['data']}", "", *_own_table(result)]
    return "\n".join(lines)


def _runs(records, protocol):
    def run(record):
        return record["target"], record["seed"]

    chosen = sorted((r for r in records if r["protocol"] == protocol), key=run)
    return [list(group) for _, group in groupby(chosen, run)]


def _value(picks, baseline, metrics):
    if None in picks:
        return None
    values = np.array([pick["metrics"] for pick in picks])
    probe = np.array([pick["metrics"] for pick in baseline])
    value = {m: _mean_and_error(values[:, i]) for i, m in enumerate(metrics)}
    value["minus probe"] = _mean_and_error(values[:, 0] - probe[:, 0])
    return value


def _mean_and_error(values):
    n = len(values)
    error = float(np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else None
    return [float(np.mean(values)), error]


def _matrix(results, protocol, part, names, cell=None, mean=True):
    """Names down, data sets across, and their mean."""
    cell = cell or (lambda value, result: _points(value[result["metrics"][0]]))
    head = ["", *(r["data"] for r in results), *(["mean"] if mean else [])]
    lines = ["| " + " | ".join(head) + " |"]
    lines += ["|---|" + "---:|" * (len(head) - 1)]
    for name in names:
        values = [r[part][protocol][name] for r in results]
        cells = [
            "–" if value is None else cell(value, result)
            for value, result in zip(values, results, strict=True)
        ]
        if mean:
            cells.append(_mean_of_all(values, results))
        lines.append(f"| {_label(name)} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _mean_of_all(values, results):
    if None in values:
        return "–"
    firsts = [v[r["metrics"][0]][0] for v, r in zip(values, results, strict=True)]
    return f"{100 * np.mean(firsts):.1f}"


def _own_table(result):
    result = _with_recipe(result)
    protocols = list(result["methods"])
    head = [
        f"{protocol}: {metric}"
        for protocol in protocols
        for metric in (*result["metrics"], "minus probe")
    ]
    lines = [
        f"{result['description']} {result['n_images']:,} images, "
        f"{result['n_seeds']} seeds; targets: {', '.join(result['targets'])}.",
        "",
        "| | " + " | ".join(h.replace("_", " ") for h in head) + " |",
        "|---|" + "---:|" * len(head),
    ]
    for name in ROWS:
        values = [result["methods"][protocol][name] for protocol in protocols]
        if None in values:
            cells = [result["missing"][name], *[""] * (len(head) - 1)]
        else:
            keys = (*result["metrics"], "minus probe")
            cells = [_points(value[key]) for value in values for key in keys]
        lines.append(f"| {_label(name)} | " + " | ".join(cells) + " |")
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    return [
        *lines,
        "",
        f"{result['date']}, {result['cpu']}, model {result['model']}, seeds 0 to "
        f"{result['n_seeds'] - 1}, {versions}. Encoding took "
        f"{result['encoding_seconds']:.0f} s (0 if kept from earlier), the rest "
        f"{result['seconds']:.0f} s.",
        "",
    ]


def _label(name):
    return name + (" †" if name in METHODS and METHODS[name].transductive else "")


def _metric(result):
    return " and ".join(m.replace("_", " ") for m in result["metrics"])


def _points(value):
    mean, error = value
    return f"{100 * mean:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")


def _seconds(value, result):
    return f"{value['seconds']:.1f} s"


def _rounded(value):
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 4)
    return value
