"""Embeddings to representations: centring, projections, whitening and their rivals.

A representation of `Training` is, for each setting of its parameters, an `Affine` map.
"""

import copy
from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import eigh
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from skclip_icm.model_selection import LAMS, SHRINKAGES

LAMS_OF_GROUPS = (0.03, 0.3, 3, 30, 300, 3000)  # for rows beside the main ones
PCA_COMPONENTS = (16, 64, 256, 512, 1024)
SCRIPT_LAM = 1000
SCRIPT_COMPONENTS = (16, 64, 256, 768, 1024, 1200)
ZERO_SHOT_LAMS, ZERO_SHOT_SHRINKAGES = (0.03, 0.1, 0.3, 1), (1, 10, 100, 1000)
PRIOR_WEIGHT = 10  # as in ICMTransformer.adapt


@dataclass(frozen=True, eq=False)
class Training:
    """What a method may learn from."""

    Z: np.ndarray
    X_do: np.ndarray
    y: np.ndarray  # indices into classes
    classes: np.ndarray
    domains: np.ndarray
    target: int | None  # domain to be predicted
    unlabelled: np.ndarray  # its rows, without labels, for transductive methods
    balanced: bool = False  # whether classes weigh alike
    prompts: np.ndarray | None = None  # (n_classes, d), unit rows
    caption_pairs: np.ndarray | None = None  # (2, n_classes, m, d)
    fitted: dict = field(default_factory=dict)  # eigendecompositions, shared

    @property
    def n_classes(self):
        return len(self.classes)

    @property
    def weights(self):
        """Of the rows; they sum to their number."""
        if not self.balanced:
            return np.ones(len(self.y))
        counts = np.bincount(self.y)
        return (len(self.y) / len(counts) / counts)[self.y]


class UnavailableError(Exception):
    """A method does not exist for these data; the message says why."""


class Affine:
    """``(Z - mean) @ matrix``; other means, or another matrix, for some domains."""

    def __init__(self, matrix=None, mean=0.0, means=None, matrices=None):
        self.matrix, self.mean = matrix, mean
        self.means, self.matrices = means or {}, matrices or {}
        self.scale = 1.0

    def __call__(self, Z, domains):
        return self.apply(Z, domains, None)

    def apply(self, Z, domains, coefficients):
        """Map rows, and on by `coefficients`: with these first, a small product."""
        parts = set(np.unique(domains)) & (set(self.means) | set(self.matrices))
        if not parts:
            return self._map(Z, self.mean, self.matrix, coefficients)
        result = self._map(Z, self.mean, self.matrix, coefficients)
        for domain in parts:
            rows = domains == domain
            mean = self.means.get(domain, self.mean)
            matrix = self.matrices.get(domain, self.matrix)
            result[rows] = self._map(Z[rows], mean, matrix, coefficients)
        return result

    def rescaled(self, training):
        """Give training rows a mean squared norm of 1, so that C means the same."""
        mapped = self(training.Z, training.domains)
        rescaled = copy.copy(self)
        squares = np.vdot(mapped, mapped) / len(mapped)
        rescaled.scale = float(squares) ** -0.5
        return rescaled

    def _map(self, Z, mean, matrix, coefficients):
        factor = matrix
        if coefficients is not None:
            coefficients = np.asarray(coefficients, dtype=np.float32)
            factor = coefficients if matrix is None else matrix @ coefficients
        # Of float32, as everything that is multiplied by rows.
        scale, mean = np.float32(self.scale), np.asarray(mean, dtype=np.float32)
        if factor is None:
            return (Z - mean) * scale
        return ((Z - mean) @ factor) * scale


def raw(training):
    return {(): Affine()}


def centred(training):
    """ICM's centring and scale without its projection: what these alone do."""
    return {(): Affine(mean=training.Z.mean(axis=0))}


def pca(training):
    limit = min(training.Z.shape)
    sizes = [size for size in PCA_COMPONENTS if size < limit] or [limit]
    fitted = PCA(max(sizes), svd_solver="covariance_eigh").fit(training.Z)
    return {
        ("n_components", size): Affine(fitted.components_[:size].T, fitted.mean_)
        for size in sizes
    }


def lda(training):
    fitted = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto")
    fitted.fit(training.Z, training.y)
    matrix = fitted.scalings_[:, : training.n_classes - 1]
    return {(): Affine(matrix.astype(np.float32), training.Z.mean(axis=0))}


def coral(training):
    """Give the training rows the target's covariance (Sun et al., AAAI 2016)."""
    align = _power(training.Z, -0.5) @ _power(training.unlabelled, 0.5)
    return {
        (): Affine(
            align.astype(np.float32),
            training.Z.mean(axis=0),
            means={training.target: training.unlabelled.mean(axis=0)},
            matrices={training.target: np.eye(len(align), dtype=np.float32)},
        )
    }


def leace(training):
    """Erase what predicts the domain linearly (Belrose et al., NeurIPS 2023)."""
    names, codes = np.unique(training.domains, return_inverse=True)
    if len(names) < 2:
        raise UnavailableError("needs two training domains")
    try:
        from concept_erasure import LeaceEraser
    except ImportError as error:
        raise UnavailableError("needs `pip install concept-erasure`") from error
    import torch

    one_hot = torch.eye(len(names))[torch.from_numpy(codes)]
    eraser = LeaceEraser.fit(torch.tensor(training.Z), one_hot)
    # What it does to the unit vectors is the matrix, but for what it does to 0.
    d = training.Z.shape[1]
    at_zero, moved = (eraser(rows) for rows in (torch.zeros(1, d), torch.eye(d)))
    return {(): Affine((moved - at_zero).numpy())}


def script(largest):
    """The released script's matrix, of moments about 0, and one end of its spectrum."""

    def fit(training):
        if "script" not in training.fitted:
            M = _moment(training.Z) - SCRIPT_LAM * moved(training, "interventional")
            training.fitted["script"] = eigh(M, driver="evd")[1].astype(np.float32)
        vectors = training.fitted["script"]
        d = len(vectors)
        sizes = [size for size in SCRIPT_COMPONENTS if size < d] or [d // 2]
        return {
            ("n_components", size): Affine(
                vectors[:, -size:] if largest else vectors[:, :size]
            )
            for size in sizes
        }

    return fit


def projection(pairs, lams=LAMS, by_domain=False):
    """What ICMTransformer does with method="projection"; a test holds it to that."""

    def fit(training):
        S = _covariance(training, by_domain)
        S_do = moved(training, pairs)
        maps = {}
        for lam in lams:
            key = pairs, lam, by_domain
            if key not in training.fitted:
                values, vectors = eigh(S - lam * S_do, driver="evd")
                tiny = np.abs(values).max() * len(S) * np.finfo(float).eps
                kept = max(np.sum(values > tiny), 1)
                training.fitted[key] = vectors[:, -kept:].astype(np.float32)
            maps["lam", lam] = _centred_map(training, training.fitted[key], by_domain)
        return maps

    return fit


def whitening(pairs, shrinkages=SHRINKAGES, by_domain=False):
    """What ICMTransformer does with method="whitening"; a test holds it to that."""

    def fit(training):
        S_do = moved(training, pairs)
        if ("whitening", pairs) not in training.fitted:
            training.fitted["whitening", pairs] = eigh(S_do, driver="evd")
        values, vectors = training.fitted["whitening", pairs]
        maps = {}
        for shrinkage in shrinkages:
            ratio = shrinkage
            if shrinkage == "auto":
                ratio = _oas_ratio(values, len(training.Z))
            damping = np.maximum(values, 0) + ratio * values.mean()
            matrix = (vectors * damping**-0.5).astype(np.float32)
            maps["shrinkage", shrinkage] = _centred_map(training, matrix, by_domain)
        return maps

    return fit


def centring(training):
    return {(): _centred_map(training, None, by_domain=True)}


def zero_shot_icm(pairs):
    """Project images and prompts; plain CLIP is among the settings and wins a tie.

    Prompts were never shown the classes of these data, so a hard cut is a larger risk
    than for a probe: most settings damp the moved directions rather than drop them.
    """

    def fit(training):
        maps = projection(pairs, ZERO_SHOT_LAMS)(training)
        maps |= whitening(pairs, ZERO_SHOT_SHRINKAGES)(training)
        return raw(training) | {key: Affine(m.matrix) for key, m in maps.items()}

    return fit


def moved(training, pairs):
    """Second moment of the differences between pairs, S_do."""
    if pairs not in training.fitted:
        training.fitted[pairs] = _moved(training, pairs)
    return training.fitted[pairs]


def _moved(training, pairs):
    if pairs == "interventional":
        return _moment(training.Z - training.X_do)
    if pairs in ("class", "domain"):
        return _moved_in_groups(training, across_domains=pairs == "domain")
    if training.caption_pairs is None:
        raise UnavailableError("needs a text tower")
    if pairs == "images and captions":
        return _moment(_from_captions(training))
    captions = _moment(
        np.subtract(*training.caption_pairs).reshape(-1, training.Z.shape[1])
    )
    if pairs == "captions":
        return captions
    # "both", such that both kinds move the embeddings equally far.
    images = moved(training, "interventional")
    share = np.trace(images) / (np.trace(images) + np.trace(captions))
    return (1 - share) * images + share * captions


def _moved_in_groups(training, across_domains):
    """All pairs within a class, or those of them from different domains."""
    names, codes = np.unique(training.domains, return_inverse=True)
    if across_domains and len(names) < 2:
        raise UnavailableError("needs two training domains")
    total, n_pairs = _all_pairs(training.Z, training.y)
    if across_domains:
        within, n_within = _all_pairs(training.Z, training.y * len(names) + codes)
        total, n_pairs = total - within, n_pairs - n_within
    return total / n_pairs


def _all_pairs(Z, labels):
    """Sum of the outer products of the differences of rows of one label, and number."""
    rows, n_pairs = [], 0
    for label in np.unique(labels):
        members = Z[labels == label].astype(float)
        n = len(members)
        # Over all pairs, these sum to n times the scatter about the mean.
        rows.append((members - members.mean(axis=0)) * n**0.5)
        n_pairs += n * (n - 1) // 2
    rows = np.concatenate(rows)
    return rows.T @ rows, n_pairs


def _from_captions(training):
    """Images less edited captions of their class, each modality without its mean."""
    edited = training.caption_pairs[1]
    row = np.arange(len(training.Z)) % edited.shape[1]
    captions = edited[training.y, row]
    return (training.Z - training.Z.mean(axis=0)) - (captions - captions.mean(axis=0))


def _centred_map(training, matrix, by_domain):
    mean = training.Z.mean(axis=0)
    if not by_domain:
        return Affine(matrix, mean)
    means = {
        domain: training.Z[training.domains == domain].mean(axis=0)
        for domain in np.unique(training.domains)
    }
    n = len(training.unlabelled)
    total = training.unlabelled.sum(axis=0, dtype=float) + PRIOR_WEIGHT * mean
    means[training.target] = (total / (n + PRIOR_WEIGHT)).astype(np.float32)
    return Affine(matrix, mean, means)


def _covariance(training, by_domain):
    key = "covariance", by_domain
    if key not in training.fitted:
        centred = training.Z - training.Z.mean(axis=0)
        if by_domain:
            centred = centring(training)[()](training.Z, training.domains)
        training.fitted[key] = _moment(centred)
    return training.fitted[key]


def _moment(rows):
    rows = rows.astype(float)
    return rows.T @ rows / len(rows)


def _oas_ratio(values, n):
    """Weight of the identity in ICMTransformer's "auto", by eigenvalues of S_do."""
    square_of_trace, trace_of_square = values.sum() ** 2, np.sum(values**2)
    numerator = trace_of_square + square_of_trace
    denominator = (n + 1) * (trace_of_square - square_of_trace / len(values))
    rho = numerator / denominator if denominator > numerator else 1.0
    return rho / max(1 - rho, 1e-6)


def _power(Z, exponent):
    """A power of the covariance plus its mean variance, as CORAL adds 1 to z-scores."""
    covariance = np.cov(Z, rowvar=False, dtype=float)
    ridge = np.trace(covariance) / len(covariance)
    eigenvalues, vectors = eigh(covariance, driver="evd")
    powers = (np.maximum(eigenvalues, 0) + ridge) ** exponent
    return (vectors * powers) @ vectors.T
