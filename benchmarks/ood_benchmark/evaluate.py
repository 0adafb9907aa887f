"""Scores of every method and setting, on validation rows and in the unseen domain.

Protocols. "shift": one domain is left out and predicted. "open": half of the classes
are new; representations are fitted, and settings chosen, on the others, the classifier
is fitted on the new ones, and it predicts held-out rows of the training domains.
"both": the same, in the unseen domain. A fifth of the training domains is for
validation, as in DomainBed; for new classes it is for testing.
"""

import time
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from .data import FITTING
from .methods import CHOSEN, METHODS, Training, UnavailableError, fit, refit
from .metrics import measure, outcome
from .rules import IN_DOMAIN, RULE, choose

VALIDATION_SHARE = 0.2
PROTOCOLS = ("shift", "open", "both")


@dataclass(frozen=True)
class Split:
    """Masks of shape (n,), and the classes that are new in "open" and "both"."""

    fitting: np.ndarray
    validation: np.ndarray
    test: np.ndarray  # in an unseen domain
    new: np.ndarray

    def scopes(self):
        """Yield protocols, and the rows whose classes their representations may see."""
        yield ("shift",), np.ones(len(self.new), dtype=bool)
        if self.new.any():
            yield ("open", "both"), ~self.new


def split(task, seed):
    rng = np.random.default_rng(seed)
    _, first, groups = np.unique(task.groups, return_index=True, return_inverse=True)
    validation = np.zeros(len(first), dtype=bool)
    strata = np.stack([task.domains, task.target, task.held_out], axis=1)[first]
    for stratum in np.unique(strata, axis=0):
        members = rng.permutation(np.flatnonzero((strata == stratum).all(axis=1)))
        validation[members[: round(VALIDATION_SHARE * len(members))]] = True
    validation = validation[groups] & ~task.held_out
    classes = rng.permutation(np.unique(task.target))
    n_new = len(classes) // 2 if len(classes) >= 4 else 0
    return Split(
        fitting=~validation & ~task.held_out,
        validation=validation,
        test=task.held_out if task.held_out.any() else np.full(len(groups), True),
        new=np.isin(task.target, classes[:n_new]),
    )


@threadpool_limits.wrap(limits=1)
def evaluate_case(task, case, seed, names=tuple(METHODS)):
    """Score methods with one domain as target.

    Returns records, one for each protocol, method and setting tested; for each protocol
    the test rows and, by method, what the chosen setting makes of them; and why methods
    are missing, {method: reason}.
    """
    sources, target = case
    parts = split(task, seed)
    within = np.isin(task.domains, sources)
    unseen = (task.domains == target) & parts.test
    records, outcomes, missing = [], {}, {}
    for protocols, seen in parts.scopes():
        training = _training(task, within & parts.fitting & seen, target)
        validation = np.flatnonzero(within & parts.validation & seen)
        views = _Views(task, validation, training.classes)
        shift = protocols == ("shift",)
        tests, fitted_on = {"shift": unseen}, training
        if not shift:
            fitted_on = _training(task, within & parts.fitting & parts.new, target)
            tests = {"open": within & ~parts.fitting, "both": unseen}
        tests = {
            protocol: np.flatnonzero(rows & np.isin(task.target, fitted_on.classes))
            for protocol, rows in tests.items()
        }
        found = {protocol: {} for protocol in tests}
        tried = {}
        for name in names:
            if METHODS[name].shift_only and not shift:
                continue
            start = time.perf_counter()
            try:
                models = dict(fit(name, training))
            except UnavailableError as error:
                missing[name] = str(error)
                continue
            about = {
                "target": task.domain_names[target],
                "seed": seed,
                "method": name,
            }
            tried[name] = [
                {**about, "setting": setting, "scores": views.score(model)}
                for setting, model in models.items()
            ]
            seconds = (time.perf_counter() - start) / len(models)
            best = choose(tried[name], RULE)
            # New classes take fits of their own, so there only the chosen is tested.
            for record in tried[name] if shift else [best]:
                model = models[record["setting"]]
                if not shift:
                    model = refit(name, model, fitted_on, record["setting"])
                for protocol, rows in tests.items():
                    result = _test(task, model, rows, fitted_on.classes)
                    if record is best:
                        found[protocol][name] = result
                    y = np.searchsorted(fitted_on.classes, task.target[rows])
                    values = [measure(m, result, y) for m in task.metrics]
                    records.append(
                        {
                            **record,
                            "protocol": protocol,
                            "metrics": values,
                            "seconds": seconds,
                        }
                    )
        for name, candidates in CHOSEN.items():
            pool = [r for method in candidates for r in tried.get(method, [])]
            if pool and set(candidates) <= set(tried):
                best = choose(pool, RULE)
                for results in found.values():
                    results[name] = results[best["method"]]
        outcomes |= {p: (tests[p], results) for p, results in found.items()}
    return records, outcomes, missing


@threadpool_limits.wrap(limits=1)
def evaluate_fold(task, remaining, left_out, seed):
    """Score what "ICM, chosen" takes the best of, without one more training domain.

    Returns {(domain, method, setting): score} for each domain left out.
    """
    parts = split(task, seed)
    fitting = np.isin(task.domains, remaining) & parts.fitting
    training = _training(task, fitting, None)
    # Groups that were trained on in another domain would be recognised.
    known = np.isin(task.groups, task.groups[fitting]) | task.held_out
    scores = {}
    for name in CHOSEN["ICM, chosen"]:
        for setting, model in fit(name, training):
            for domain in left_out:
                rows = np.flatnonzero((task.domains == domain) & ~known)
                result = _test(task, model, rows, training.classes)
                y = np.searchsorted(training.classes, task.target[rows])
                scores[domain, name, setting] = measure(task.metrics[0], result, y)
    return scores


def folds(task):
    """Yield (remaining domains, domains left out) for leave-one-domain-out.

    Leaving out *e* when *t* is the target, or *t* when *e* is, is the same fit.
    """
    by_remaining = {}
    for sources, _ in task.cases:
        for domain in sources:
            remaining = tuple(other for other in sources if other != domain)
            if remaining:
                by_remaining.setdefault(remaining, set()).add(domain)
    for remaining, left_out in by_remaining.items():
        yield remaining, sorted(left_out)


class _Views:
    """Validation rows as they are, by the fitting intervention and by each other."""

    def __init__(self, task, rows, classes):
        self.names = (IN_DOMAIN, FITTING, *task.view_names)
        views = [task.Z[rows], task.X_do[rows]]
        views += [task.views[rows, k] for k in range(len(task.view_names))]
        self.Z = np.concatenate(views)
        self.domains = np.tile(task.domains[rows], len(views))
        self.y = np.searchsorted(classes, task.target[rows])
        self.metric = task.metrics[0]

    def score(self, model):
        logits = np.split(model.logits(self.Z, self.domains), len(self.names))
        return {
            name: measure(self.metric, outcome(part, self.y), self.y)
            for name, part in zip(self.names, logits, strict=True)
        }


def _training(task, mask, target):
    rows = np.flatnonzero(mask)
    classes, y = np.unique(task.target[rows], return_inverse=True)
    lacks_text = task.prompts is None
    return Training(
        Z=task.Z[rows],
        X_do=task.X_do[rows],
        y=y,
        classes=classes,
        domains=task.domains[rows],
        target=target,
        unlabelled=task.Z[task.domains == target],
        balanced="balanced_accuracy" in task.metrics,
        prompts=None if lacks_text else task.prompts[classes],
        caption_pairs=None if lacks_text else task.caption_pairs[:, classes],
    )


def _test(task, model, rows, classes):
    """Predict rows, among the classes that occur in them."""
    logits = model.logits(task.Z[rows], task.domains[rows])
    absent = ~np.isin(classes, task.target[rows])
    logits[:, absent] = -np.inf
    return outcome(logits, np.searchsorted(classes, task.target[rows]))
