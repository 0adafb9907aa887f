"""Fitted values against the same formulas in 50 decimal digits, with stated bounds.

The reference shares no code with the package: it lists pairs one by one, sums in
mpmath's multiple precision, and takes mpmath's eigensolver.
"""

import itertools

import mpmath
import numpy as np
import pytest
from numpy.testing import assert_allclose

from skclip_icm import ICMTransformer

N, D, K = 14, 5, 2
EPS64, EPS32 = np.finfo(np.float64).eps, np.finfo(np.float32).eps
# Of the largest eigenvalue, and of the unit length of a direction.
BOUND64 = 20 * EPS64
# Sums are in float64 whatever the embeddings are in; float32 rounds what comes out.
BOUND32 = 2 * EPS32


@pytest.fixture(scope="module")
def data():
    """Rows, counterparts, classes and domains, exact in float32."""
    rng = np.random.default_rng(0)
    scale = np.array([3, 2, 1, 0.5, 0.25])
    Z = (rng.normal(size=(N, D)) * scale + [1, -2, 0.5, 0, 4]).astype(np.float32)
    moved = rng.normal(size=(N, K, D)) * scale[::-1] + 0.2
    Z_do = (Z[:, None] + moved).astype(np.float32)
    return Z, Z_do, np.arange(N) % 3, np.arange(N) % 4 % 3


@pytest.fixture(autouse=True)
def fifty_digits():
    with mpmath.workdps(50):
        yield


def mp(array):
    """Exact copy of a matrix, or of a vector as a column."""
    array = np.asarray(array, dtype=float)
    return mpmath.matrix(array.tolist())


def second_moment(rows):
    rows = mp(rows)
    return rows.T * rows / rows.rows


def mean_of(Z):
    Z = mp(Z)
    return [mpmath.fsum(Z[:, j]) / Z.rows for j in range(Z.cols)]


def covariance(Z):
    Z, mean = mp(Z), mean_of(Z)
    centred = mpmath.matrix(Z.rows, Z.cols)
    for i, j in itertools.product(range(Z.rows), range(Z.cols)):
        centred[i, j] = Z[i, j] - mean[j]
    return centred.T * centred / Z.rows


def listed_pairs(data, kind):
    """Return the differences of all pairs, in float64, where they are exact."""
    Z, Z_do, y, domains = data
    Z = Z.astype(float)
    if kind == "interventional":
        return (Z[:, None] - Z_do).reshape(-1, D)
    return np.array(
        [
            Z[i] - Z[j]
            for i, j in itertools.combinations(range(N), 2)
            if y[i] == y[j] and (kind == "class" or domains[i] != domains[j])
        ]
    )


def needed(kind, Z_do, domains):
    return {"interventional": {"X_do": Z_do}, "domain": {"domains": domains}}.get(
        kind, {}
    )


def descending(M):
    """Eigenvalues of a symmetric matrix, and eigenvectors as rows of largest sign."""
    values, vectors = mpmath.eigsy(M)
    order = sorted(range(len(values)), key=lambda i: -values[i])
    rows = [list(vectors[:, i]) for i in order]
    rows = [r if max(r, key=abs) > 0 else [-v for v in r] for r in rows]
    return [values[i] for i in order], rows


def difference(found, expected):
    """Largest absolute difference to the reference."""
    found = mp(np.atleast_2d(np.asarray(found, dtype=float)))
    expected = mpmath.matrix(expected)
    expected = expected.T if expected.cols == 1 else expected
    assert (found.rows, found.cols) == (expected.rows, expected.cols)
    return float(max(map(abs, found - expected)))


def along(v, M):
    return (mpmath.matrix([v]) * M * mpmath.matrix(v))[0]


@pytest.mark.parametrize("kind", ["interventional", "class", "domain"])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_projection(data, kind, center, dtype):
    Z, Z_do, y, domains = data
    icm = ICMTransformer(None, lam=0.7, pairs=kind, center=center)
    icm.fit(Z.astype(dtype), y, **needed(kind, Z_do.astype(dtype), domains))

    pairs = listed_pairs(data, kind)
    S, S_do = covariance(Z) if center else second_moment(Z), second_moment(pairs)
    eigenvalues, directions = descending(S - mpmath.mpf(0.7) * S_do)
    size = float(max(map(abs, eigenvalues)))
    assert icm.n_pairs_seen_ == len(pairs)
    assert difference(icm.eigenvalues_, eigenvalues) <= BOUND64 * size
    # Directions are as certain as the nearest other eigenvalue is far.
    gap = float(min(a - b for a, b in itertools.pairwise(eigenvalues)))
    bound = BOUND64 * size / gap + (BOUND32 if dtype is np.float32 else 0)
    assert difference(icm.components_, directions) <= bound

    total = mpmath.fsum(along(v, S) for v in directions)
    assert abs(icm.scale_ * mpmath.sqrt(total) - 1) <= BOUND64
    variances = [along(v, covariance(Z)) for v in directions]
    invariance = [
        1 - along(v, S_do) / (2 * s) for v, s in zip(directions, variances, strict=True)
    ]
    worst = float(max(map(abs, invariance)))
    spread = float(max(variances) / min(variances))
    assert difference(icm.invariance_, invariance) <= bound_on_ratio(
        size / gap, spread, worst
    )

    mean = mean_of(Z) if center else [mpmath.mpf(0)] * D
    tolerance = BOUND32 if dtype is np.float32 else BOUND64
    assert difference(icm.mean_, mean) <= tolerance * np.abs(Z).max()
    rows = mp(Z) - mpmath.ones(N, 1) * mpmath.matrix([mean])
    new = rows * mpmath.matrix(directions).T / mpmath.sqrt(total)
    # The mean is taken off after the product: both are of the size of the rows.
    length = float(np.linalg.norm(Z, axis=1).max() / mpmath.sqrt(total))
    error = difference(icm.transform(Z.astype(dtype)), new)
    assert error <= length * (bound + (D * EPS32 if dtype is np.float32 else D * EPS64))


def bound_on_ratio(condition, spread, worst):
    """Bound of 1 - a / b, where an error of v counts by how spread variances are."""
    return 4 * BOUND64 * condition * spread * (1 + worst)


@pytest.mark.parametrize("shrinkage", [0.0, 0.25, "auto"])
def test_whitening(data, shrinkage):
    Z, Z_do, *_ = data
    icm = ICMTransformer(method="whitening", shrinkage=shrinkage).fit(Z, X_do=Z_do)
    S_do = second_moment(listed_pairs(data, "interventional"))
    moved, directions = descending(S_do)
    trace = mpmath.fsum(moved)
    epsilon = mpmath.mpf(shrinkage) if shrinkage != "auto" else None
    if epsilon is None:
        # Chen et al. (2010), equation 23 for large D, and the ratio of its two terms.
        squares = mpmath.fsum(value**2 for value in moved)
        numerator = squares + trace**2
        denominator = (N * K + 1) * (squares - trace**2 / D)
        rho = min(numerator / denominator, 1)
        assert 0 < rho < 1
        epsilon = rho / (1 - rho)
    weights = [
        1 / mpmath.sqrt(value + epsilon * trace / D) for value in reversed(moved)
    ]
    condition = float(max(weights) / min(weights)) ** 2
    bound = BOUND64 * condition * float(max(weights))
    assert difference(icm.eigenvalues_, weights) <= bound
    # W'W is the inverse of the damped moment, whatever basis W is given in.
    inverse = (S_do + epsilon * trace / D * mpmath.eye(D)) ** -1
    W = mp(icm.components_)
    product = W.T * W
    error = max(abs(product[i, j] - inverse[i, j]) for i in range(D) for j in range(D))
    assert error <= BOUND32 * D * condition * max(weights) ** 2
    rows = [
        [w * value for value in row]
        for w, row in zip(weights, reversed(directions), strict=True)
    ]
    rows = [row if max(row, key=abs) > 0 else [-v for v in row] for row in rows]
    assert difference(icm.components_, rows) <= BOUND32 * float(max(weights))


@pytest.mark.parametrize("shift", [0, 1e3, 1e5])
def test_a_large_mean_does_not_spoil_the_covariance(shift):
    """As it would if squares were summed before the mean is taken off."""
    rng = np.random.default_rng(1)
    Z = rng.normal(size=(20, 3)) * [1, 2, 3] + shift
    icm = ICMTransformer(None, lam=0).fit(Z, X_do=Z + 1)
    eigenvalues, _ = descending(covariance(Z))
    # Rows are themselves rounded to eps * shift, so this much is left.
    bound = BOUND64 * float(eigenvalues[0]) + 20 * EPS64 * shift
    assert difference(icm.eigenvalues_, eigenvalues) <= bound


@pytest.mark.parametrize("kind", ["interventional", "class", "domain"])
def test_chunks_are_as_exact_as_one_fit(data, kind):
    Z, Z_do, y, domains = (np.asarray(part) for part in data)
    icm = ICMTransformer(None, lam=0.7, pairs=kind)
    for rows in (slice(0, 1), slice(1, 6), slice(6, None)):
        icm.partial_fit(Z[rows], y[rows], **needed(kind, Z_do[rows], domains[rows]))
    S, S_do = covariance(Z), second_moment(listed_pairs(data, kind))
    eigenvalues, _ = descending(S - mpmath.mpf(0.7) * S_do)
    size = float(max(map(abs, eigenvalues)))
    assert difference(icm.eigenvalues_, eigenvalues) <= BOUND64 * size


def test_float32_costs_no_more_than_its_rounding():
    """A larger case against float64, whose own error the tests above bound."""
    rng = np.random.default_rng(2)
    scale = np.linspace(0.1, 2, 64)
    Z = (rng.normal(size=(5000, 64)) * scale + 3).astype(np.float32)
    Z_do = (Z + rng.normal(size=Z.shape) * scale[::-1]).astype(np.float32)
    single = ICMTransformer(lam=2).fit(Z, X_do=Z_do)
    double = ICMTransformer(lam=2).fit(Z.astype(float), X_do=Z_do.astype(float))
    assert_allclose(single.eigenvalues_, double.eigenvalues_, rtol=0, atol=1e-12)
    assert np.abs(single.components_ - double.components_).max() <= BOUND32
    one, two = single.transform(Z), double.transform(Z.astype(float))
    length = np.linalg.norm(Z, axis=1).max() * double.scale_
    assert np.abs(one - two).max() <= 8 * EPS32 * length
