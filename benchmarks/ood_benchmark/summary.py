"""From what single runs found to means, errors and chosen settings; and as JSON."""

import json
import math
from collections import Counter
from itertools import groupby

import numpy as np

from .evaluate import PROTOCOLS
from .methods import BASELINE, CHOSEN, ROWS
from .metrics import bootstrap_weights, measure
from .rules import IN_DOMAIN, LEFT_OUT, RULE, RULES, choose

RULES_SEED = 0  # the one for which training domains are left out as well


def summarise(task, runs):
    """Return the values of all rows, by protocol, and of all rules.

    `runs` holds (records, outcomes) of each target and seed. A value is {metric: [mean,
    error]} over them, errors by a bootstrap over groups of images; "minus baseline" is
    the difference in the first metric, on the same draws.
    """
    weights = bootstrap_weights(task.groups)
    records = [record for found, _ in runs for record in found]
    rows = {}
    for protocol in PROTOCOLS:
        cells = [outcomes[protocol] for _, outcomes in runs if protocol in outcomes]
        if not cells:
            continue
        present = [name for name in ROWS if all(name in found for _, found in cells)]
        values = {name: _draws(task, cells, name, weights) for name in present}
        rows[protocol] = {
            name: {
                **{m: _value(drawn[:, i]) for i, m in enumerate(task.metrics)},
                "minus baseline": _value(drawn[:, 0] - values[BASELINE][:, 0]),
                **_choices(records, protocol, name),
            }
            for name, drawn in values.items()
        }
    return {"methods": rows, "rules": _rules(records)}


def renew(old, new):
    """Put the rows of `new`, of some methods, in place of those of an earlier result.

    What each rule attains stays, and rows that choose among several methods.
    """
    names = {record["method"] for record in new["records"]}
    kept = [record for record in old["records"] if record["method"] not in names]
    methods = {
        protocol: {**old["methods"].get(protocol, {}), **rows}
        for protocol, rows in new["methods"].items()
    }
    missing = {n: why for n, why in old["missing"].items() if n not in names}
    return {
        **old,
        "date": new["date"],
        "methods": methods,
        "missing": missing | new["missing"],
        "records": kept + new["records"],
    }


def to_json(result):
    """One line for each record, so that a file stays small and can be compared."""
    views = list(result["records"][0]["scores"])
    if any(LEFT_OUT in record["scores"] for record in result["records"]):
        views = [name for name in views if name != LEFT_OUT] + [LEFT_OUT]
    about = ["target", "seed", "protocol", "method", "setting"]
    lines = [
        json.dumps(
            [*(record[column] for column in about)]
            + [_rounded(record["scores"].get(view, math.nan)) for view in views]
            + [_rounded(value) for value in record["metrics"]]
        )
        for record in result["records"]
    ]
    head = {key: value for key, value in result.items() if key != "records"}
    head["columns"] = [*about, *views, *result["metrics"]]
    text = json.dumps(_rounded(head), indent=1)
    return f'{text[:-2]},\n "records": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"


def from_json(text):
    """Read what `to_json` has written."""
    result = json.loads(text)
    columns, n_metrics = result.pop("columns"), len(result["metrics"])
    n_about = columns.index(IN_DOMAIN)
    records = []
    for row in result["records"]:
        record = dict(zip(columns[:n_about], row, strict=False))
        scores = zip(columns[n_about:-n_metrics], row[n_about:], strict=False)
        record["scores"] = {k: v for k, v in scores if v is not None}
        record["metrics"] = row[-n_metrics:]
        records.append(record)
    return {**result, "records": records}


def _draws(task, cells, name, weights):
    """The metrics, as they are and on each draw, averaged over runs: (1 + b, m)."""
    drawn = []
    for rows, found in cells:
        y = task.target[rows]
        both = np.concatenate([np.ones((len(rows), 1)), weights[rows]], axis=1)
        drawn.append([measure(m, found[name], y, both) for m in task.metrics])
    return np.mean(drawn, axis=0).T


def _value(drawn):
    """Mean, and standard error: the standard deviation over the draws."""
    return [float(drawn[0]), float(np.nanstd(drawn[1:], ddof=1))]


def _choices(records, protocol, name):
    """What was chosen most often, and which parameters at an end of their grid."""
    names = CHOSEN.get(name, (name,))
    mine = [r for r in records if r["method"] in names]
    # On new classes, only what was chosen is tested.
    tested = [r for r in mine if r["protocol"] == protocol]
    runs = _runs(tested) if protocol == "shift" else [[record] for record in tested]
    picks = [choose(run, RULE) for run in runs]
    if name in CHOSEN:
        if protocol != "shift":
            return {"chosen": "", "at end": []}
        counts = Counter(pick["method"] for pick in picks)
        return {
            "chosen": ", ".join(f"{k} {v}" for k, v in counts.items()),
            "at end": [],
        }
    grids, chosen = {}, {}
    for record in mine:
        for parameter, value in _pairs(record["setting"]):
            grids.setdefault(parameter, set()).add(value)
    for pick in picks:
        for parameter, value in _pairs(pick["setting"]):
            chosen.setdefault(parameter, Counter())[value] += 1
    described, at_end = [], []
    for parameter, counts in chosen.items():
        value, count = counts.most_common(1)[0]
        numbers = [v for v in grids[parameter] if not isinstance(v, str)]
        ends = (min(numbers), max(numbers)) if len(numbers) > 2 else ()
        is_end = value in ends and any(
            _is_best_alone(run, pick, parameter, ends)
            for run, pick in zip(runs, picks, strict=True)
            if (parameter, value) in _pairs(pick["setting"])
        )
        at_end += [parameter] if is_end else []
        share = "" if count == len(picks) else f" ({count} of {len(picks)})"
        described.append(f"{parameter} {value}{'*' if is_end else ''}{share}")
    plain = len(picks) - sum(bool(pick["setting"]) for pick in picks)
    if plain and chosen:
        described.append(f"plain ({plain} of {len(picks)})")
    return {"chosen": ", ".join(described), "at end": at_end}


def _is_best_alone(run, pick, parameter, ends):
    """Whether no value within the grid does as well by the rule as that at its end."""
    best = RULES[RULE](pick)
    alike = [record for record in run if RULES[RULE](record) == best]
    values = [dict(_pairs(record["setting"])).get(parameter) for record in alike]
    return all(value in ends for value in values)


def _rules(records):
    """The first metric that each rule attains, choosing as "ICM, chosen" does."""
    candidates = [
        record
        for method in CHOSEN["ICM, chosen"]
        for record in records
        if record["method"] == method
        and record["protocol"] == "shift"
        and record["seed"] == RULES_SEED
    ]
    values = {}
    for rule in RULES:
        picks = [choose(run, rule) for run in _runs(candidates)]
        known = picks and None not in picks
        values[rule] = (
            float(np.mean([p["metrics"][0] for p in picks])) if known else None
        )
    return values


def _runs(records):
    def run(record):
        return record["target"], record["seed"]

    return [list(group) for _, group in groupby(sorted(records, key=run), run)]


def _pairs(setting):
    return list(zip(setting[::2], setting[1::2], strict=True))


def _rounded(value):
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 4)
    return value
