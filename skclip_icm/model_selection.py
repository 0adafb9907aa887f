"""Scoring under intervention, for choosing parameters without target labels."""

import numpy as np
from sklearn.metrics import check_scoring
from sklearn.pipeline import Pipeline
from sklearn.utils._param_validation import StrOptions, validate_params

from skclip_icm.pairs import find_paired

_AGGREGATES = {"mean": np.mean, "worst": np.min}


@validate_params(
    {
        "scoring": [str, callable, None],
        "interventions": [str, list, tuple, callable, None],
        "aggregate": [StrOptions(set(_AGGREGATES))],
    },
    prefer_skip_nested_validation=True,
)
def interventional_scorer(scoring=None, interventions=None, *, aggregate="mean"):
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
    return _InterventionalScorer(scoring, interventions, aggregate)


class _InterventionalScorer:
    def __init__(self, scoring, interventions, aggregate):
        self.scoring = scoring
        self.interventions = interventions
        self.aggregate = aggregate

    def __repr__(self):
        return (
            f"interventional_scorer({self.scoring!r}, {self.interventions!r}, "
            f"aggregate={self.aggregate!r})"
        )

    def __call__(self, estimator, X, y=None, **params):
        predictor, counterparts = _counterparts(estimator, X, self.interventions)
        scorer = check_scoring(predictor, self.scoring)
        scores = [scorer(predictor, Z_do, y, **params) for Z_do in counterparts]
        return float(_AGGREGATES[self.aggregate](scores))


def _counterparts(estimator, X, interventions):
    """Return what predicts from embeddings, and a list of (n, d) counterparts."""
    # A fitted search predicts with its best estimator.
    estimator = getattr(estimator, "best_estimator_", estimator)
    paired = find_paired(X)
    if paired is not None and interventions is None:
        return estimator, _each(paired, like=X)
    if paired is None and hasattr(estimator, "featurizer_"):
        # It embeds images itself, and takes embeddings in their place.
        paired = find_paired(estimator.featurizer_.intervene(X, interventions))
        return estimator, _each(paired, like=paired)
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
    return estimator[at + 1 :], _each(find_paired(paired), like=paired)


def _each(paired, like):
    counterparts = np.moveaxis(paired.counterparts, 1, 0)
    if hasattr(like, "columns"):
        frame = type(like)
        return [frame(Z, index=like.index, columns=like.columns) for Z in counterparts]
    return list(counterparts)


def _featurizer_step(estimator):
    if not isinstance(estimator, Pipeline):
        return None
    steps = [hasattr(step, "intervene") for _, step in estimator.steps]
    return steps.index(True) if True in steps else None
