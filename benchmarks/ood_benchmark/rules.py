"""Which candidate to take, by scores that need no label of the target domain."""

import numpy as np

from .data import FITTING
from .evaluate import IN_DOMAIN, LEFT_OUT, LEFT_OUT_WORST
from .methods import CANDIDATES

_VIEWS, _TARGET = "views", "target"

# Each rule maps the scores of a candidate to one number; the largest wins.
RULES = {
    "in-domain validation": lambda s: s[IN_DOMAIN],
    "one photometric counterpart": lambda s: s[FITTING],
    "separate interventions, mean": lambda s: np.mean(s[_VIEWS]),
    "separate interventions, worst": lambda s: np.min(s[_VIEWS]),
    "leave one domain out": lambda s: s[LEFT_OUT],
    "domain left out, worst of all views": lambda s: _else_worst(s[LEFT_OUT_WORST], s),
    "mean of left-out and worst": lambda s: _with_worst(np.mean, s),
    "minimum of left-out and worst": lambda s: _with_worst(np.min, s),
    "oracle (target labels)": lambda s: s[_TARGET],
}

#: By which "ICM, chosen" is chosen.
RECIPE = "separate interventions, worst"
#: By which each method's own parameters are chosen.
METHOD_RULE = "separate interventions, worst"

CHOSEN = "ICM, chosen"


def choose(records, rule, view_names):
    """Return the record that a rule prefers, the earliest on a tie.

    None if the rule does not exist for these records.
    """
    values = [RULES[rule](_named(record, view_names)) for record in records]
    if not values or np.isnan(values).any():
        return None
    return records[int(np.argmax(values))]


def candidates(records):
    """The records of what "ICM, chosen" chooses from."""
    chosen = [record for record in records if record["method"] in CANDIDATES]
    return sorted(chosen, key=lambda record: CANDIDATES.index(record["method"]))


def seconds(records, rule):
    """Time to fit the candidates and to score them as a rule needs."""
    fit, views = np.sum([record["seconds"] for record in records], axis=0)
    folds = records[0]["fold_seconds"]
    if rule in ("leave one domain out", "domain left out, worst of all views"):
        return fit + folds
    if rule.startswith("in-domain") or rule.startswith("oracle"):
        return fit
    return fit + views + (folds if "left-out" in rule else 0)


def _named(record, view_names):
    scores = record["scores"]
    views = [scores[name] for name in view_names]
    return {**scores, _VIEWS: views, _TARGET: record["metrics"][0]}


def _with_worst(combine, scores):
    """Leave-one-domain-out with the worst intervention; the latter alone if need be."""
    both = combine([scores[LEFT_OUT], np.min(scores[_VIEWS])])
    return _else_worst(both, scores)


def _else_worst(score, scores):
    """`score`, or the worst intervention where there is one training domain."""
    return np.min(scores[_VIEWS]) if np.isnan(score) else score
