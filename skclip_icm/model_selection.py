"""Scoring under intervention, for choosing parameters without target labels."""

import warnings

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin, clone, is_regressor
from sklearn.dummy import DummyClassifier
from sklearn.metrics import check_scoring
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.utils.metadata_routing import get_routing_for_object
from sklearn.utils.validation import _num_samples

from skclip_icm._estimators import (
    HasMethods,
    StrOptions,
    describe,
    find_step,
    is_featurizer,
    is_icm,
    validate_parameter_constraints,
    validate_params,
)
from skclip_icm._labels import check_target
from skclip_icm._search import InvariantSearch
from skclip_icm.interventions import resolve_interventions
from skclip_icm.interventions._intervene import parts_of
from skclip_icm.pairs import find_paired

#: Separate interventions for validation, none of which is in "photometric".
VALIDATION_INTERVENTIONS = ("invert", "equalize", "grayscale")

#: Candidates of the ready grid, which those of the benchmarks begin with.
LAMS = (0.3, 1, 3, 10, 100, 1000)
SHRINKAGES = (0.003, 0.03, 0.3, 3, 30, "auto")
CS = (0.01, 0.1, 1, 10, 100)

_AGGREGATES = {"mean": np.mean, "worst": np.min}


def interventional_scorer(
    scoring=None, interventions=None, aggregate="mean", include_original=False
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
        anything in scikit-learn. `estimator` is one over images with a
        `CLIPFeaturizer` in it (in pipelines, column transformers and searches, in any
        nesting), or any estimator over `PairedEmbeddings`. Metadata, such as sample
        weights, goes to `scoring`; its ``set_score_request`` asks for it.

    Raises
    ------
    ValueError
        If `scoring` or an intervention has an unknown name. When scoring: if neither
        the estimator nor `X` provides counterparts; `GridSearchCV` turns this one into
        a warning unless it has ``error_score="raise"``, as `invariant_search` does.

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
    if hasattr(scoring, "fit"):
        return _NotCalled()
    return _make_scorer(scoring, interventions, aggregate, include_original)


@validate_params(
    {
        "estimator": [HasMethods(["fit"])],
        "param_grid": [dict, list, None],
        "scoring": [str, callable, None],
        "interventions": [str, list, tuple, callable, None],
    },
    prefer_skip_nested_validation=True,
)
def invariant_search(
    estimator,
    param_grid=None,
    *,
    scoring=None,
    interventions=None,
    **search_params,
):
    """Set up the search that chooses for an unseen domain without its labels.

    Stratified folds of the training rows are scored under each of several separate
    interventions, and a candidate counts for its worst score. No label of another
    domain is needed. It finds what its interventions show, and nothing else. They
    should be others than those that the estimator is fitted with, or a candidate is
    preferred that only undoes these; a warning names what overlaps.

    Parameters
    ----------
    estimator : estimator
        A pipeline over images with a `CLIPFeaturizer`, or any estimator over
        `PairedEmbeddings`.
    param_grid : dict, list of dict or None, default=None
        Candidates, as in `sklearn.model_selection.GridSearchCV`. None, for a pipeline
        with an `ICMTransformer`: no ICM at all ("passthrough"), projections by six
        values of `lam`, and whitenings by six of `shrinkage`, each times five of the
        parameter `C`, if its last step has one.
    scoring : str, callable or None, default=None
        What to measure. None takes the estimator's own score.
    interventions : str, callable, list or None, default=None
        Interventions to validate under. None takes "invert", "equalize" and
        "grayscale" for images, and for `PairedEmbeddings` the counterparts that they
        carry.
    **search_params : dict
        Other parameters of `sklearn.model_selection.GridSearchCV`, such as `cv`.
        Unless they are given, `error_score` is "raise", and `cv` five shuffled folds,
        stratified by class unless `estimator` is a regressor.

    Returns
    -------
    search : sklearn.model_selection.GridSearchCV
        The search, not yet fitted. Its `fit` refuses class labels and groups that are
        missing, and names the row.

    Raises
    ------
    ValueError
        If there is no `param_grid`, and no pipeline with an `ICMTransformer` to make
        one for, or as for `interventional_scorer`.

    Warns
    -----
    UserWarning
        If an intervention to validate under is one that is fitted with.

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
    scorer = _make_scorer(
        scoring, interventions, "worst", False, on_images=VALIDATION_INTERVENTIONS
    )
    if param_grid is None:
        param_grid = _ready_grid(estimator)
    _warn_of_overlap(estimator, interventions or VALIDATION_INTERVENTIONS)
    search_params.setdefault("error_score", "raise")
    folds = KFold if is_regressor(estimator) else StratifiedKFold
    search_params.setdefault("cv", folds(5, shuffle=True, random_state=0))
    return InvariantSearch(estimator, param_grid, scoring=scorer, **search_params)


def _ready_grid(estimator):
    """Return candidates for a pipeline by its steps."""
    steps = estimator.steps if isinstance(estimator, Pipeline) else []
    names = [name for name, step in steps if is_icm(step)]
    if not names:
        raise ValueError(
            "There is no param_grid, and no Pipeline with an ICMTransformer among its "
            f"steps to make one for; got {describe(estimator)}. Pass param_grid."
        )
    icm, (last, classifier) = names[0], steps[-1]
    has_c = "C" in classifier.get_params() if hasattr(classifier, "get_params") else 0
    of_classifier = {f"{last}__C": CS} if has_c else {}
    kinds: list[dict] = [
        {icm: ["passthrough"]},
        {f"{icm}__method": ["projection"], f"{icm}__lam": LAMS},
        {f"{icm}__method": ["whitening"], f"{icm}__shrinkage": SHRINKAGES},
    ]
    return [
        {name: list(v) for name, v in {**k, **of_classifier}.items()} for k in kinds
    ]


def _warn_of_overlap(estimator, validation):
    """Warn where a featurizer is fitted with an intervention to validate under."""
    found = find_step(estimator, is_featurizer)
    fitted = None if found is None else found.step.get_params().get("interventions")
    if fitted is None:
        return
    known, also = parts_of(fitted), parts_of(validation)
    both = [name for key, name in also.items() if key in known]
    if both:
        warnings.warn(
            f"The featurizer is fitted with {', '.join(both)}, which candidates are "
            "validated under as well: one that only undoes this may be preferred. "
            "Choose other interventions for one of the two.",
            UserWarning,
            stacklevel=4,
        )


def _make_scorer(scoring, interventions, aggregate, include_original, on_images=None):
    validate_parameter_constraints(
        {
            "scoring": [str, callable, None],
            "interventions": [str, list, tuple, callable, None],
            "aggregate": [StrOptions(set(_AGGREGATES))],
            "include_original": ["boolean"],
        },
        {
            "scoring": scoring,
            "interventions": interventions,
            "aggregate": aggregate,
            "include_original": include_original,
        },
        caller_name="interventional_scorer",
    )
    if scoring is interventional_scorer or isinstance(scoring, _InterventionalScorer):
        raise ValueError(
            "scoring is an interventional_scorer; it is what is measured under each "
            'intervention, such as "accuracy".'
        )
    if interventions is not None:
        resolve_interventions(interventions)
    return _InterventionalScorer(
        scoring, interventions, aggregate, include_original, on_images
    )


class _InterventionalScorer:
    def __init__(self, scoring, interventions, aggregate, include_original, on_images):
        self._params = (
            f"{scoring!r}, {interventions!r}, aggregate={aggregate!r}, "
            f"include_original={include_original}"
        )
        self._scoring, self._aggregate = scoring, aggregate
        self._interventions, self._on_images = interventions, on_images
        self._include_original = include_original
        measured = "score" if scoring is None else getattr(scoring, "__name__", scoring)
        self.__name__ = f"{measured} under intervention"  # for labels
        # Metadata is for what measures; None stands for the score of any estimator.
        scorer = check_scoring(DummyClassifier(), scoring)
        self._request = get_routing_for_object(scorer)
        self._request.score.owner = "interventional_scorer()"  # whom to ask, in errors

    def __repr__(self):
        return f"interventional_scorer({self._params})"

    def __call__(self, estimator, X, y=None, **params):
        y = check_target(y, estimator, _num_samples(X))
        scores = [
            check_scoring(model, self._scoring)(model, view, y, **params)
            for model, view in self._views(estimator, X)
        ]
        return float(_AGGREGATES[self._aggregate](scores))

    def get_metadata_routing(self):
        """Return what metadata the scoring asks for."""
        return self._request

    def set_score_request(self, **kwargs):
        """Ask for metadata, such as ``sample_weight=True``, as sklearn's scorers do."""
        for param, alias in kwargs.items():
            self._request.score.add_request(param=param, alias=alias)
        return self

    def _views(self, estimator, X):
        """Yield models and what each is to predict from, under each intervention."""
        paired = find_paired(X)
        skipped = 0 if self._include_original else 1
        if paired is not None and self._interventions is not None:
            raise ValueError(
                "The interventions of precomputed embeddings are fixed, but "
                f"interventions={self._interventions!r} are given: leave "
                "interventions=None, or score images."
            )
        if paired is not None:
            for view in _all_views(paired)[skipped:]:
                yield estimator, _framed(view, like=X)
            return
        given = self._interventions is not None
        interventions = self._interventions if given else self._on_images
        estimator, stand_ins = _with_stand_ins(estimator, X, interventions)
        for number in range(skipped, len(stand_ins[0].views)):
            for stand_in in stand_ins:
                stand_in.number = number
            yield estimator, X


class _StandIn(TransformerMixin, BaseEstimator):
    """Stands for a featurizer whose embeddings, under all interventions, are known."""

    def become(self, featurizer, views):
        self.__dict__.update(vars(featurizer))  # its set_output is among them
        self.stands_for, self.views, self.number = featurizer, views, 0
        return self

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return self.views[self.number]

    def get_feature_names_out(self, input_features=None):
        return self.stands_for.get_feature_names_out(input_features)

    def __sklearn_is_fitted__(self):
        return True


def _with_stand_ins(estimator, X, interventions):
    """Return a copy of `estimator` with stand-ins for its featurizers, and these."""
    given, stand_ins = estimator, []
    while (found := find_step(estimator, is_featurizer)) is not None:
        images = X
        for step in found.before:
            images = step.transform(images)
        featurizer = clone(found.step)
        if hasattr(featurizer, "set_output"):
            featurizer.set_output(transform="default")
        paired = featurizer.intervene(images, interventions)
        stand_ins.append(_StandIn().become(found.step, _all_views(paired)))
        estimator = found.put(stand_ins[-1])
    if not stand_ins:
        raise ValueError(
            "interventional_scorer needs an estimator over images with a "
            "CLIPFeaturizer in it, or PairedEmbeddings as X; got "
            f"{describe(given)} on {type(X).__name__}."
        )
    counts = {len(stand_in.views) - 1 for stand_in in stand_ins}
    if len(counts) > 1:
        raise ValueError(
            "The featurizers in this estimator make different numbers of counterparts, "
            f"{sorted(counts)}: give them the same interventions and n_interventions."
        )
    return estimator, stand_ins


def _all_views(paired):
    return [np.asarray(paired), *np.moveaxis(paired.counterparts, 1, 0)]


def _framed(Z, like):
    if hasattr(like, "columns"):
        return type(like)(Z, index=like.index, columns=like.columns)
    return Z


class _NotCalled:
    """What scikit-learn gets where it was handed `interventional_scorer` uncalled.

    It takes whatever is no number for an error of the user's, and shows it; what a
    scorer raises, it turns into a warning.
    """

    def __repr__(self):
        return (
            "nothing, since interventional_scorer makes a scorer and is none: call it, "
            "scoring=interventional_scorer()"
        )
