"""What a display draws, found inside the estimator a user has at hand."""

from collections.abc import Sequence
from typing import NamedTuple

from sklearn.compose import ColumnTransformer
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import _safe_indexing, column_or_1d
from sklearn.utils.validation import _num_samples, check_is_fitted

from skclip_icm._images.inputs import as_items
from skclip_icm.featurizer import CLIPFeaturizer
from skclip_icm.icm import ICMTransformer
from skclip_icm.zero_shot import ZeroShotClassifier


def find_step(estimator, kind):
    """Return the first estimator of a class, and the steps before it.

    Parameters
    ----------
    estimator : estimator
        One of the class itself, a `ZeroShotClassifier`, or a pipeline, column
        transformer or search that holds one of these.
    kind : type
        The class.

    Returns
    -------
    before : list of transformers
        Steps that the data goes through first.
    step : estimator
        The one that was looked for.
    """
    found = _search(estimator, kind)
    if found is None:
        raise ValueError(f"Expected {_wanted(kind)}, got {_describe(estimator)}.")
    return found


def find_fitted_icm(estimator):
    """Return the fitted `ICMTransformer` in `estimator`, and the steps before it."""
    before, icm = find_step(estimator, ICMTransformer)
    outer = type(estimator).__name__
    inside = "" if icm is estimator else f" in this {outer}"
    hint = ", with refit=True" if isinstance(estimator, BaseSearchCV) else ""
    check_is_fitted(
        icm,
        msg=f"The %(name)s{inside} is not fitted: call fit of the {outer} first{hint}.",
    )
    return before, icm


def holds(estimator, kind):
    """Say whether there is an estimator of a class in `estimator`."""
    return _search(estimator, kind) is not None


class Images(NamedTuple):
    """The images in what an estimator takes, and what embeds them."""

    featurizer: CLIPFeaturizer
    items: Sequence


def find_images(estimator, X):
    """Return the images in `X`, or None if these are embeddings."""
    found = _search(estimator, CLIPFeaturizer)
    if found is None:
        return None
    before, featurizer = found
    for step in before:
        X = step.transform(X)
    try:
        return Images(featurizer, as_items(X))
    except (TypeError, ValueError):
        return None


def inner_estimator(estimator):
    """Return what predicts: the best estimator of a search, or the estimator."""
    while hasattr(estimator, "best_estimator_"):
        estimator = estimator.best_estimator_
    return estimator


def check_labels(labels, name, X):
    """Return `labels` as an array with one entry for each row of `X`."""
    labels = column_or_1d(labels)
    if len(labels) != _num_samples(X):
        raise ValueError(
            f"{name} has {len(labels)} entries, expected {_num_samples(X)}: one for "
            "each row of X, in the same order."
        )
    return labels


def _search(estimator, kind):
    if isinstance(estimator, kind):
        return [], estimator
    if hasattr(estimator, "best_estimator_"):
        return _search(estimator.best_estimator_, kind)
    if isinstance(estimator, BaseSearchCV):
        return _search(estimator.estimator, kind)
    if isinstance(estimator, ColumnTransformer):
        return _search_columns(estimator, kind)
    if isinstance(estimator, ZeroShotClassifier):
        return _search_zero_shot(estimator, kind)
    if isinstance(estimator, Pipeline):
        before = []
        for _, step in estimator.steps:
            found = _search(step, kind)
            if found is not None:
                return before + found[0], found[1]
            if step not in (None, "passthrough"):
                before.append(step)
    return None


def _search_columns(estimator, kind):
    transformers = getattr(estimator, "transformers_", estimator.transformers)
    for _, transformer, columns in transformers:
        found = _search(transformer, kind)
        if found is not None:
            select = FunctionTransformer(
                _safe_indexing, kw_args={"indices": columns, "axis": 1}
            )
            return [select, *found[0]], found[1]
    return None


def _search_zero_shot(estimator, kind):
    if issubclass(kind, ICMTransformer):
        icm = getattr(estimator, "icm_", estimator.icm)
        # Takes embeddings in place of images, as the classifier does.
        embed = FunctionTransformer(
            lambda X: estimator._embed(X, estimator.featurizer_.transform)
        )
        return None if icm is None else ([embed], icm)
    featurizer = getattr(estimator, "featurizer_", estimator.featurizer)
    return _search(featurizer, kind)


def _wanted(kind):
    article = "an" if kind.__name__[0] in "AEIO" else "a"
    return f"{article} {kind.__name__}, or a pipeline or a search that holds one"


def _describe(estimator):
    if isinstance(estimator, BaseSearchCV):
        return f"a {type(estimator).__name__} over {_describe(estimator.estimator)}"
    if isinstance(estimator, Pipeline):
        return f"a Pipeline of the steps {', '.join(estimator.named_steps)}"
    return f"a {type(estimator).__name__}"
