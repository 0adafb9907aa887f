"""Centre a fitted estimator on a new domain, by images or embeddings without labels."""

from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted

from skclip_icm._embeddings import (
    check_embeddings,
    check_same_columns,
    column_names,
)
from skclip_icm._estimators import describe, find_step, is_featurizer
from skclip_icm._projection.arrays import moved_mean
from skclip_icm._projection.differences import as_floats, check_finite


def adapt(estimator, X, *, X_train=None, prior_weight=10.0):
    r"""Centre a fitted estimator on a new domain.

    Whatever shifts all embeddings of a domain alike, as another camera does, goes with
    their mean. Labels are not needed, and a few dozen images suffice for most of it.
    This is not from the paper of CLIP-ICM.

    Parameters
    ----------
    estimator : estimator
        A fitted `ICMTransformer` or `ZeroShotClassifier`, or a fitted pipeline, search
        or other estimator with one in it, over images or over embeddings. Without any,
        such as a linear probe on embeddings, it needs `X_train`.
    X : sequence of n images or array-like of shape (n, d)
        Images or embeddings of the new domain, as `estimator` takes them.
    X_train : sequence of images or array-like, default=None
        What `estimator` was fitted on; used if no `ICMTransformer` in it knows the
        mean, as when a search has chosen "passthrough".
    prior_weight : float, default=10.0
        Number k of rows that the mean :math:`m` in training counts as: with the mean
        :math:`m_X` of the embeddings of `X`, what is taken off is
        :math:`(n\,m_X + k\,m) / (n + k)`.

    Returns
    -------
    estimator : estimator
        A fitted copy, centred on the new domain. The one given stays as it is; what
        does not change is shared with it.

    Raises
    ------
    ValueError
        If there is no `ICMTransformer` and no `X_train`, if one has ``center=False``,
        or `prior_weight` is negative.
    NotFittedError
        If `estimator` is not fitted.

    See Also
    --------
    ICMTransformer.adapt : The step that moves.

    Notes
    -----
    The shares of the classes in `X` should be like those in training. If they are not,
    the mean moves with them, and what separates the classes is taken off as well: do
    not adapt to a batch that holds mostly one class. Training with
    ``ICMTransformer(center="domain")`` takes off the mean of each training domain in
    the same way, so that the classifier expects it.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.linear_model import LogisticRegression
    >>> from skclip_icm import adapt
    >>> rng = np.random.default_rng(0)
    >>> y = np.arange(200) % 2
    >>> Z = rng.normal(size=(200, 8)) + 3 * y[:, None]
    >>> probe = LogisticRegression().fit(Z, y)
    >>> elsewhere = Z + 6  # another camera
    >>> probe.score(elsewhere, y)
    0.5
    >>> adapt(probe, elsewhere, X_train=Z).score(elsewhere, y) > 0.95
    True
    """
    check_is_fitted(estimator)
    options = {"prior_weight": prior_weight}
    adapted, done = estimator, []

    def is_left(step):
        return hasattr(step, "adapt") and not any(step is other for other in done)

    while (found := find_step(adapted, is_left)) is not None:
        moved = found.step.adapt(_through(found.before, X), **options)
        done += [moved, getattr(moved, "icm_", None)]  # of a ZeroShotClassifier
        adapted = found.put(moved)
    if not done and X_train is None:
        raise ValueError(
            "The mean in training is not known: there is no one ICMTransformer that "
            f"all predictions of {describe(estimator)} go through. Pass X_train, what "
            "it was fitted on, or put an ICMTransformer before it, in a pipeline."
        )
    return adapted if done else _centred(estimator, X, X_train, options)


def _centred(estimator, X, X_train, options):
    """Return `estimator` with a step that moves the mean to that of `X_train`."""
    adapted, done = estimator, []

    def is_left(step):
        return is_featurizer(step) and not any(step is other for other in done)

    while (found := find_step(adapted, is_left)) is not None:
        steps = [*found.before, found.step]
        shift = _shift(_through(steps, X), _through(steps, X_train), options)
        done.append(found.step)
        adapted = found.put(make_pipeline(found.step, shift))
    return adapted if done else make_pipeline(_shift(X, X_train, options), estimator)


def _shift(Z, Z_train, options):
    """Return a fitted step that takes off what lies between two means."""
    check_embeddings(Z_train, "X_train")
    check_same_columns(Z, column_names(Z_train), "X", "X_train")
    values = as_floats(Z)
    shift = StandardScaler(with_std=False).fit(Z_train)
    if values.shape[1:] != shift.mean_.shape or not len(values):
        raise ValueError(
            f"X has shape {values.shape}, expected (n, {len(shift.mean_)}) with "
            "n >= 1, as wide as X_train."
        )
    # Missing values are passed over by the scaler, and would make the mean NaN.
    check_finite(values, "X")
    check_finite(as_floats(Z_train), "X_train")
    if hasattr(Z, "columns"):
        shift.set_output(transform=type(Z).__module__.partition(".")[0])
    mean = shift.mean_
    shift.mean_ = moved_mean(mean, values, **options) - mean
    return shift


def _through(steps, X):
    for step in steps:
        X = step.transform(X)
    return X
