"""The estimator that learns which embedding directions an intervention leaves alone."""

import copy
from numbers import Integral, Real

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin, _fit_context
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted, validate_data

from skclip_icm._encoding.progress import CallbackSupportMixin, tell_callbacks
from skclip_icm._estimators import Interval, RealNotInt, StrOptions, VersionedEstimator
from skclip_icm._projection import arrays
from skclip_icm._projection.differences import check_finite, find_source
from skclip_icm._projection.directions import fit_rows
from skclip_icm._projection.groups import domain_rows
from skclip_icm._projection.partial_fit import PartialFitMixin
from skclip_icm.pairs import embedding_dtypes, find_paired, why_unpaired


class ICMTransformer(
    PartialFitMixin,
    CallbackSupportMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    VersionedEstimator,
):
    r"""Project embeddings on the directions that interventions do not move.

    With the covariance :math:`S` of the embeddings and the second moment
    :math:`S_{do}` of the differences between paired embeddings, the projection
    maximises :math:`\operatorname{tr} A (S - \lambda S_{do}) A^\top` subject to
    :math:`A A^\top = I`: much variance between images, little variance caused by the
    intervention. The rows of :math:`A` (the paper's :math:`A_{inv}`) are the
    eigenvectors of :math:`S - \lambda S_{do}` with the largest eigenvalues ([1]_,
    stage 2 of CLIP-ICM).

    Parameters
    ----------
    n_components : "auto", int, float or None, default="auto"
        Number of directions to keep. "auto": those with a positive eigenvalue, whose
        variance exceeds `lam` times what the intervention causes. A float in (0, 1):
        the fewest that hold this share of the sum of positive eigenvalues. None: all.
    lam : float, default=1.0
        Weight :math:`\lambda` of the variation that the intervention causes. As it
        grows, only the null space of :math:`S_{do}` is left.
    method : {"projection", "whitening"}, default="projection"
        "projection" drops directions. "whitening" keeps all of them and damps each by
        how far the intervention moves it: it applies
        :math:`(S_{do} + \epsilon \frac{\operatorname{tr} S_{do}}{d} I)^{-1/2}`, in the
        basis of the eigenvectors of :math:`S_{do}`, least moved first.
    pairs : {"interventional", "domain", "class"} or tuple, default="interventional"
        Where the pairs come from; no others ever take their place. "interventional":
        the counterparts that `X` carries, or `X_do`. "domain": rows of one class in
        different domains (needs `y` and `domains`). "class": rows of one class (needs
        `y`). A tuple (U, V) of arrays of shape (m, d): given pairs, such as captions
        and their edits. A tuple (U, V, weight), 0 < weight < 1: :math:`S_{do}` is
        (1 - weight) times that of interventional pairs plus weight times that of given.
    center : bool or "domain", default=True
        Whether to take the mean off, and to use the covariance for :math:`S` rather
        than the second moment. "domain" takes off the mean of each training domain
        (needs `domains`): so does `fit_transform`, while `transform`, which cannot know
        the domain of a row, takes off `mean_` until `adapt` has moved it to a new
        domain. Differences between interventional pairs are never centred.
    rescale : bool, default=True
        Whether to scale the output such that training rows have mean squared norm 1,
        and `lam` does not change the meaning of a classifier's `C`.
    shrinkage : "auto" or float, default="auto"
        :math:`\epsilon` of the whitening. "auto" takes the oracle approximating
        shrinkage of :math:`S_{do}` ([2]_) for the number of pairs. Ignored by the
        projection.

    Attributes
    ----------
    components_ : ndarray of shape (`n_components_`, `n_features_in_`)
        The directions, one a row. Orthonormal for the projection.
    mean_ : ndarray of shape (`n_features_in_`,)
        Mean of the training rows, zeros if `center` is False; see `adapt`.
    domains_ : ndarray of shape (n_domains,)
        Labels of the training domains, with ``center="domain"``.
    domain_means_ : ndarray of shape (n_domains, `n_features_in_`)
        Their means, with ``center="domain"``.
    scale_ : float
        What the output is multiplied by.
    eigenvalues_ : ndarray of shape (`n_features_in_`,)
        Eigenvalues, descending: of :math:`S - \lambda S_{do}` for the projection, of
        the whitening matrix for the whitening.
    invariance_ : ndarray of shape (`n_components_`,)
        :math:`1 - v^\top S_{do} v / (2 v^\top \operatorname{Cov}(Z) v)` for each row
        *v*. 1: pairs do not differ, or nothing varies along *v*; 0: they differ as two
        images drawn at random.
    n_components_, n_features_in_, n_samples_seen_, n_pairs_seen_ : int
        Numbers of directions kept, of features, of training rows and of pairs.
    pairs_ : str
        "interventional", "domain", "class", "given" or "interventional+given".
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Column names, if `X` has strings for them.

    See Also
    --------
    skclip_icm.CLIPFeaturizer : Makes embeddings with counterparts from images.
    sklearn.decomposition.PCA : The projection that ignores interventions.

    Notes
    -----
    Time :math:`O(n d^2 + d^3)`, memory :math:`O(d^2)`; sums are in float64. The
    projection of n rows and p pairs with n + p < d takes :math:`O((n + p)^2 d)`.
    Not from the paper: `center`, `adapt`, the automatic number of directions,
    `rescale`, `invariance_`, the whitening, and all pairs but interventional ones.

    References
    ----------
    .. [1] Z. Song et al., "Learning Invariant Causal Mechanism from Vision-Language
       Models", ICML 2025, arXiv:2405.15289.
    .. [2] Y. Chen et al., "Shrinkage Algorithms for MMSE Covariance Estimation", IEEE
       Transactions on Signal Processing 58 (10), 2010.

    Examples
    --------
    >>> from skclip_icm import ICMTransformer
    >>> from skclip_icm.datasets import make_causal_embeddings
    >>> data = make_causal_embeddings(n_samples=500, random_state=0)
    >>> train = data.domains == 0
    >>> icm = ICMTransformer(lam=10).fit(data.embeddings[train])
    >>> icm.n_components_
    16
    >>> icm.transform(data.embeddings[~train]).shape
    (500, 16)
    """

    # The pairs belong to the rows, so they are routed to fit without being asked for.
    __metadata_request__fit = {"X_do": True, "domains": True}
    __metadata_request__partial_fit = {"X_do": True, "domains": True}

    _parameter_constraints: dict = {
        "n_components": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
            Interval(RealNotInt, 0, 1, closed="neither"),
            None,
        ],
        "lam": [Interval(Real, 0, None, closed="left")],
        "method": [StrOptions({"projection", "whitening"})],
        "pairs": [StrOptions({"interventional", "domain", "class"}), tuple, list],
        "center": ["boolean", StrOptions({"domain"})],
        "rescale": ["boolean"],
        "shrinkage": [StrOptions({"auto"}), Interval(Real, 0, None, closed="left")],
    }

    def __init__(
        self,
        n_components="auto",
        *,
        lam=1.0,
        method="projection",
        pairs="interventional",
        center=True,
        rescale=True,
        shrinkage="auto",
    ):
        self.n_components = n_components
        self.lam = lam
        self.method = method
        self.pairs = pairs
        self.center = center
        self.rescale = rescale
        self.shrinkage = shrinkage

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None, *, X_do=None, domains=None):
        """Learn the directions from embeddings and their pairs.

        Parameters
        ----------
        X : array-like of shape (n, d)
            Embeddings, at least two rows. `PairedEmbeddings` bring their counterparts.
        y : array-like of shape (n,), default=None
            Class labels, for domain and class pairs.
        X_do : array-like of shape (n, d) or (n, k, d), default=None
            Embeddings of the same images after each of k interventions, in place of
            the counterparts that `X` may carry.
        domains : array-like of shape (n,), default=None
            Domain labels, for domain pairs and ``center="domain"``.

        Returns
        -------
        self : ICMTransformer
            The fitted transformer.

        Raises
        ------
        ValueError
            If there are no pairs of the kind asked for, `X_do` or `domains` are not
            used, shapes or names of columns do not fit, or a value is not finite or
            missing.
        """
        with tell_callbacks(self, X):
            after = copy.copy(self)  # takes this one's place when all has gone well
            after._sums = None
            X, source = after._check(X, y, X_do, domains, ensure_min_samples=2)
            after._set(fit_rows(X, source, after.get_params(deep=False)))
            self.__dict__ = vars(after)
        return self

    def fit_transform(self, X, y=None, *, X_do=None, domains=None):
        """Learn the directions and map the same rows to them.

        Parameters
        ----------
        X : array-like of shape (n, d)
            Embeddings, as for `fit`.
        y : array-like of shape (n,), default=None
            Class labels, as for `fit`.
        X_do : array-like of shape (n, d) or (n, k, d), default=None
            Embeddings of the intervened images, as for `fit`.
        domains : array-like of shape (n,), default=None
            Domain labels, as for `fit`.

        Returns
        -------
        X_new : ndarray of shape (n, `n_components_`)
            What `transform` returns, and with ``center="domain"`` that less the mean
            of each row's domain.
        """
        self.fit(X, y, X_do=X_do, domains=domains)
        mapped = self._map(X, "transform")
        if self.center != "domain":
            return mapped
        shifts = (self.domain_means_ - self.mean_) @ self.components_.T * self.scale_
        codes = domain_rows(mapped.shape[0], domains)[1]
        shifts = arrays.take_rows(shifts, codes)
        return mapped - arrays.wide(mapped)[0].astype(shifts, mapped.dtype)

    def adapt(self, X, *, prior_weight=10.0):
        r"""Centre on a new domain, by embeddings of it that need no labels.

        Whatever shifts all embeddings of a domain alike, as another camera does, goes
        with their mean. A few dozen rows suffice for most of it. The shares of the
        classes among them should be like those in training: if they are not, what
        separates the classes goes as well.

        Parameters
        ----------
        X : array-like of shape (n, d)
            Embeddings of the new domain.
        prior_weight : float, default=10.0
            Number k of rows that the mean :math:`m` of the training rows counts as:
            with the mean :math:`m_X` of `X`, the new `mean_` is
            :math:`(n\,m_X + k\,m) / (n + k)`.

        Returns
        -------
        icm : ICMTransformer
            A fitted copy with the new `mean_`; this one stays as it is.

        Raises
        ------
        ValueError
            If `center` is False, `prior_weight` is negative, or `X` is not as wide as
            in training.

        See Also
        --------
        skclip_icm.adapt : The same for a fitted pipeline or search.

        Examples
        --------
        >>> import numpy as np
        >>> from skclip_icm import ICMTransformer
        >>> rng = np.random.default_rng(0)
        >>> Z = rng.normal(size=(500, 8))
        >>> icm = ICMTransformer().fit(Z, X_do=Z + rng.normal(size=(500, 8)) / 3)
        >>> shifted = Z + 5
        >>> bool(abs(icm.adapt(shifted).transform(shifted).mean()) < 0.1)
        True
        """
        check_is_fitted(self)
        if self.center is False:
            raise ValueError(
                "center=False, so there is no mean to adapt: fit with center=True or "
                'center="domain".'
            )
        dtype = embedding_dtypes(X)
        X = validate_data(self, X, dtype=dtype, reset=False, ensure_all_finite=False)
        check_finite(X, "X")
        arrays.check_same_library(X, self.components_, "adapt")
        adapted = copy.deepcopy(self)
        adapted.mean_ = arrays.moved_mean(self.mean_, X, prior_weight)
        return adapted

    def transform(self, X):
        """Map embeddings to the kept directions.

        Parameters
        ----------
        X : array-like of shape (n, d)
            Embeddings.

        Returns
        -------
        X_new : ndarray of shape (n, `n_components_`)
            ``(X - mean_) @ components_.T * scale_``: float32 if `X` is, else float64.
        """
        return self._map(X, "transform")

    def project(self, X):
        """Map embeddings without centring or scale, for cosines with captions.

        Parameters
        ----------
        X : array-like of shape (n, d)
            Embeddings.

        Returns
        -------
        X_new : ndarray of shape (n, `n_components_`)
            ``X @ components_.T``: float32 if `X` is, else float64.
        """
        return self._map(X, "project")

    def inverse_transform(self, X):
        """Map transformed rows back to the space of the embeddings.

        Parameters
        ----------
        X : array-like of shape (n, `n_components_`)
            Transformed rows.

        Returns
        -------
        X_original : ndarray of shape (n, d)
            The embeddings closest to the mean that `transform` maps to `X`.
        """
        check_is_fitted(self)
        X = check_array(X, dtype=embedding_dtypes(X))
        if X.shape[1] != self.n_components_:
            raise ValueError(
                f"X has {X.shape[1]} features, expected n_components_="
                f"{self.n_components_}: what transform returns."
            )
        arrays.check_same_library(X, self.components_, "inverse_transform")
        return arrays.unmap_rows(X, self.components_, self.mean_, self.scale_)

    def __sklearn_is_fitted__(self):
        return hasattr(self, "components_")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = self.pairs in ("class", "domain")
        tags.array_api_support = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _map(self, X, method):
        check_is_fitted(self)
        # What is not finite shows below, in the small output.
        dtype = embedding_dtypes(X)
        X = validate_data(self, X, dtype=dtype, reset=False, ensure_all_finite=False)
        arrays.check_same_library(X, self.components_, method)
        xp = arrays.wide(X)[0]
        centred = method == "transform"
        directions = self.components_ * self.scale_ if centred else self.components_
        directions = xp.astype(directions, X.dtype, copy=False)
        mean = xp.astype(self.mean_, X.dtype) * float(centred)
        with np.errstate(invalid="ignore"):  # infinity times 0
            mapped = arrays.map_rows(X, directions, mean @ directions.T)
        check_finite(mapped, "X")
        return mapped

    def _check(self, X, y, X_do, domains, **kwargs):
        """Return `X` as an array and the `Source` of its pairs."""
        paired, unpaired, dtype = find_paired(X), why_unpaired(X), embedding_dtypes(X)
        # Values that are not finite show in the sums.
        X = validate_data(self, X, dtype=dtype, ensure_all_finite=False, **kwargs)
        if self.n_components not in ("auto", None) and self.n_components > X.shape[1]:
            raise ValueError(
                f"n_components={self.n_components} is more than the {X.shape[1]} "
                "features of X. Give at most that many."
            )
        columns = getattr(self, "feature_names_in_", None)
        source = find_source(
            self.pairs, self.center, X, paired, unpaired, y, X_do, domains, columns
        )
        self._kind = source.kind
        return X, source

    def _set(self, fitted):
        self.__dict__.update(fitted, _n_features_out=fitted["n_components_"])
        mixed = len(self.pairs) == 3 and isinstance(self.pairs, tuple)
        self.pairs_ = f"{self._kind}+given" if mixed else self._kind
