"""Scoring under intervention, for choosing parameters without target labels."""

import numpy as np
from sklearn.metrics import check_scoring
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.utils._param_validation import (
    HasMethods,
    StrOptions,
    validate_params,
)

from skclip_icm.pairs import find_paired

#: Separate interventions, for validation.
VALIDATION_INTERVENTIONS = (
    "color_jitter",
    "gaussian_blur",
    "invert",
    "equalize",
    "hue",
)
_AGGREGATES = {"mean": np.mean, "worst": np.min}


@validate_params(
    {
        "scoring": [str, callable, None],
        "interventions": [str, list, tuple, callable, None],
        "aggregate": [StrOptions(set(_AGGREGATES))],
        "include_original": ["boolean"],
    },
    prefer_skip_nested_validation=True,
)
def interventional_scorer(
    scoring=None, interventions=None, *, aggregate="mean", include_original=False
):
    """Make a scorer that scores the counterparts of the held-out rows.

    Accuracy on held-out rows of the training domains prefers a model that uses
    whatever separates the classes there, invariant or not. This scorer intervenes on
    the held-out images first, so a model is rewarded for what survives; it needs no
    label from the domain to be predicted.

    Parameters
    ----------
    scoring : str, callable or None, default=None
        What to measure, as in `sklearn.model_selection.cross_val_score`. None takes
        the estimator's own score.
    interventions : str, callable, list or None, default=None
        Interventions on the held-out images, as in `CLIPFeaturizer`; some may be kept
        out of fitting on purpose. None takes the counterparts that the pipeline's
        featurizer makes, or that precomputed embeddings carry.
    aggregate : {"mean", "worst"}, default="mean"
        How the scores of the separate interventions become one number.
    include_original : bool, default=False
        Whether the images as they are count as one more intervention.

    Returns
    -------
    scorer : callable
        ``scorer(estimator, X, y)`` returns a float; for the `scoring` parameter of
        anything in scikit-learn. `estimator` is a pipeline over images with a
        `CLIPFeaturizer`, a `ZeroShotClassifier`, or any estimator over
        `PairedEmbeddings`.

    Raises
    ------
    ValueError
        When scoring: if neither the estimator nor `X` provides counterparts.

    See Also
    --------
    CLIPFeaturizer.intervene : The counterparts that are scored.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sklearn.pipeline import make_pipeline
    >>> from skclip_icm import ICMTransformer, interventional_scorer
    >>> from skclip_icm.datasets import make_causal_embeddings
    >>> data = make_causal_embeddings(300, random_state=0)
    >>> train = data.domains == 0
    >>> search = GridSearchCV(
    ...     make_pipeline(ICMTransformer(), LogisticRegression()),
    ...     {"icmtransformer__lam": [0, 10]},
    ...     scoring=interventional_scorer("accuracy"),
    ... ).fit(data.embeddings[train], data.target[train])
    >>> search.best_params_
    {'icmtransformer__lam': 10}
    """
    return _InterventionalScorer(scoring, interventions, aggregate, include_original)


@validate_params(
    {
        "estimator": [HasMethods(["fit"])],
        "param_grid": [dict, list],
        "scoring": [str, callable, None],
        "interventions": [str, list, tuple, callable, None],
    },
    prefer_skip_nested_validation=True,
)
def invariant_search(
    estimator,
    param_grid,
    *,
    scoring=None,
    interventions=VALIDATION_INTERVENTIONS,
    **search_params,
):
    """Set up the search that chooses for an unseen domain without its labels.

    Stratified folds of the training rows are scored under each of several separate
    interventions, and a candidate counts for its worst score. Of the rules compared in
    the documentation, leaving training domains out among them, this one did best.

    Parameters
    ----------
    estimator : estimator
        A pipeline over images with a `CLIPFeaturizer`, or any estimator over
        `PairedEmbeddings`.
    param_grid : dict or list of dict
        Candidates, as in `sklearn.model_selection.GridSearchCV`.
    scoring : str, callable or None, default=None
        What to measure. None takes the estimator's own score.
    interventions : str, callable, list or None
        Interventions to validate under. The default are five separate ones, of which
        the default "photometric" composes some for fitting. Embeddings that carry
        counterparts are scored on those, whatever is given here.
    **search_params : dict
        Other parameters of `sklearn.model_selection.GridSearchCV`, such as `cv`.

    Returns
    -------
    search : sklearn.model_selection.GridSearchCV
        The search, not yet fitted.

    See Also
    --------
    interventional_scorer : The scorer it uses.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from skclip_icm import ICMTransformer, invariant_search
    >>> from skclip_icm.datasets import make_causal_embeddings
    >>> data = make_causal_embeddings(300, random_state=0)
    >>> train = data.domains == 0
    >>> pipe = make_pipeline(ICMTransformer(), LogisticRegression())
    >>> search = invariant_search(pipe, {"icmtransformer__lam": [0, 10]})
    >>> search.fit(data.embeddings[train], data.target[train]).best_params_
    {'icmtransformer__lam': 10}
    """
    scorer = interventional_scorer(
        scoring,
        interventions if _embeds_images(estimator) else None,
        aggregate="worst",
    )
    search_params.setdefault("cv", StratifiedKFold(5, shuffle=True, random_state=0))
    return GridSearchCV(estimator, param_grid, scoring=scorer, **search_params)


class _InterventionalScorer:
    def __init__(self, scoring, interventions, aggregate, include_original):
        self.scoring = scoring
        self.interventions = interventions
        self.aggregate = aggregate
        self.include_original = include_original

    def __repr__(self):
        return (
            f"interventional_scorer({self.scoring!r}, {self.interventions!r}, "
            f"aggregate={self.aggregate!r}, include_original={self.include_original})"
        )

    def __call__(self, estimator, X, y=None, **params):
        predictor, original, views = _split(estimator, X, self.interventions)
        if self.include_original:
            views = [original, *views]
        scorer = check_scoring(predictor, self.scoring)
        scores = [scorer(predictor, view, y, **params) for view in views]
        return float(_AGGREGATES[self.aggregate](scores))


def _split(estimator, X, interventions):
    """Return what predicts from embeddings, these, and a list of counterparts."""
    # A fitted search predicts with its best estimator.
    estimator = getattr(estimator, "best_estimator_", estimator)
    paired = find_paired(X)
    if paired is not None and interventions is None:
        return estimator, X, _each(paired, like=X)
    if paired is None and hasattr(estimator, "featurizer_"):
        # It embeds images itself, and takes embeddings in their place.
        paired = find_paired(estimator.featurizer_.intervene(X, interventions))
        return estimator, paired, _each(paired, like=paired)
    at = _featurizer_step(estimator)
    if at is None:
        raise ValueError(
            "interventional_scorer needs a pipeline over images with a CLIPFeaturizer, "
            f"or PairedEmbeddings as X; got {type(estimator).__name__} on "
            f"{type(X).__name__}."
            + (
                " The interventions of precomputed embeddings are fixed: leave "
                "interventions=None."
                if paired is not None
                else ""
            )
        )
    X = estimator[:at].transform(X) if at else X
    featurizer = estimator.steps[at][1]
    paired = featurizer.intervene(X, interventions)
    return estimator[at + 1 :], paired, _each(find_paired(paired), like=paired)


def _each(paired, like):
    counterparts = np.moveaxis(paired.counterparts, 1, 0)
    if hasattr(like, "columns"):
        return [_framed(Z, like) for Z in counterparts]
    return list(counterparts)


def _framed(Z, like):
    if hasattr(like, "index"):
        return type(like)(Z, index=like.index, columns=like.columns)
    return type(like)(Z, schema=like.columns, orient="row")  # polars


def _embeds_images(estimator):
    return _featurizer_step(estimator) is not None or hasattr(estimator, "featurizer")


def _featurizer_step(estimator):
    if not isinstance(estimator, Pipeline):
        return None
    steps = [hasattr(step, "intervene") for _, step in estimator.steps]
    return steps.index(True) if True in steps else None
