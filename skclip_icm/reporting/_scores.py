"""Scores of fitted classifiers, domain by domain."""

import numpy as np
from scipy.special import ndtri
from sklearn.metrics import check_scoring
from sklearn.utils import _safe_indexing

from skclip_icm._labels import comparable
from skclip_icm.plotting._axes import name_metric

ACCURACY, BALANCED = "accuracy", "balanced accuracy"


class Scores:
    """What methods predict, and how well they do in each domain.

    Attributes
    ----------
    by_method : dict of str to dict of str to dict of str to float
        For each method, for each domain, each measure.
    predictions : dict of str to ndarray of shape (n,)
        What each method predicts.
    counts : dict of str to int
        Rows of each domain.
    """

    def __init__(self, by_method, predictions, counts):
        self.by_method = by_method
        self.predictions = predictions
        self.counts = counts

    @property
    def measures(self):
        """Names of the measures, accuracy first."""
        by_domain = next(iter(self.by_method.values()))
        return list(next(iter(by_domain.values())))

    def over_all(self, method):
        """Accuracy of all rows together."""
        n = np.array(list(self.counts.values()))
        return n @ self.column(method, ACCURACY) / n.sum()

    def column(self, method, measure):
        """One measure of a method in all domains."""
        return np.array([s[measure] for s in self.by_method[method].values()])

    def mean(self, method, measure):
        """Mean over domains, nan if a domain has none."""
        return float(self.column(method, measure).mean())

    def worst(self, method):
        """Domain of lowest accuracy."""
        by_domain = self.by_method[method]
        return min(by_domain, key=lambda domain: by_domain[domain][ACCURACY])

    def summary(self):
        """One line on the first method."""
        method, n = next(iter(self.by_method)), len(self.counts)
        text = f"{method}: accuracy {self.over_all(method):.3f}"
        mean = f", mean of {n} domains {self.mean(method, ACCURACY):.3f}"
        return text + (mean if n > 1 else "")


def score_by_domain(methods, X, y, domains, scoring):
    """Score methods in each domain.

    Parameters
    ----------
    methods : dict of str to estimator
        Fitted.
    X : sequence of length n
        What they predict from.
    y, domains : ndarray of shape (n,)
        Class and domain of each row.
    scoring : str, callable or None
        One more measure.

    Returns
    -------
    scores : Scores
        The scores.
    """
    names = {str(domain): domains == domain for domain in np.unique(domains)}
    predictions = {
        method: comparable(fitted.predict(X), y, method)
        for method, fitted in methods.items()
    }
    by_method = {
        method: {
            domain: _measures(fitted, predictions[method], X, y, rows, scoring)
            for domain, rows in names.items()
        }
        for method, fitted in methods.items()
    }
    counts = {domain: int(rows.sum()) for domain, rows in names.items()}
    return Scores(by_method, predictions, counts)


def wilson_interval(share, n, level=0.95):
    """Bounds of a probability of which `share` was seen in `n` trials."""
    z = ndtri((1 + level) / 2)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    spread = np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) * z / (1 + z**2 / n)
    return max(0.0, centre - spread), min(1.0, centre + spread)


def _measures(fitted, predicted, X, y, rows, scoring):
    truth, predicted = y[rows], predicted[rows]
    right, present = truth == predicted, np.unique(truth)
    measures = {
        ACCURACY: float(right.mean()),
        BALANCED: float(np.mean([right[truth == c].mean() for c in present])),
    }
    if scoring is not None:
        X_domain = _safe_indexing(X, np.flatnonzero(rows))
        # Most other measures are not defined where there is one class.
        score = check_scoring(fitted, scoring) if len(present) > 1 else _undefined
        measures[name_metric(scoring, fitted)] = float(score(fitted, X_domain, truth))
    return measures


def _undefined(fitted, X, y):
    return np.nan
