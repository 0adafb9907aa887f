"""The estimator that learns which embedding directions an intervention leaves alone."""

import warnings
from numbers import Integral, Real

import numpy as np
from scipy.linalg import eigh
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    _fit_context,
)
from sklearn.utils import check_array
from sklearn.utils._param_validation import Interval, RealNotInt, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from skclip_icm.differences import find_differences
from skclip_icm.moments import GramSum, Moments
from skclip_icm.pairs import find_paired


class ICMTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
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
        Number of directions to keep. "auto" keeps those with a positive eigenvalue:
        their variance in the data exceeds `lam` times what the intervention causes. A
        float in (0, 1) keeps the fewest directions that hold this share of the sum of
        the positive eigenvalues. None keeps all.
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
        Whether to multiply the output by one number such that the training rows have
        mean squared norm 1, so that `lam` does not change the meaning of a
        classifier's `C`.
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
        The number that the output is multiplied by.
    eigenvalues_ : ndarray of shape (`n_features_in_`,)
        Eigenvalues, descending: of :math:`S - \lambda S_{do}` for the projection, of
        the whitening matrix for the whitening.
    invariance_ : ndarray of shape (`n_components_`,)
        :math:`1 - v^\top S_{do} v / (2 v^\top \operatorname{Cov}(Z) v)` for each
        direction *v*. 1: the intervention leaves it alone; 0: it moves it as far as
        drawing another image does.
    n_components_ : int
        Number of directions kept.
    n_samples_seen_ : int
        Number of training rows.
    n_pairs_seen_ : int
        Number of pairs.
    pairs_ : str
        Source of the pairs: "interventional", "domain", "class" or "given"; for two
        sources, such as "interventional+given".
    n_features_in_ : int
        Width of the training rows.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features; defined only if `X` has string column names.

    See Also
    --------
    skclip_icm.CLIPFeaturizer : Makes embeddings with counterparts from images.
    sklearn.decomposition.PCA : The projection that ignores interventions.

    Notes
    -----
    Fitting needs the mean, :math:`S` and :math:`S_{do}` only: time
    :math:`O(n d^2 + d^3)` and, beside the input, memory :math:`O(d^2)`. Sums are in
    float64; components have the dtype of `X`.

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
        paired = find_paired(X)
        X = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2)
        if self.n_components not in ("auto", None) and self.n_components > X.shape[1]:
            raise ValueError(
                f"n_components={self.n_components} is more than the {X.shape[1]} "
                "features of X."
            )
        self.pairs_, differences, self.n_pairs_seen_ = find_differences(
            self.pairs, X, paired=paired, y=y, X_do=X_do, domains=domains
        )
        moments, pair_sum = Moments(X.shape[1]).update(X), GramSum(X.shape[1])
        for rows in differences:
            pair_sum.update(rows)
        self._solve(moments, pair_sum.total / self.n_pairs_seen_, X.dtype)
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
        mapped, directions = self._map(X, self.scale_)
        mapped -= self.mean_.astype(mapped.dtype, copy=False) @ directions.T
        return mapped

    def project(self, X):
        """Map embeddings to the kept directions, without centring or scale.

        For cosines between modalities, which have means of their own: the same linear
        map applies to image and to caption embeddings.

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
        return self._map(X, 1.0)[0]

    def inverse_transform(self, X):
        """Map transformed rows back to the space of the embeddings.

        Parameters
        ----------
        X : array-like of shape (n, `n_components_`)
            Transformed rows.

        Returns
        -------
        X_original : ndarray of shape (n, d)
            The embeddings with smallest distance to the mean that `transform` maps to
            `X`; what the dropped directions held is lost.
        """
        check_is_fitted(self)
        X = check_array(X, dtype=[np.float64, np.float32])
        if X.shape[1] != self.n_components_:
            raise ValueError(
                f"X has {X.shape[1]} features, expected n_components_="
                f"{self.n_components_}."
            )
        squared_norms = np.sum(np.square(self.components_, dtype=np.float64), axis=1)
        back = self.components_ / (self.scale_ * squared_norms)[:, None]
        return X @ back.astype(X.dtype) + self.mean_.astype(X.dtype)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = self.pairs in ("class", "domain")
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def _n_features_out(self):
        return self.n_components_

    def _map(self, X, scale):
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        directions = (self.components_ * scale).astype(X.dtype, copy=False)
        return X @ directions.T, directions

    def _solve(self, moments, S_do, dtype):
        S = moments.second_moment(center=self.center)
        if self.method == "projection":
            eigenvalues, directions = _descending_eigh(S - self.lam * S_do)
        else:
            eigenvalues, directions = _whitening(S_do, self.shrinkage, moments.n)
        self.n_components_ = self._count(eigenvalues)
        A = _fix_signs(directions[: self.n_components_])
        square = _along(A, S)  # mean square of each output before the scale
        scaled = self.rescale and square.sum() > 0
        self.scale_ = float(square.sum() ** -0.5) if scaled else 1.0
        variance = square if self.center else square - (A @ moments.mean) ** 2
        self.invariance_ = _invariance(_along(A, S_do), variance)
        self.eigenvalues_ = eigenvalues
        self.components_ = A.astype(dtype)
        mean = moments.mean if self.center else np.zeros_like(moments.mean)
        self.mean_ = mean.astype(dtype)
        self.n_samples_seen_ = moments.n

    def _count(self, eigenvalues):
        if self.n_components is None:
            return len(eigenvalues)
        if isinstance(self.n_components, Integral):
            return int(self.n_components)
        # Directions without any variance have eigenvalues of rounding size.
        tiny = np.abs(eigenvalues).max() * len(eigenvalues) * np.finfo(float).eps
        positive = eigenvalues[eigenvalues > tiny]
        if not positive.size:
            warnings.warn(
                f"No direction has more variance than lam={self.lam} times what the "
                "pairs cause; keeping the single best one. Lower lam, or make the "
                "interventions milder.",
                UserWarning,
                stacklevel=5,
            )
            return 1
        if self.n_components == "auto":
            return len(positive)
        share = np.cumsum(positive) / positive.sum()
        return min(np.searchsorted(share, self.n_components) + 1, len(positive))


def _descending_eigh(M):
    # Divide and conquer is the fastest driver when all eigenvectors are wanted.
    eigenvalues, vectors = eigh(M, driver="evd", overwrite_a=True)
    return eigenvalues[::-1], vectors[:, ::-1].T


def _whitening(S_do, shrinkage, n_samples):
    """Weights, descending, and rows of the whitening matrix of `S_do`."""
    moved, directions = _descending_eigh(S_do.copy())
    epsilon = _oas_ratio(S_do, n_samples) if shrinkage == "auto" else shrinkage
    damping = np.maximum(moved, 0) + epsilon * moved.mean()
    if damping[-1] <= damping[0] * np.finfo(float).eps:
        raise ValueError(
            "No pair moves some of the directions, so their whitening weight is "
            f"infinite with shrinkage={shrinkage!r}: give shrinkage > 0 and pairs that "
            "differ."
        )
    weights = damping[::-1] ** -0.5
    return weights, weights[:, None] * directions[::-1]


def _oas_ratio(S, n_samples):
    """Weight of the identity relative to `S` in its shrunk estimate ([2]_, eq. 23)."""
    d = len(S)
    trace_squared, square_trace = np.trace(S) ** 2, np.sum(S**2)
    numerator = (1 - 2 / d) * square_trace + trace_squared
    denominator = (n_samples + 1 - 2 / d) * (square_trace - trace_squared / d)
    rho = numerator / denominator if denominator > numerator else 1.0
    return rho / max(1 - rho, np.finfo(float).eps)


def _fix_signs(directions):
    """Make the entry of largest magnitude of each row positive."""
    largest = np.abs(directions).argmax(axis=1)
    signs = np.sign(directions[np.arange(len(directions)), largest])
    return directions * signs[:, None]


def _along(directions, M):
    """``v.T @ M @ v`` for each row v of `directions`."""
    return np.einsum("rd,rd->r", directions @ M, directions)


def _invariance(moved, variance):
    # A direction in which nothing varies cannot be moved either: it is invariant.
    spread = np.maximum(2 * variance, np.finfo(float).tiny)
    return 1 - np.maximum(moved, 0) / spread
