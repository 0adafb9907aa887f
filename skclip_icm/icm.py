"""The estimator that learns which embedding directions an intervention leaves alone."""

import copy
import warnings
from numbers import Integral, Real

from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin, _fit_context
from sklearn.utils import check_array
from sklearn.utils._array_api import get_namespace
from sklearn.utils._param_validation import Interval, RealNotInt, StrOptions
from sklearn.utils.validation import assert_all_finite, check_is_fitted, validate_data

from skclip_icm._encoding.progress import CallbackSupportMixin, tell_callbacks
from skclip_icm._estimators import VersionedEstimator
from skclip_icm._projection.arrays import check_same_library, is_mapped, map_rows
from skclip_icm._projection.directions import solve
from skclip_icm._projection.merging import check_mergeable
from skclip_icm._projection.pair_statistics import PairStatistics
from skclip_icm.pairs import find_paired, without_token


class ICMTransformer(
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
    pairs : {"auto", "interventional", "domain", "class"} or tuple, default="auto"
        Where the pairs come from. "interventional": `X_do`, or the counterparts that
        `X` carries. "domain": rows of one class in different domains (needs `y` and
        `domains`). "class": rows of one class (needs `y`). A tuple (U, V) of arrays
        of shape (m, d): given pairs, such as embeddings of captions and of their
        edits. "auto": the first of interventional, domain and class for which there
        is data. A tuple (U, V, weight): the pairs of "auto" and the given ones; with
        0 < weight < 1, :math:`S_{do}` is (1 - weight) times that of the first plus
        weight times that of the second.
    center : bool, default=True
        Whether to take the mean off, and to use the covariance for :math:`S` rather
        than the second moment. Differences between pairs are never centred.
    rescale : bool, default=True
        Whether to multiply the output by one number, so that training rows have mean
        squared norm 1 and `lam` does not change the meaning of a classifier's `C`.
    shrinkage : "auto" or float, default="auto"
        :math:`\epsilon` of the whitening. "auto" takes the oracle approximating
        shrinkage of :math:`S_{do}` ([2]_). Ignored by the projection.

    Attributes
    ----------
    components_ : ndarray of shape (`n_components_`, `n_features_in_`)
        The directions, one a row. Orthonormal for the projection.
    mean_ : ndarray of shape (`n_features_in_`,)
        Mean of the training rows; zeros if `center` is False.
    scale_ : float
        What the output is multiplied by.
    eigenvalues_ : ndarray of shape (`n_features_in_`,)
        Eigenvalues, descending: of :math:`S - \lambda S_{do}` for the projection, of
        the whitening matrix for the whitening.
    invariance_ : ndarray of shape (`n_components_`,)
        :math:`1 - v^\top S_{do} v / (2 v^\top \operatorname{Cov}(Z) v)` for each row
        *v*. 1: pairs do not differ; 0: they differ as two images drawn at random.
    n_components_ : int
        Number of directions kept.
    n_samples_seen_, n_pairs_seen_ : int
        Number of training rows and of pairs.
    pairs_ : str
        Their source, such as "interventional" or "interventional+given".
    n_features_in_ : int
        Width of the training rows.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Column names, if `X` has strings for them.

    See Also
    --------
    skclip_icm.CLIPFeaturizer : Makes embeddings with counterparts from images.
    sklearn.decomposition.PCA : The projection that ignores interventions.

    Notes
    -----
    Time :math:`O(n d^2 + d^3)`, memory :math:`O(d^2)`; sums are in float64.

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
        "pairs": [StrOptions({"auto", "interventional", "domain", "class"}), tuple],
        "center": ["boolean"],
        "rescale": ["boolean"],
        "shrinkage": [StrOptions({"auto"}), Interval(Real, 0, None, closed="left")],
    }

    def __init__(
        self,
        n_components="auto",
        *,
        lam=1.0,
        method="projection",
        pairs="auto",
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
            Embeddings of the same images after each of k interventions. It takes
            precedence over counterparts that `X` carries.
        domains : array-like of shape (n,), default=None
            Domain labels, for domain pairs.

        Returns
        -------
        self : ICMTransformer
            The fitted transformer.

        Raises
        ------
        ValueError
            If there are no pairs of the kind asked for, or shapes do not fit.
        """
        self._statistics = None
        with tell_callbacks(self, X):
            self._solve(self._summarise(X, y, X_do, domains, mergeable=False))
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y=None, *, X_do=None, domains=None):
        """Learn from one more chunk of rows.

        Any split of the rows into chunks, in any order, gives what `fit` gives on all
        of them, up to rounding. The sums that this needs stay with the transformer:
        two d x d matrices, or one for each class (and domain) with class and domain
        pairs. `fit` starts anew and keeps none.

        Parameters
        ----------
        X : array-like of shape (n, d)
            Embeddings, at least one row.
        y : array-like of shape (n,), default=None
            Class labels, as for `fit`.
        X_do : array-like of shape (n, d) or (n, k, d), default=None
            Embeddings of the intervened images, as for `fit`.
        domains : array-like of shape (n,), default=None
            Domain labels, as for `fit`.

        Returns
        -------
        self : ICMTransformer
            The transformer, fitted once there are pairs.

        Raises
        ------
        ValueError
            If the chunk does not fit the earlier ones, which stay, or as for `fit`.

        Examples
        --------
        >>> from skclip_icm import ICMTransformer
        >>> from skclip_icm.datasets import make_causal_embeddings
        >>> Z = make_causal_embeddings(n_samples=500, random_state=0).embeddings
        >>> icm = ICMTransformer(lam=10).partial_fit(Z[:200]).partial_fit(Z[200:500])
        >>> icm.merge(ICMTransformer(lam=10).partial_fit(Z[500:])).n_samples_seen_
        1000
        """
        if hasattr(self, "components_") and self._statistics is None:
            warnings.warn(
                "fit keeps no sums, so partial_fit starts anew without the rows that "
                "fit has seen. Use partial_fit for all rows.",
                UserWarning,
                stacklevel=3,
            )
        self._solve(self._add_rows(X, y, X_do, domains))
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def merge(self, other):
        """Add the rows that another transformer has seen.

        Parameters
        ----------
        other : ICMTransformer
            One with the same parameters that has seen others; it stays as it is.

        Returns
        -------
        self : ICMTransformer
            The transformer, fitted to the rows of both.

        Raises
        ------
        ValueError
            If parameters, features or pairs differ, or one was fitted by `fit`.
        """
        check_mergeable(self, other)
        if getattr(self, "_statistics", None) is None:
            for name in {"n_features_in_", "feature_names_in_"} & vars(other).keys():
                setattr(self, name, getattr(other, name))
        self._solve(self._add(copy.deepcopy(other._statistics)))
        return self

    def transform(self, X):
        """Map embeddings to the kept directions.

        Parameters
        ----------
        X : array-like of shape (n, d)
            Embeddings.

        Returns
        -------
        X_new : ndarray of shape (n, `n_components_`)
            ``(X - mean_) @ components_.T * scale_``, in the dtype of `X`.
        """
        check_is_fitted(self)
        return self._map(X, self.scale_, "transform")

    def project(self, X):
        """Map embeddings without centring or scale, for cosines with captions.

        Parameters
        ----------
        X : array-like of shape (n, d)
            Embeddings.

        Returns
        -------
        X_new : ndarray of shape (n, `n_components_`)
            ``X @ components_.T``, in the dtype of `X`.
        """
        check_is_fitted(self)
        return self._map(X, 1.0, "project")

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
        xp, _ = get_namespace(X)
        X = check_array(X, dtype=[xp.float64, xp.float32])
        if X.shape[1] != self.n_components_:
            raise ValueError(
                f"X has {X.shape[1]} features, expected n_components_="
                f"{self.n_components_}: what transform returns."
            )
        check_same_library(X, self, "inverse_transform")
        components, mean = (
            xp.astype(a, X.dtype) for a in (self.components_, self.mean_)
        )
        squared_norms = xp.sum(components * components, axis=1)
        return X @ (components / (self.scale_ * squared_norms)[:, None]) + mean

    def __sklearn_is_fitted__(self):
        return hasattr(self, "components_")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = self.pairs in ("class", "domain")
        tags.array_api_support = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def _n_features_out(self):
        return self.n_components_

    def _map(self, X, scale, method):
        xp, _ = get_namespace(X)
        X = validate_data(
            self,
            X,
            dtype=[xp.float64, xp.float32],
            reset=False,
            ensure_all_finite=not is_mapped(X),  # else below, in the small output
        )
        check_same_library(X, self, method)
        X = without_token(X)
        directions = xp.astype(self.components_ * scale, X.dtype, copy=False)
        mean = self.mean_ if method == "transform" else xp.zeros_like(self.mean_)
        mapped = map_rows(X, directions, xp.astype(mean, X.dtype) @ directions.T)
        if is_mapped(X):
            assert_all_finite(mapped, input_name="X", estimator_name="ICMTransformer")
        return mapped

    def _summarise(self, X, y, X_do, domains, **kwargs):
        xp, _ = get_namespace(X)
        paired = find_paired(X)
        X = validate_data(
            self,
            X,
            dtype=[xp.float64, xp.float32],
            reset=not hasattr(self, "components_") or not kwargs.get("mergeable", True),
            ensure_all_finite=False,
            ensure_min_samples=1 if kwargs.get("mergeable", True) else 2,
        )
        X = without_token(X)
        if self.n_components not in ("auto", None) and self.n_components > X.shape[1]:
            raise ValueError(
                f"n_components={self.n_components} is more than the {X.shape[1]} "
                "features of X. Give at most that many."
            )
        return PairStatistics(
            self.pairs, X, paired=paired, y=y, X_do=X_do, domains=domains, **kwargs
        )

    def _add_rows(self, X, y=None, X_do=None, domains=None):
        """Add the sums of a chunk, without O(d^3) for directions; return all sums."""
        so_far = getattr(self, "_statistics", None)
        return self._add(self._summarise(X, y, X_do, domains, after=so_far))

    def _add(self, piece):
        so_far = getattr(self, "_statistics", None)
        self._statistics = piece if so_far is None else so_far.merge(piece)
        return self._statistics

    def _solve(self, statistics):
        if statistics.n_pairs:  # none if all labels so far are alone
            params = self.get_params(deep=False)
            del params["pairs"]
            self.__dict__.update(solve(statistics, **params))
