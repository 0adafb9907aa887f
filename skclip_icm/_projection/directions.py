"""Directions from second moments: the two methods, and what describes a direction."""

import warnings
from numbers import Integral

import numpy as np

from skclip_icm._projection.arrays import descending_eigh, wide
from skclip_icm._projection.differences import as_labels


def solve(statistics, *, n_components, lam, method, center, rescale, shrinkage):
    """Fitted attributes of `ICMTransformer`, by name, from what it has summed up.

    Parameters
    ----------
    statistics : PairStatistics
        Moments of the rows and of the pairs.
    n_components, lam, method, center, rescale, shrinkage
        As in `ICMTransformer`.

    Returns
    -------
    fitted : dict
        The attributes, with directions in the dtype of the embeddings.
    """
    moments, S_do = statistics.moments, statistics.pair_moment()
    xp = wide(S_do)[0]
    S = moments.second_moment(center=center)
    if method == "projection":
        eigenvalues, directions = projection(S, S_do, lam)
    else:
        eigenvalues, directions = whitening(S_do, shrinkage, moments.n)
    kept = _count(as_labels(eigenvalues), n_components, lam)
    A = _fix_signs(directions[:kept, :])
    moved = _along(A, S_do)
    # The mean square of each output before the scale. An eigenvalue holds it already.
    if method == "projection":
        square = eigenvalues[:kept] + lam * moved
    else:
        square = _along(A, S)
    total = float(xp.sum(square))
    variance = square if center else square - (A @ moments.mean) ** 2
    mean = moments.mean if center else xp.zeros_like(moments.mean)
    return {
        "components_": xp.astype(A, statistics.dtype),
        "mean_": xp.astype(mean, statistics.dtype),
        "scale_": total**-0.5 if rescale and total > 0 else 1.0,
        "eigenvalues_": eigenvalues,
        "invariance_": _invariance(moved, variance),
        "n_components_": kept,
        "n_samples_seen_": moments.n,
        "n_pairs_seen_": statistics.n_pairs,
        "pairs_": statistics.kind,
    }


def projection(S, S_do, lam):
    """Eigenvalues, descending, and eigenvectors, as rows, of ``S - lam * S_do``.

    The first r rows maximise ``tr A (S - lam * S_do) A.T`` over matrices A of r
    orthonormal rows (Song et al., 2025, stage 2 of CLIP-ICM; Ky Fan's theorem).
    """
    return descending_eigh(S - lam * S_do)


def whitening(S_do, shrinkage, n_samples):
    """Weights, descending, and rows of the whitening matrix of `S_do`."""
    xp = wide(S_do)[0]
    epsilon = _oas_ratio(S_do, n_samples) if shrinkage == "auto" else shrinkage
    moved, directions = descending_eigh(xp.asarray(S_do, copy=True))
    damping = xp.clip(moved, 0.0, None) + epsilon * xp.mean(moved)
    if float(damping[-1]) <= float(damping[0]) * np.finfo(float).eps:
        raise ValueError(
            "No pair moves some of the directions, so their whitening weight is "
            f"infinite with shrinkage={shrinkage!r}: give shrinkage > 0 and pairs that "
            "differ."
        )
    weights = xp.flip(damping) ** -0.5
    return weights, weights[:, None] * xp.flip(directions, axis=0)


def _count(eigenvalues, n_components, lam):
    """How many directions `n_components` of `ICMTransformer` asks for."""
    if n_components is None:
        return len(eigenvalues)
    if isinstance(n_components, Integral):
        return int(n_components)
    # Directions without any variance have eigenvalues of rounding size.
    tiny = np.abs(eigenvalues).max() * len(eigenvalues) * np.finfo(float).eps
    positive = eigenvalues[eigenvalues > tiny]
    if not positive.size:
        warnings.warn(
            f"No direction has more variance than lam={lam} times what the "
            "pairs cause; keeping the single best one. Lower lam, or make the "
            "interventions milder.",
            UserWarning,
            stacklevel=6,
        )
        return 1
    if n_components == "auto":
        return len(positive)
    share = np.cumsum(positive) / positive.sum()
    return min(np.searchsorted(share, n_components) + 1, len(positive))


def _fix_signs(directions):
    """Make the entry of largest magnitude of each row positive."""
    xp = wide(directions)[0]
    positive = xp.max(directions, axis=1) >= -xp.min(directions, axis=1)
    return xp.where(positive[:, None], directions, -directions)


def _along(directions, M):
    """``v.T @ M @ v`` for each row v of `directions`."""
    return wide(M)[0].sum((directions @ M) * directions, axis=1)


def _invariance(moved, variance):
    # A direction in which nothing varies cannot be moved either: it is invariant.
    xp = wide(moved)[0]
    spread = xp.clip(2 * variance, float(np.finfo(np.float32).tiny) ** 2, None)
    return 1 - xp.clip(moved, 0.0, None) / spread


def _oas_ratio(S, n_samples):
    """Weight of the identity beside `S` when shrunk (Chen et al., 2010, eq. 23)."""
    d = S.shape[0]
    trace_squared = float(wide(S)[0].linalg.trace(S)) ** 2
    square_trace = float(wide(S)[0].sum(S * S))
    numerator = (1 - 2 / d) * square_trace + trace_squared
    denominator = (n_samples + 1 - 2 / d) * (square_trace - trace_squared / d)
    rho = numerator / denominator if denominator > numerator else 1.0
    # Beyond a million times the mean of its eigenvalues, S itself plays no part, and
    # the rounding of 1 - rho should not either.
    return rho / max(1 - rho, 1e-6)
