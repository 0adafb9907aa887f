"""Metrics with weights, many at once, and the bootstrap over groups of images."""

from typing import NamedTuple

import numpy as np

N_BOOTSTRAP = 500


class Outcome(NamedTuple):
    """What a classifier makes of rows: all that metrics need."""

    hits: np.ndarray  # bool: predicted right
    margins: np.ndarray  # how much rather the second class than the first


def outcome(logits, y):
    return Outcome(logits.argmax(axis=1) == y, logits[:, 1] - logits[:, 0])


@np.errstate(invalid="ignore")  # NaN where a draw holds no row, or none of a class
def measure(metric, found, y, weights=None):
    """Return a metric, or with `weights` of shape (n, b) an array of b of them."""
    if weights is None:
        return float(measure(metric, found, y, np.ones((len(y), 1)))[0])
    if metric == "accuracy":
        return found.hits @ weights / weights.sum(axis=0)
    if metric == "balanced_accuracy":
        parts = [y == label for label in np.unique(y)]
        recalls = [
            found.hits[part] @ weights[part] / weights[part].sum(axis=0)
            for part in parts
        ]
        return np.mean(recalls, axis=0)
    return _roc_auc(found.margins, y, weights)


def bootstrap_weights(groups, seed=0):
    """Draw groups of rows with replacement: how often each row is in each draw."""
    names, codes = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng(seed)
    shares = np.full(len(names), 1 / len(names))
    counts = rng.multinomial(len(names), shares, size=N_BOOTSTRAP)
    return counts.T[codes].astype(np.float32)


def _roc_auc(margins, y, weights):
    order = np.argsort(margins)
    ties = np.flatnonzero(np.diff(margins[order], prepend=-np.inf))
    weights, positive = weights[order].astype(float), (y[order] == 1)[:, None]
    ups, downs = (
        np.add.reduceat(weights * part, ties, axis=0) for part in (positive, ~positive)
    )
    below = np.cumsum(downs, axis=0) - downs / 2
    return np.sum(ups * below, axis=0) / (ups.sum(axis=0) * downs.sum(axis=0))
