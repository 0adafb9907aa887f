"""The report: what it takes, and in which order it says what."""

import datetime
import os
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.base import (
    BaseEstimator,
    is_clusterer,
    is_outlier_detector,
    is_regressor,
)
from sklearn.utils.validation import _num_samples, check_is_fitted

from skclip_icm._estimators import (
    Interval,
    describe,
    find_step,
    is_featurizer,
    validate_params,
)
from skclip_icm._images.inputs import as_items
from skclip_icm._images.reading import local_path
from skclip_icm._labels import check_labels
from skclip_icm.plotting._axes import check_names, import_pyplot
from skclip_icm.reporting import _sections
from skclip_icm.reporting._confusion import confusion_by_domain, confusion_section
from skclip_icm.reporting._html import framed, page
from skclip_icm.reporting._mistakes import find_mistakes, mistakes_section
from skclip_icm.reporting._scores import score_by_domain


@validate_params(
    {
        "title": [str, None],
        "n_mistakes": [Interval(Integral, 0, None, closed="left")],
        "path": [str, os.PathLike, None],
    },
    prefer_skip_nested_validation=False,
)
def report(
    estimator,
    X,
    y,
    domains,
    *,
    compare=None,
    scoring=None,
    target_names=None,
    domain_names=None,
    title=None,
    n_mistakes=12,
    path=None,
):
    """Write one HTML file on how an estimator does in each domain, and why.

    It has the scores by domain, which classes are taken for which, the displays of
    `skclip_icm.plotting`, the most confident mistakes, the parameters and the versions.
    The file holds all that it shows, so it opens without a network and can be sent to
    others: with it go small copies of the images that are drawn, and the paths of
    those that are mistaken, as they are in `X`.

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
    target_names, domain_names : list of str or None, default=None
        Names of the classes and domains where `y` and `domains` count them from 0,
        such as `skclip_icm.datasets.load_domain_folder` returns. None shows labels as
        they are.
    title : str or None, default=None
        Heading of the page. None: how the estimator does in each domain.
    n_mistakes : int, default=12
        How many of the most confident mistakes to show as images. All are listed in a
        table, up to 500, and in the attribute `mistakes`.
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
        If the estimator does not predict classes, or `compare` is no dict.
    ValueError
        If the lengths differ, a label is missing, `y` and what an estimator predicts
        are not both strings or both numbers, two estimators have the same name, or
        there are labels without names or with one name.
    FileNotFoundError, IsADirectoryError, PermissionError
        If there can be no file at `path`: said before the work.

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
    _check_path(path)
    n = _num_samples(X)
    y, domains = check_labels(y, "y", n), check_labels(domains, "domains", n)
    domains = check_names(domains, domain_names, "domain_names")
    check_names(y, target_names, "target_names")
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

    def named(labels):
        return check_names(labels, target_names, "target_names")

    classes, counts = confusion_by_domain(scores, y, domains)
    found = find_mistakes(estimator, X, y, domains, named, scores, images)
    content = (
        _sections.scores(scores),
        confusion_section(named(classes), counts),
        _sections.search(estimator),
        _sections.spectrum(estimator),
        _sections.interventions(images, domains),
        _sections.invariance_map(estimator, X, named(y), domains),
        mistakes_section(found, n, images, n_mistakes),
        _sections.parameters(estimator),
        _sections.versions(),
    )
    title = f"How {name} does in each domain" if title is None else title
    line = f"Made on {datetime.date.today().isoformat()} from {n} rows."
    html = page(title, line, list(filter(None, content)))
    made = Report(html, scores, found)
    return made if path is None else made.save(path)


class Report:
    """A report as one HTML page.

    Parameters
    ----------
    html : str
        The page.
    scores : Scores
        What it says of each domain.
    found : Mistakes
        The rows that are mistaken.

    Attributes
    ----------
    html : str
        The page.
    scores : dict of str to dict of str to dict of str to float
        For each method, for each domain, each measure.
    mistakes : pandas.DataFrame
        All mistaken rows, the surest first: domain, true and predicted class, how sure
        the estimator is (a probability, a distance from the boundary, or a margin
        between the two best classes, whichever it has), and the path, where images are
        paths. The index has the numbers of the rows.

    See Also
    --------
    report : Makes one.
    """

    def __init__(self, html, scores, found):
        self.html = html
        self.scores = scores.by_method
        self._summary, self._found = scores.summary(), found

    @property
    def mistakes(self):
        """All mistaken rows as a pandas frame, the surest first."""
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError(
                "The mistakes are a frame of pandas. Run: pip install pandas"
            ) from error
        index = pd.Index(self._found.rows, name="row")
        columns = self._found.columns()
        if self._found.paths is not None:
            columns["path"] = np.array(self._found.paths, dtype=object)
        # As objects: pandas' strings must be Unicode, names of files need not.
        texts = {name for name, values in columns.items() if values.dtype.kind in "UO"}
        kinds = {name: object if name in texts else None for name in columns}
        return pd.DataFrame(
            {name: pd.Series(v, index, kinds[name]) for name, v in columns.items()}
        )

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

        Raises
        ------
        FileNotFoundError, IsADirectoryError, PermissionError
            If there can be no file at `path`.
        """
        _check_path(path)
        Path(local_path(path)).write_text(self.html, encoding="utf-8")
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


def _check_path(path):
    """Raise if no file can be written to `path`, before hours of work."""
    if path is None:
        return
    path = local_path(path)
    folder = Path(path).absolute().parent
    if Path(path).is_dir():
        raise IsADirectoryError(
            f"path is the folder {os.fspath(path)!r}, expected that of a file, "
            f"such as {os.path.join(path, 'report.html')!r}."
        )
    if not folder.is_dir():
        raise FileNotFoundError(
            f"path={os.fspath(path)!r}: there is no folder {str(folder)!r}. Make it "
            "first, or save elsewhere."
        )
    for place in folder, Path(path):
        if place.exists() and not os.access(place, os.W_OK):
            raise PermissionError(
                f"path={os.fspath(path)!r}: {str(place)!r} cannot be written to. Save "
                "elsewhere."
            )


def _check_classifier(method, estimator):
    what = None
    if is_regressor(estimator):
        what = "numbers"
    elif is_clusterer(estimator):
        what = "clusters"
    elif is_outlier_detector(estimator):
        what = "outliers"
    if what is not None:
        raise TypeError(
            f"{method} is {describe(estimator)}, which predicts {what}; the report "
            "counts right and wrong classes. Give a classifier, such as "
            "RidgeClassifier in place of Ridge."
        )
    if hasattr(estimator, "best_estimator_") or hasattr(estimator, "predict"):
        check_is_fitted(
            estimator,
            msg=f"{method} is not fitted: call its fit before the report.",
        )
        return
    raise TypeError(
        f"{method} is {describe(estimator)}, which does not predict: give a fitted "
        "classifier, or a search with refit=True."
    )
