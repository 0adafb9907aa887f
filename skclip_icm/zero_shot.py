"""Classify images by the names of the classes, in the invariant subspace."""

import copy

import numpy as np
from scipy.special import expit, softmax
from sklearn.base import ClassifierMixin, _fit_context, clone
from sklearn.utils.validation import _num_samples, check_is_fitted, validate_data

from skclip_icm._containers import refuse_tables
from skclip_icm._embeddings import check_same_columns, column_names
from skclip_icm._encoding.progress import CallbackSupportMixin, tell_callbacks
from skclip_icm._estimators import HasMethods, StrOptions, VersionedEstimator
from skclip_icm._projection.differences import check_finite
from skclip_icm._prompts import (
    class_embeddings,
    name_classes,
    prompts_of,
    unit,
    warn_of_coinciding,
    warn_of_map,
)
from skclip_icm.pairs import find_paired


class ZeroShotClassifier(CallbackSupportMixin, ClassifierMixin, VersionedEstimator):
    r"""Classify images by the names of the classes, in the invariant subspace.

    With the embeddings :math:`f_I(x)` of an image, :math:`f_T(t_c)` of the prompts of
    class *c*, and the map :math:`A` of the `ICMTransformer`,

    .. math::

        p(c \mid x) \propto \exp\bigl(s \cos(A f_I(x), A f_T(t_c))\bigr) ,

    where *s* is the scale that the model was trained with. This is the invariant
    predictor of CLIP-ICM ([1]_); without `icm` it is CLIP's own ([2]_). With `icm`, *s*
    is adjusted, see the notes.

    Parameters
    ----------
    featurizer : CLIPFeaturizer
        The model, and the interventions to learn :math:`A` from.
    icm : ICMTransformer or None, default=None
        How to learn :math:`A`: from the images' counterparts, or from pairs of
        captions given as its `pairs`. None leaves the embeddings as they are.
    class_names : sequence of str, dict or None, default=None
        Names for the prompts. A list names labels that are integers from 0, or the
        labels are these names. A dict maps each label to its name. None: the labels
        in `y` are the names. A list of names in place of one are several names of
        one class, of which the first may be the label.
    templates : str, sequence of str or dict, default="a photo of a {}."
        Prompts with a slot for the name. A dict maps each label to the prompts of its
        class, one or a list, with or without a slot. The embedding of a class is the
        normalised mean of the normalised embeddings of its prompts, one for each name
        and template ([2]_, section 3.1.4).
    link : {"softmax", "sigmoid"}, default="softmax"
        What makes probabilities of the logits. "softmax": one of the classes is right,
        and rows sum to one. "sigmoid": each class is right or not, by itself, as models
        such as SigLIP are trained ([3]_); rows need not sum to one.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels, coded as `y` is; sorted, or in the order of `class_names` if there
        is no `y`.
    text_embeddings_ : ndarray of shape (n_classes, d), float32
        Unit embeddings of the classes, before :math:`A`.
    logit_scale_ : float
        The factor *s* of the cosines.
    logit_bias_ : float
        What is added to them; 0 with "softmax", which would cancel it.
    featurizer_ : CLIPFeaturizer
        Clone of `featurizer`.
    icm_ : ICMTransformer or None
        Fitted clone of `icm`.
    shift_ : ndarray of shape (d,)
        What is added to the embeddings of images; zeros until `adapt`.
    n_features_in_ : int
        Width d of the embeddings.

    See Also
    --------
    ICMTransformer : Learns the map; with a linear classifier it uses labels.
    interventional_scorer : Chooses `icm__lam` without labels of another domain.

    Notes
    -----
    Every method takes embeddings in place of images, as a float array or frame of
    shape (n, d); `PairedEmbeddings` for fitting with counterparts. Labels never
    influence :math:`A`.

    Cosines of mapped embeddings spread more from class to class than those of whole
    ones: what images and texts share goes, and what is left is of unit length again. So
    the model's own scale would make nearly every prediction certain. What follows is
    ours and not from [1]_: over the images given to `fit`, let *v* be the mean variance
    of an image's cosines with the classes, *v'* that of the mapped ones, and *m* and
    *m'* the means of these cosines. Then :math:`s' = s \sqrt{v / v'}` leaves the
    spread of the logits as it was, and the bias of a sigmoid becomes
    :math:`b' = b + s m - s' m'`, which leaves their mean. Neither changes a prediction.

    References
    ----------
    .. [1] Z. Song et al., "Learning Invariant Causal Mechanism from Vision-Language
       Models", ICML 2025, arXiv:2405.15289.
    .. [2] A. Radford et al., "Learning Transferable Visual Models From Natural
       Language Supervision", ICML 2021, arXiv:2103.00020.
    .. [3] X. Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023,
       arXiv:2303.15343.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip_icm import CLIPFeaturizer, ICMTransformer, ZeroShotClassifier
    >>> images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    >>> classifier = ZeroShotClassifier(
    ...     CLIPFeaturizer("demo"),
    ...     ICMTransformer(method="whitening"),
    ...     class_names=["cat", "dog", "car"],
    ... ).fit(images)
    >>> classifier.predict_proba(images).shape
    (4, 3)
    >>> bool(np.isin(classifier.predict(images), ["cat", "dog", "car"]).all())
    True
    """

    _parameter_constraints: dict = {
        "featurizer": [HasMethods(["fit_transform", "transform", "encode_text"])],
        "icm": [HasMethods(["fit", "project"]), None],
        "class_names": "no_validation",  # both by what reads them, which says more
        "templates": "no_validation",
        "link": [StrOptions({"softmax", "sigmoid"})],
    }

    def __init__(
        self,
        featurizer,
        icm=None,
        *,
        class_names=None,
        templates="a photo of a {}.",
        link="softmax",
    ):
        self.featurizer = featurizer
        self.icm = icm
        self.class_names = class_names
        self.templates = templates
        self.link = link

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None):
        """Embed the classes, and learn the invariant map from images without labels.

        Parameters
        ----------
        X : sequence of n images or array-like of shape (n, d)
            Images or embeddings, see the notes of the class. Without `icm` they are
            not used.
        y : array-like of shape (n,), default=None
            Labels; they only say what the classes are.

        Returns
        -------
        self : ZeroShotClassifier
            The fitted classifier.

        Raises
        ------
        ValueError
            If the classes have no names, `y` holds a label that `class_names` does not
            name, a template has no slot, `icm` finds no counterparts, or the model was
            not trained for the sigmoid that is asked for.

        Warns
        -----
        UserWarning
            If the model sees no difference between the prompts of two classes, or sees
            none any more after the map, or if numbers are the names of the classes.
        """
        n = None if y is None else _num_samples(X)
        self.classes_, names = name_classes(self.class_names, y, n)
        prompts = prompts_of(self.classes_, names, self.templates)
        self.featurizer_ = _giving_arrays(self.featurizer)
        self.text_embeddings_ = class_embeddings(self.featurizer_, prompts)
        warn_of_coinciding(names, self.text_embeddings_)
        self.n_features_in_ = self.text_embeddings_.shape[1]
        self._columns = column_names(X) if _holds_embeddings(X) else None
        self.logit_scale_, self.logit_bias_ = self._model_logits()
        with tell_callbacks(self, X):
            self.icm_ = self._fit_icm(X, names)
        self.shift_ = np.zeros(self.n_features_in_, dtype=np.float32)
        return self

    def adapt(self, X, *, prior_weight=10.0):
        """Centre images on a new domain, by some of it that need no labels.

        Parameters
        ----------
        X : sequence of n images or array-like of shape (n, d)
            Images or embeddings of the new domain.
        prior_weight : float, default=10.0
            Number of rows that the mean in training counts as, see
            `ICMTransformer.adapt`.

        Returns
        -------
        classifier : ZeroShotClassifier
            A fitted copy; this one stays as it is.

        Raises
        ------
        ValueError
            If there is no `icm`, which knows the mean in training.
        """
        check_is_fitted(self)
        if self.icm_ is None:
            raise ValueError(
                "icm=None, so the mean in training is not known: give an "
                "ICMTransformer, and images to fit."
            )
        Z = np.asarray(self._embed(X, self.featurizer_.transform))
        mean = self.icm_.mean_
        moved = self.icm_.adapt(Z, prior_weight=prior_weight).mean_
        adapted = copy.copy(self)
        adapted.shift_ = (mean - moved).astype(np.float32)
        return adapted

    def predict(self, X):
        """Return the class whose prompts are nearest.

        Parameters
        ----------
        X : sequence of n images or array-like of shape (n, d)
            Images or embeddings, see the notes of the class.

        Returns
        -------
        y : ndarray of shape (n,)
            Labels, coded as `classes_`.
        """
        best = self._logits(X).argmax(axis=1)
        return self.classes_[best]

    def predict_proba(self, X):
        """Return the probabilities of the classes.

        Parameters
        ----------
        X : sequence of n images or array-like of shape (n, d)
            Images or embeddings, see the notes of the class.

        Returns
        -------
        P : ndarray of shape (n, n_classes)
            Columns in the order of `classes_`. With ``link="sigmoid"``, each is the
            probability that the image shows this class, whatever else it shows: rows
            need not sum to one, as metrics such as `sklearn.metrics.log_loss` expect.
            The largest one is still that of what `predict` returns.
        """
        logits = self._logits(X)
        return expit(logits) if self.link == "sigmoid" else softmax(logits, axis=1)

    def decision_function(self, X):
        """Return the logits: cosines times the scale, and the bias of a sigmoid.

        Parameters
        ----------
        X : sequence of n images or array-like of shape (n, d)
            Images or embeddings, see the notes of the class.

        Returns
        -------
        logits : ndarray of shape (n, n_classes), or (n,) for two classes
            For two classes, the logit of the second less that of the first.
        """
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.target_tags.required = self.class_names is None
        return tags

    def _fit_icm(self, X, names):
        if self.icm is None:
            if _holds_embeddings(X):
                self._embed(X, None)
            else:
                self.featurizer_.fit(X)
            return None
        Z = self._embed(X, self.featurizer_.fit_transform)
        _check_pairs(self.icm, Z)
        icm = clone(self.icm).fit(Z)
        self._keep_spread(np.asarray(Z), icm, names)
        return icm

    def _model_logits(self):
        """Return scale and bias of the model's logits."""
        encoder = self.featurizer_._encoder()
        if self.link == "softmax":
            return encoder.logit_scale, 0.0
        if encoder.logit_bias is None:
            raise ValueError(
                "link='sigmoid' is for models trained with a sigmoid loss, such as "
                "SigLIP, found one without a bias. Set link='softmax'."
            )
        return encoder.logit_scale, encoder.logit_bias

    def _keep_spread(self, Z, icm, names):
        """Adjust scale and bias to the cosines of mapped embeddings, see the notes."""
        T = self.text_embeddings_
        mapped = icm.project(Z), icm.project(T)
        images, texts = map(_lengths, mapped)
        warn_of_map(names, T, texts / (images / _lengths(Z)).max(), mapped[1])
        (spread, mean), (mapped_spread, mapped_mean) = (
            _spread_and_mean(_cosines(*rows)) for rows in ((Z, T), mapped)
        )
        scale = self.logit_scale_
        if spread and mapped_spread:  # neither one class only, nor equal ones
            self.logit_scale_ = scale * spread / mapped_spread
        if self.link == "sigmoid":
            self.logit_bias_ += scale * mean - self.logit_scale_ * mapped_mean

    def _logits(self, X):
        check_is_fitted(self)
        Z = np.asarray(self._embed(X, self.featurizer_.transform))
        T = self.text_embeddings_
        if self.shift_.any():
            Z = Z + self.shift_
        if self.icm_ is not None:
            Z, T = self.icm_.project(Z), self.icm_.project(T)
        return self.logit_scale_ * _cosines(Z, T) + self.logit_bias_

    def _embed(self, X, encode):
        """Embeddings of `X`, as a plain array or with their counterparts."""
        Z = X
        if _holds_embeddings(X):
            columns = getattr(self, "_columns", None)
            check_same_columns(X, columns, "X", "the X that was fitted")
        else:
            Z = encode(X)
        paired = find_paired(Z)
        if hasattr(Z, "columns"):
            Z = np.asarray(Z)
        dtype = [np.float64, np.float32]
        Z = validate_data(self, Z, dtype=dtype, reset=False, ensure_all_finite=False)
        check_finite(Z, "X")
        return Z if paired is None else paired


def _giving_arrays(featurizer):
    """Return a clone whose output carries counterparts, whatever frames are set."""
    featurizer = clone(featurizer)
    if hasattr(featurizer, "set_output"):
        featurizer.set_output(transform="default")
    return featurizer


def _holds_embeddings(X):
    refuse_tables(X, "X", "images or embeddings")
    if hasattr(X, "columns"):  # a frame of images has one, and no paths among others
        first_row = np.asarray(X[:1], dtype=object).ravel()
        return X.shape[1] > 1 and not any(isinstance(cell, str) for cell in first_row)
    kind = getattr(getattr(X, "dtype", None), "kind", "")
    return kind == "f" and X.ndim == 2


def _check_pairs(icm, Z):
    pairs = getattr(icm, "pairs", None)
    words = {p for p in (pairs, getattr(icm, "center", None)) if isinstance(p, str)}
    if words & {"class", "domain"}:
        raise ValueError(
            "icm asks for labels of classes or domains, which it does not get here. "
            "Set pairs='interventional' or (U, V), and center=True or False."
        )
    given_alone = isinstance(pairs, tuple | list) and len(pairs) == 2
    if find_paired(Z) is None and not given_alone:
        raise ValueError(
            "There are no counterparts to learn the invariant map from. Give the "
            "featurizer interventions, fit on what CLIPFeaturizer.intervene or "
            "PairedEmbeddings returns, or give the icm pairs=(U, V)."
        )


def _lengths(rows):
    """Norms of rows, such that they can be divided by."""
    squares = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
    return np.maximum(np.sqrt(squares), np.finfo(np.float64).tiny)


def _cosines(Z, T):
    return unit(Z) @ unit(T).T


def _spread_and_mean(cosines):
    """Standard deviation over the classes, of all images, and mean; plain floats."""
    variance = cosines.var(axis=1, dtype=np.float64).mean()
    return float(np.sqrt(variance)), float(cosines.mean(dtype=np.float64))
