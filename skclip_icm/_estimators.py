"""What our estimators share, and how to find one inside another.

scikit-learn's parameter constraints are private; this is the one place that imports
them.
"""

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from sklearn.base import BaseEstimator
from sklearn.compose import ColumnTransformer
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import _safe_indexing
from sklearn.utils._param_validation import (
    HasMethods,
    Interval,
    RealNotInt,
    StrOptions,
    validate_parameter_constraints,
    validate_params,
)
from sklearn.utils.validation import check_is_fitted

from skclip_icm._version import __version__

__all__ = [
    "HasMethods",
    "Interval",
    "RealNotInt",
    "StrOptions",
    "VersionedEstimator",
    "describe",
    "find_featurizer",
    "find_fitted_icm",
    "find_step",
    "is_featurizer",
    "is_icm",
    "validate_parameter_constraints",
    "validate_params",
]

PLACES = "_places"  # attribute of what is true in this process only
_KEY = "_skclip_icm_version"


class VersionedEstimator(BaseEstimator):
    """An estimator that records the package's version when saved, and compares it.

    scikit-learn does so for its own estimators only. Attributes may change between
    versions, so a file of another one may load and then fail, or predict otherwise.
    In a notebook, its question mark leads to this package's documentation.
    """

    _doc_link_module = "skclip_icm"
    _doc_link_template = (
        "https://skclip-icm.readthedocs.io/en/latest/api/generated/"
        "skclip_icm.{estimator_name}.html"
    )

    def __getstate__(self):
        state = {**super().__getstate__(), _KEY: __version__}
        state.pop(PLACES, None)
        return state

    def __setstate__(self, state):
        state = dict(state)
        version = state.pop(_KEY, "unknown")
        if version != __version__:
            warnings.warn(
                f"This {type(self).__name__} was saved by version {version} of "
                f"skclip-icm; this is version {__version__}. It may not "
                "work, or predict otherwise: use the same version, or fit and save it "
                "again.",
                UserWarning,
                stacklevel=2,
            )
        super().__setstate__(state)


class Found(NamedTuple):
    """An estimator inside another one."""

    before: list  # transformers that the data goes through first
    step: BaseEstimator  # the one that was looked for
    put: Callable  # put(new): a copy of the outer one that has `new` in its place


def find_step(estimator, is_wanted):
    """Find an estimator inside another one.

    Parameters
    ----------
    estimator : estimator
        One itself, or any nesting of pipelines, column transformers, searches,
        classifiers with a tuned threshold, frozen estimators and `ZeroShotClassifier`.
    is_wanted : callable
        ``is_wanted(step)`` says whether it is the one.

    Returns
    -------
    found : Found or None
        The first one, in the order that data goes through.
    """
    if is_wanted(estimator):
        return Found([], estimator, lambda new: new)
    for before, inner, put in _inside(estimator):
        found = find_step(inner, is_wanted)
        if found is not None:
            return Found(
                [*before, *found.before], found.step, partial(_put, put, found.put)
            )
    return None


def is_featurizer(step):
    """Say whether `step` is a `CLIPFeaturizer`, or intervenes as it does."""
    return hasattr(step, "intervene")


def is_icm(step):
    """Say whether `step` is an `ICMTransformer`, or projects as it does."""
    return hasattr(step, "project")


def find_featurizer(estimator):
    """Return what `find_step` finds of a `CLIPFeaturizer`, or raise ValueError."""
    return _find(estimator, is_featurizer, "a CLIPFeaturizer")


def find_fitted_icm(estimator):
    """Return the steps before the `ICMTransformer` in `estimator`, and this, fitted."""
    before, icm, _ = _find(estimator, is_icm, "an ICMTransformer")
    outer = type(estimator).__name__
    inside = "" if icm is estimator else f" in this {outer}"
    hint = ", with refit=True" if hasattr(estimator, "refit") else ""
    check_is_fitted(
        icm,
        msg=f"The %(name)s{inside} is not fitted: call fit of the {outer} first{hint}.",
    )
    return before, icm


def describe(estimator):
    """Say what an estimator is made of, for messages."""
    if isinstance(estimator, Pipeline):
        return f"a Pipeline of the steps {', '.join(estimator.named_steps)}"
    name = type(estimator).__name__
    article = "an" if name[0] in "AEIO" else "a"
    inner = getattr(estimator, "estimator", None)
    over = "" if inner is None else f" over {describe(inner)}"
    return f"{article} {name}{over}"


def _find(estimator, is_wanted, wanted):
    found = find_step(estimator, is_wanted)
    if found is None:
        raise ValueError(
            f"Expected {wanted}, or a pipeline or a search that holds one, got "
            f"{describe(estimator)}."
        )
    return found


def _inside(estimator):
    """Yield what an estimator hands its X to: steps before, step, how to put another.

    Copies are shallow, but for what leads to the step.
    """
    if isinstance(estimator, FrozenEstimator):  # first, as it looks like what it holds
        yield [], estimator.estimator, partial(_set, estimator, "estimator")
    elif isinstance(estimator, Pipeline):
        before = []
        for i, (_, step) in enumerate(estimator.steps):
            yield before, step, partial(_put_in_list, estimator, "steps", i)
            if step not in (None, "passthrough"):
                before = [*before, step]
    elif isinstance(estimator, ColumnTransformer):
        name = _latest(estimator, "transformers")
        for i, (_, step, columns) in enumerate(getattr(estimator, name)):
            select = FunctionTransformer(
                _safe_indexing, kw_args={"indices": columns, "axis": 1}
            )
            yield [select], step, partial(_put_in_list, estimator, name, i)
    elif hasattr(estimator, "featurizer"):  # a ZeroShotClassifier
        # Of embeddings in place of images it makes no others.
        embed = FunctionTransformer(
            lambda X: estimator._embed(X, estimator.featurizer_.transform)
        )
        for before, name in ([], "featurizer"), ([embed], "icm"):
            name = _latest(estimator, name)
            yield before, getattr(estimator, name), partial(_set, estimator, name)
    elif (name := _name_of_inner(estimator)) is not None:
        yield [], getattr(estimator, name), partial(_set, estimator, name)


def _name_of_inner(estimator):
    """Name the attribute that holds the estimator to which another one hands its X."""
    if hasattr(estimator, "estimators_"):  # an ensemble hands it to many
        return None
    for name in ("best_estimator_", "estimator_"):
        if hasattr(estimator, name):
            return name
    # Fitted, but not to be seen into: what it was given is not what it predicts with.
    fitted = any(name.endswith("_") for name in getattr(estimator, "__dict__", ()))
    searched = hasattr(estimator, "cv_results_")  # without refit
    given = hasattr(estimator, "estimator") and (searched or not fitted)
    return "estimator" if given else None


def _latest(estimator, name):
    return f"{name}_" if hasattr(estimator, f"{name}_") else name


def _put(outer, inner, new):
    return outer(inner(new))


def _put_in_list(estimator, name, i, new):
    entries = list(getattr(estimator, name))
    entries[i] = (entries[i][0], new, *entries[i][2:])
    return _set(estimator, name, entries)


def _set(estimator, name, value):
    changed = copy.copy(estimator)
    setattr(changed, name, value)
    return changed
