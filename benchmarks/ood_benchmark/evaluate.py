"""Scores of every method and setting, on validation rows and in the unseen domain.

Protocols. "shift": one domain is left out and predicted. "open": half of the classes
are new; representations are fitted on the others, the classifier on the new ones, and
it predicts held-out rows of the training domains. "both": the same, in the unseen
domain. A fifth of the training domains is for validation, as in DomainBed; for new
classes it is for testing, and representations are validated on the other classes.
"""

import time
import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import get_scorer
from threadpoolctl import threadpool_limits

from .data import FITTING
from .methods import CANDIDATES, METHODS, Training, UnavailableError, rescaled

VALIDATION_SHARE = 0.2
IN_DOMAIN, LEFT_OUT = "in-domain", "left-out domains"
LEFT_OUT_WORST = "left-out domains, worst"
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
def evaluate_case(task, case, seed, methods=tuple(METHODS)):
    """Score methods with one domain as target.

    Returns records, one for each protocol, method and setting, and why methods are
    missing, {method: reason}.
    """
    _quieten()
    sources, target = case
    parts = split(task, seed)
    within = np.isin(task.domains, sources)
    records, missing = [], {}
    for protocols, seen in parts.scopes():
        fitting = np.flatnonzero(within & parts.fitting & seen)
        validation = np.flatnonzero(within & parts.validation & seen)
        training = _training(task, fitting, target)
        # First the candidates, for their time without the fits that others share.
        for name in sorted(methods, key=lambda name: name not in CANDIDATES):
            try:
                fitted = list(_fit(task, name, training, fitting))
            except UnavailableError as error:
                missing[name] = str(error)
                continue
            for setting, represent, classifier, fit_seconds in fitted:
                start = time.perf_counter()
                scores = _validate(task, represent, classifier, validation)
                view_seconds = time.perf_counter() - start
                tests = _test(task, case, parts, protocols, represent, classifier, name)
                records += [
                    {
                        "target": task.domain_names[target],
                        "seed": seed,
                        "protocol": protocol,
                        "method": name,
                        "setting": setting,
                        "scores": scores,
                        "metrics": metrics,
                        "seconds": (fit_seconds, view_seconds),
                    }
                    for protocol, metrics in tests.items()
                ]
    return records, missing


@threadpool_limits.wrap(limits=1)
def evaluate_fold(task, remaining, left_out, seed):
    """Score the candidates, fitted on some domains, in each of those left out.

    Returns {(protocol, domain, method, setting): (score, worst score with those under
    the separate interventions)} and {protocol: seconds}.
    """
    _quieten()
    parts = split(task, seed)
    within = np.isin(task.domains, remaining)
    scores, seconds = {}, {}
    for protocols, seen in parts.scopes():
        start = time.perf_counter()
        fitting = np.flatnonzero(within & parts.fitting & seen)
        training = _training(task, fitting, target=None)
        # Groups that were trained on in another domain would be recognised.
        known = np.isin(task.groups, task.groups[fitting]) | task.held_out
        rows = {d: (task.domains == d) & seen & ~known for d in left_out}
        for name in CANDIDATES:
            for setting, represent, classifier, _ in _fit(
                task, name, training, fitting
            ):
                for domain in left_out:
                    views = [task.Z, *np.moveaxis(task.views, 1, 0)]
                    found = [
                        _score(task, classifier, represent, rows[domain], Z)[0]
                        for Z in views
                    ]
                    for protocol in protocols:
                        scores[protocol, domain, name, setting] = found[0], min(found)
        elapsed = time.perf_counter() - start
        seconds |= dict.fromkeys(protocols, elapsed)
    return scores, seconds


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


class NearestPrompt(ClassifierMixin, BaseEstimator):
    """The class whose prompt has the largest cosine, as in ZeroShotClassifier."""

    def fit(self, prompts, classes):
        self.prompts_, self.classes_ = _unit(prompts), np.asarray(classes)
        return self

    def decision_function(self, X):
        cosines = _unit(X) @ self.prompts_.T
        return cosines[:, 1] - cosines[:, 0] if cosines.shape[1] == 2 else cosines

    def predict(self, X):
        return self.classes_[(_unit(X) @ self.prompts_.T).argmax(axis=1)]


def _training(task, rows, target):
    y, pairs = task.target[rows], None
    if task.caption_pairs is not None:
        pairs = task.caption_pairs[:, np.unique(y)]
        pairs = tuple(pairs.reshape(2, -1, task.Z.shape[1]))
    return Training(
        Z=task.Z[rows],
        X_do=task.X_do[rows],
        y=y,
        domains=task.domains[rows],
        target=target,
        unlabelled=task.Z[task.domains == target],
        caption_pairs=pairs,
    )


def _fit(task, name, training, rows):
    """Yield setting, representation, classifier and seconds for each setting."""
    start = time.perf_counter()
    representations = METHODS[name].fit(training)
    shared = (time.perf_counter() - start) / len(representations)
    for setting, represent in representations.items():
        start = time.perf_counter()
        if not METHODS[name].zero_shot:
            represent = rescaled(represent, training)
        classifier = _classifier(task, name, represent, rows)
        yield setting, represent, classifier, shared + time.perf_counter() - start


def _classifier(task, name, represent, rows):
    y = task.target[rows]
    if METHODS[name].zero_shot:
        if task.prompts is None:
            raise UnavailableError("needs a text tower")
        classes = np.unique(y)
        return NearestPrompt().fit(represent(task.prompts[classes], None), classes)
    weights = "balanced" if "balanced_accuracy" in task.metrics else None
    probe = LogisticRegression(C=1, max_iter=1000, class_weight=weights)
    return probe.fit(represent(task.Z[rows], task.domains[rows]), y)


def _validate(task, represent, classifier, rows):
    views = {IN_DOMAIN: task.Z, FITTING: task.X_do}
    views |= {name: task.views[:, k] for k, name in enumerate(task.view_names)}
    return {
        name: _score(task, classifier, represent, rows, Z)[0]
        for name, Z in views.items()
    }


def _test(task, case, parts, protocols, represent, classifier, name):
    """Return {protocol: value of each metric}."""
    sources, target = case
    unseen = (task.domains == target) & parts.test
    if protocols == ("shift",):
        return {"shift": _score(task, classifier, represent, unseen)}
    within = np.isin(task.domains, sources)
    fitting = np.flatnonzero(within & parts.fitting & parts.new)
    classifier = _classifier(task, name, represent, fitting)
    tests = {"open": within & ~parts.fitting, "both": unseen}
    return {
        protocol: _score(task, classifier, represent, rows & parts.new)
        for protocol, rows in tests.items()
    }


def _score(task, classifier, represent, rows, Z=None):
    X = represent((task.Z if Z is None else Z)[rows], task.domains[rows])
    return [
        float(get_scorer(metric)(classifier, X, task.target[rows]))
        for metric in task.metrics
    ]


def _unit(rows):
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _quieten():
    # Large lam on few classes: the single best direction is kept, as documented.
    warnings.filterwarnings("ignore", message="No direction has more variance")
    warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")
