"""Directions from second moments: the two methods, and what describes a direction."""

import warnings
from numbers import Integral

import numpy as np

from skclip_icm._labels import distinguishable
from skclip_icm._projection.arrays import descending_eigh, to_numpy, wide
from skclip_icm._projection.differences import count_rows, given_pairs, pieces
from skclip_icm._projection.groups import DomainMeans, GroupMeans, Groups, no_pairs
from skclip_icm._projection.sums import Sums, check_sizes

# Pairs that differ by less than this share of the variance do not differ but by what
# a model computes differently from one batch to the next.
_UNCHANGED = 1e-9


def fit_rows(X, source, params):
    """Return the fitted attributes, by name, of all rows at once."""
    groups, by_domain = None, source.domains is not None
    if source.keys:
        sizes = np.bincount(source.codes)
        groups = Groups(source.keys, sizes, across=source.kind == "domain")
    if groups is not None and not groups.n_pairs:
        raise ValueError(no_pairs(source.kind))
    given = given_pairs(params["pairs"], X)
    fitted = solve_in_span(X, source, groups, given, params)
    if fitted is None:
        sums = Sums(X, groups, by_domain).update(X, source).close()
        fitted = solve(sums, given, params)
    return fitted


def solve(sums, given, params, *, basis=None, mean=None, domains=None):
    """Return the fitted attributes, by name, of what has been summed up.

    `given` are the pairs that `differences.given_pairs` returns. Sums of coordinates in
    a space that holds all rows and pairs come with its orthonormal `basis` (d, r) and
    with the `mean` of the rows and those of the `domains`; directions are mapped back
    from there.
    """
    center, lam = params["center"], params["lam"]
    xp = wide(sums.mean)[0]
    S = sums.second_moment(center=center)
    S_do, n_pairs = _pair_moment(sums, given)
    if params["method"] == "projection":
        # Song et al. (2025), stage 2 of CLIP-ICM: the first r rows maximise
        # tr A (S - lam S_do) A.T over r orthonormal rows (Ky Fan's theorem).
        eigenvalues, directions = descending_eigh(S - lam * S_do)
    else:
        eigenvalues, directions = whitening(S_do, params["shrinkage"], n_pairs)
    unchanged = _warn_of_unchanged(sums)
    r = eigenvalues.shape[0]
    d = r if basis is None else basis.shape[0]
    spectrum = eigenvalues if d == r else _with_zeros(eigenvalues, d)
    kept = _count(to_numpy(spectrum), params["n_components"], lam, quiet=unchanged)
    A = directions[:kept, :]
    moved, square = _along(A, S_do), _along(A, S)
    total = float(xp.sum(square))
    variance = square if center else square - (A @ sums.mean) ** 2
    lengths = xp.sum(A * A, axis=1)
    invariance = _invariance(moved, variance, d * sums.variance() * lengths)
    A = _fix_signs(A if basis is None else A @ basis.T)
    mean = sums.mean if mean is None else mean
    domains = sums.domains if domains is None else domains
    return {
        **({} if domains is None else _by_domain(domains, sums.dtype)),
        "components_": xp.astype(A, sums.dtype),
        "mean_": xp.astype(mean if center else xp.zeros_like(mean), sums.dtype),
        "scale_": total**-0.5 if params["rescale"] and total > 0 else 1.0,
        "eigenvalues_": spectrum,
        "invariance_": invariance,
        "n_components_": kept,
        "n_samples_seen_": sums.n,
        "n_pairs_seen_": n_pairs,
    }


@np.errstate(over="ignore", invalid="ignore")
def solve_in_span(X, source, groups, given, params):
    r"""Do what `solve` does, for few rows, in the space that they and their pairs span.

    With fewer rows than features, :math:`S - \lambda S_{do}` has its eigenvectors with
    eigenvalues other than 0 in that space. Coordinates in an orthonormal basis of it
    make a small problem with the same ones. None if there is no such space, or more
    directions are asked for than have a positive eigenvalue.
    """
    n_rows = X.shape[0] + count_rows(source, X.shape[0])
    n_rows += 0 if given is None else given[0].shape[0]
    small = isinstance(X, np.ndarray) and n_rows < X.shape[1]
    if not small or params["method"] != "projection" or params["n_components"] is None:
        return None
    means = None if groups is None else GroupMeans(groups, X)
    chunks = [(rows.copy(), d.copy(), *n) for rows, d, *n in pieces(X, source, means)]
    Z, differences = (np.vstack(part) for part in list(zip(*chunks, strict=True))[:2])
    n_pairs, moved = sum(c[2] for c in chunks), np.sum([c[3] for c in chunks], axis=0)
    mean, domains = Z.mean(axis=0), None
    if source.domains is not None:
        domains = DomainMeans()
        domains.add_rows(Z, source.domains[1], source.domains[0])
        Z -= np.stack(list(domains.means.values()))[source.domains[1]]
    else:
        Z -= mean
    if groups is not None:
        between = groups.between(means.values, domains)
        differences, n_pairs = np.vstack([differences, between]), groups.n_pairs
    check_sizes((np.vdot(Z, Z), np.vdot(differences, differences)), X, source)
    parts = [Z, differences] + ([] if given is None else [given[0]])
    parts += [] if params["center"] else [mean[None, :]]
    rows = np.vstack(parts)
    basis, R = np.linalg.qr(rows.T)
    # The columns of R are the coordinates of the rows.
    ends = np.cumsum([len(part) for part in parts])[:-1]
    Z, differences, *others = np.split(np.ascontiguousarray(R.T), ends)
    given = None if given is None else (others[0], given[1])
    sums = Sums(basis[:1]).add_pairs(differences, n_pairs, moved)
    sums.add(Z)
    sums.mean, sums.dtype = mean @ basis, X.dtype
    fitted = solve(sums, given, params, basis=basis, mean=mean, domains=domains)
    eigenvalues = fitted["eigenvalues_"]
    return fitted if eigenvalues[fitted["n_components_"] - 1] > 0 else None


def whitening(S_do, shrinkage, n_pairs):
    """Weights, descending, and rows of the whitening matrix of `S_do`."""
    xp = wide(S_do)[0]
    epsilon = _oas_ratio(S_do, n_pairs) if shrinkage == "auto" else shrinkage
    moved, directions = descending_eigh(S_do)
    damping = xp.clip(moved, 0.0, None) + epsilon * xp.mean(moved)
    if float(damping[-1]) <= float(damping[0]) * np.finfo(float).eps:
        raise ValueError(
            "No pair moves some of the directions, so their whitening weight is "
            f"infinite with shrinkage={shrinkage!r}: give shrinkage > 0 and pairs that "
            "differ."
        )
    weights = xp.flip(damping) ** -0.5
    return weights, weights[:, None] * xp.flip(directions, axis=0)


def _pair_moment(sums, given):
    """Second moment of the differences of all pairs, and their number."""
    if given is None:
        return sums.pair_moment(), sums.n_pairs
    rows, weight = given
    moment = rows.T @ rows
    if weight < 1:
        moment = (1 - weight) * sums.pair_moment() + weight * moment
    return moment, sums.n_pairs + rows.shape[0]


def _count(eigenvalues, n_components, lam, quiet):
    """How many directions `n_components` of `ICMTransformer` asks for."""
    if n_components is None:
        return len(eigenvalues)
    if isinstance(n_components, Integral):
        return int(n_components)
    # Directions without any variance have eigenvalues of rounding size.
    tiny = np.abs(eigenvalues).max() * len(eigenvalues) * np.finfo(float).eps
    positive = eigenvalues[eigenvalues > tiny]
    if not positive.size:
        if not quiet:
            warnings.warn(
                f"No direction has more variance than lam={lam} times what the "
                "pairs cause; keeping the single best one. Lower lam, or make the "
                "interventions milder.",
                UserWarning,
                stacklevel=2,
            )
        return 1
    if n_components == "auto":
        return len(positive)
    share = np.cumsum(positive) / positive.sum()
    return min(np.searchsorted(share, n_components) + 1, len(positive))


def _warn_of_unchanged(sums):
    """Warn of interventions that change nothing, and say whether none does."""
    least = _UNCHANGED * sums.variance() * sums.n
    unchanged = [str(i) for i in np.flatnonzero(sums.moved <= least)]
    if unchanged:
        warnings.warn(
            f"Of the {len(sums.moved)} counterparts of each row, number "
            f"{', '.join(unchanged)} (from 0) does not differ from the row anywhere: "
            "that intervention changes nothing in these images, as a change of hue "
            "does in grey ones. Choose another one.",
            UserWarning,
            stacklevel=2,
        )
    return len(unchanged) == len(sums.moved) > 0


def _by_domain(domains, dtype):
    means = list(domains.means.values())
    xp = wide(means[0])[0]
    return {
        "domains_": distinguishable(domains.means, "domains_"),
        "domain_means_": xp.astype(xp.stack(means), dtype),
    }


def _with_zeros(eigenvalues, d):
    padded = np.concatenate([eigenvalues, np.zeros(d - len(eigenvalues))])
    return np.sort(padded)[::-1]


def _fix_signs(directions):
    """Make the entry of largest magnitude of each row positive."""
    xp = wide(directions)[0]
    positive = xp.max(directions, axis=1) >= -xp.min(directions, axis=1)
    return xp.where(positive[:, None], directions, -directions)


def _along(directions, M):
    """``v.T @ M @ v`` for each row v of `directions`."""
    return wide(M)[0].sum((directions @ M) * directions, axis=1)


def _invariance(moved, variance, trace):
    """One less half the share of the variance that pairs cause, for each direction."""
    xp = wide(moved)[0]
    # A direction in which nothing varies, beyond rounding, cannot be moved either.
    varies = variance > trace * float(np.finfo(float).eps)
    share = xp.clip(moved, 0.0, None) / xp.where(varies, 2 * variance, 1.0)
    return xp.where(varies, 1 - share, 1.0)


def _oas_ratio(S, n):
    """Weight of the identity beside `S` when shrunk.

    The oracle approximating shrinkage (Chen et al., 2010, eq. 23) as
    `sklearn.covariance.oas` has it, without the factor 1 - 2 / d of the trace.
    """
    d = S.shape[0]
    trace_squared = float(wide(S)[0].linalg.trace(S)) ** 2
    square_trace = float(wide(S)[0].sum(S * S))
    numerator = square_trace + trace_squared
    denominator = (n + 1) * (square_trace - trace_squared / d)
    rho = numerator / denominator if denominator > numerator else 1.0
    # Beyond a million times the mean of its eigenvalues, S itself plays no part, and
    # the rounding of 1 - rho should not either.
    return rho / max(1 - rho, 1e-6)
