"""The report: what it takes, and in which order it says what."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sklearn.base import BaseEstimator
from sklearn.utils.validation import _num_samples, check_is_fitted

from skclip_icm._estimators import find_step, is_featurizer
from skclip_icm._images.inputs import as_items
from skclip_icm._projection.groups import check_labels
from skclip_icm.plotting._axes import import_pyplot
from skclip_icm.reporting import _sections
from skclip_icm.reporting._html import framed, page
from skclip_icm.reporting._mistakes import mistakes
from skclip_icm.reporting._scores import score_by_domain


def report(
    estimator, X, y, domains, *, compare=None, scoring=None, n_mistakes=12, path=None
):
    """Write one HTML file on how an estimator does in each domain, and why.

    It has the scores by domain, the displays of `skclip_icm.plotting`, the most
    confident mistakes, the parameters and the versions. The file holds all that it
    shows, so it opens without a network and can be sent to others: with it go small
    copies of the images that are drawn.

    Parameters
    ----------
    estimator : Pipeline, search or ZeroShotClassifier
        A fitted classifier, over images or over embeddings. Of a search, the best
        candidates are listed too.
    X : sequence of length n
        What the estimator predicts from. It scores too well on rows that it was
        fitted on: to judge how it does in a new domain, give rows of one.
    y : array-like of shape (n,)
        Classes.
    domains : array-like of shape (n,)
        Domain of each row.
    compare : dict of str to estimator or None, default=None
        Other fitted estimators to score beside it, by name, such as a linear probe
        fitted on the same rows without ICM.
    scoring : str, callable or None, default=None
        One more measure beside accuracy and balanced accuracy, as in
        `sklearn.model_selection.cross_val_score`; `interventional_scorer` is one.
    n_mistakes : int, default=12
        How many of the most confident mistakes to show.
    path : str, path-like or None, default=None
        Where to save the file. None saves none.

    Returns
    -------
    report : Report
        The report; the last expression of a notebook's cell shows it.

    Raises
    ------
    NotFittedError
        If the estimator is not fitted.
    TypeError
        If the estimator does not predict, or `compare` is no dict.
    ValueError
        If the lengths differ, or two estimators have the same name.

    See Also
    --------
    skclip_icm.plotting : The displays, one by one.

    Notes
    -----
    Intervals are of 95 % by Wilson's score method ([1]_); they say how uncertain the
    accuracy in a domain is, not how it varies between domains. Balanced accuracy is
    the mean recall of the classes that a domain has.

    References
    ----------
    .. [1] E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical
       Inference", Journal of the American Statistical Association 22, 1927.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from skclip_icm import ICMTransformer
    >>> from skclip_icm.datasets import make_causal_embeddings
    >>> from skclip_icm.reporting import report
    >>> data = make_causal_embeddings(n_samples=300, random_state=0)
    >>> Z, y, train = data.embeddings, data.target, data.domains == 0
    >>> raw = LogisticRegression().fit(Z[train], y[train])
    >>> pipe = make_pipeline(ICMTransformer(lam=10), LogisticRegression())
    >>> made = report(
    ...     pipe.fit(Z[train], y[train]), Z, y, data.domains, compare={"raw": raw}
    ... )
    >>> made
    Report(Pipeline: accuracy 0.997, mean of 2 domains 0.997)
    """
    import_pyplot()
    n = _num_samples(X)
    y, domains = check_labels(y, "y", n), check_labels(domains, "domains", n)
    name = type(estimator).__name__
    if not isinstance(compare, dict | None):
        raise TypeError(
            f"compare is a {type(compare).__name__}, expected a dict that names the "
            "estimators: {'raw': ...}."
        )
    if name in (compare or {}):
        raise ValueError(
            f"compare has the name {name!r}, which is that of the estimator itself: "
            "choose another one."
        )
    methods = {name: estimator, **(compare or {})}
    for method, fitted in methods.items():
        _check_classifier(method, fitted)
    scores = score_by_domain(methods, X, y, domains, scoring)
    images = _find_images(estimator, X)
    content = (
        _sections.scores(scores),
        _sections.search(estimator),
        _sections.spectrum(estimator),
        _sections.interventions(images, domains),
        _sections.invariance_map(estimator, X, y, domains),
        mistakes(estimator, X, y, domains, scores, images, n_mistakes),
        _sections.parameters(estimator),
        _sections.versions(),
    )
    made = Report(
        page(f"How {name} does in each domain", list(filter(None, content))), scores
    )
    return made if path is None else made.save(path)


class Report:
    """A report as one HTML page.

    Parameters
    ----------
    html : str
        The page.
    scores : Scores
        What it says of each domain.

    Attributes
    ----------
    html : str
        The page.
    scores : dict of str to dict of str to dict of str to float
        For each method, for each domain, each measure.

    See Also
    --------
    report : Makes one.
    """

    def __init__(self, html, scores):
        self.html = html
        self.scores = scores.by_method
        self._summary = scores.summary()

    def save(self, path):
        """Save the page.

        Parameters
        ----------
        path : str or path-like
            Where to; a file that is there is replaced.

        Returns
        -------
        report : Report
            The report itself.
        """
        Path(path).write_text(self.html, encoding="utf-8")
        return self

    def __repr__(self):
        return f"Report({self._summary})"

    def _repr_html_(self):
        return framed(self.html, f"Report of {self._summary}")


class Images(NamedTuple):
    """The images in what an estimator takes, and what embeds them."""

    featurizer: BaseEstimator
    items: Sequence


def _find_images(estimator, X):
    """Return the images in `X`, or None if these are embeddings."""
    found = find_step(estimator, is_featurizer)
    if found is None:
        return None
    for step in found.before:
        X = step.transform(X)
    try:
        return Images(found.step, as_items(X))
    except (TypeError, ValueError):
        return None


def _check_classifier(method, estimator):
    if hasattr(estimator, "best_estimator_") or hasattr(estimator, "predict"):
        check_is_fitted(
            estimator,
            msg=f"{method} is not fitted: call its fit before the report.",
        )
        return
    raise TypeError(
        f"{method} is a {type(estimator).__name__} that does not predict: give a "
        "fitted classifier, or a search with refit=True."
    )
