"""What holds for `ICMTransformer` on any data, not only on well-behaved ones."""

import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.stats import ortho_group

from skclip_icm import ICMTransformer, PairedEmbeddings

pytestmark = pytest.mark.filterwarnings(
    "ignore:No direction has more variance", "ignore:Of the .* counterparts"
)

properties = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
sizes = st.tuples(st.integers(2, 30), st.integers(1, 12), st.integers(1, 3))
seeds = st.integers(0, 2**32 - 1)
lams = st.sampled_from([0, 0.3, 1, 10, 1e3])
kinds = st.sampled_from(["interventional", "domain", "class", "given"])


def draw(seed, size):
    """Return rows, counterparts, classes and domains; at least one of each pair."""
    rng = np.random.default_rng(seed)
    n, d, k = size
    scale = 10 ** rng.uniform(-1, 1, d)
    Z = rng.normal(size=(n, d)) * scale + rng.normal(size=d)
    Z_do = Z[:, None] + rng.normal(size=(n, k, d)) * rng.permutation(scale)
    return Z, Z_do, np.arange(n) // 2 % 3, np.arange(n) % 2


def fit(kind, Z, Z_do, y, domains, call="fit", **params):
    """Fit to pairs of one kind."""
    if kind == "given":
        params["pairs"] = Z, Z_do[:, 0]
    else:
        params["pairs"] = kind
    icm = ICMTransformer(**params)
    arguments = {"X_do": Z_do} if kind == "interventional" else {}
    arguments |= {"domains": domains} if kind == "domain" else {}
    return getattr(icm, call)(Z, y, **arguments)


def solved(icm):
    """Return the matrix whose eigenvectors were found: none of them is ambiguous."""
    return (icm.components_.T * icm.eigenvalues_) @ icm.components_


def gram(icm, Z):
    """Return the inner products of the outputs: these have no signs and no basis."""
    Y = icm.transform(Z)
    return Y @ Y.T


def assert_same(icm, other, Z, other_Z=None, tolerance=1e-9):
    assert other.pairs_ == icm.pairs_
    size = np.abs(icm.eigenvalues_).max()
    assert_allclose(other.eigenvalues_, icm.eigenvalues_, rtol=0, atol=tolerance * size)
    one, two = gram(icm, Z), gram(other, Z if other_Z is None else other_Z)
    assert_allclose(two, one, rtol=0, atol=tolerance * np.abs(one).max())


@properties
@given(seeds, sizes, lams, kinds)
def test_rows_are_orthonormal_and_eigenvalues_descend(seed, size, lam, kind):
    data = draw(seed, size)
    for n_components in ("auto", None, 1, 0.5):
        icm = fit(kind, *data, n_components=n_components, lam=lam)
        A = icm.components_
        assert A.shape == (icm.n_components_, size[1])
        assert_allclose(A @ A.T, np.eye(len(A)), atol=1e-12)
        assert np.all(np.diff(icm.eigenvalues_) <= 0)
        assert np.all(A[np.arange(len(A)), np.abs(A).argmax(axis=1)] > 0)
        assert np.all(icm.invariance_ <= 1)


@properties
@given(seeds, sizes, lams, kinds)
def test_no_orthonormal_rows_do_better(seed, size, lam, kind):
    """Than those found, at the objective of the paper."""
    data = draw(seed, size)
    icm = fit(kind, *data, n_components=None, lam=lam)
    M = solved(icm)
    Q = np.linalg.qr(np.random.default_rng(seed).normal(size=M.shape))[0].T
    for r in range(1, len(M) + 1):
        best = np.trace(icm.components_[:r] @ M @ icm.components_[:r].T)
        other = np.trace(Q[:r] @ M @ Q[:r].T)
        assert other <= best + 1e-9 * np.abs(icm.eigenvalues_).sum()


@properties
@given(seeds, sizes, lams, kinds, st.sampled_from(["projection", "whitening"]))
def test_the_order_of_rows_does_not_matter(seed, size, lam, kind, method):
    Z, *rest = data = draw(seed, size)
    order = np.random.default_rng(seed).permutation(len(Z))
    params = {"n_components": None, "lam": lam, "method": method, "shrinkage": 0.3}
    icm = fit(kind, *data, **params)
    other = fit(kind, Z[order], *(part[order] for part in rest), **params)
    assert_same(icm, other, Z)


@properties
@given(seeds, sizes, lams, kinds, st.sampled_from(["projection", "whitening"]))
def test_an_orthogonal_change_of_basis_is_undone(seed, size, lam, kind, method):
    Z, Z_do, *labels = data = draw(seed, size)
    d = size[1]
    Q = ortho_group.rvs(d, random_state=seed) if d > 1 else -np.eye(1)
    # "auto" may be next to infinite, for pairs that all differ in one direction.
    params = {"n_components": None, "lam": lam, "method": method, "shrinkage": 0.3}
    icm = fit(kind, *data, **params)
    other = fit(kind, Z @ Q, Z_do @ Q, *labels, **params)
    assert_same(icm, other, Z, Z @ Q)
    if method == "projection":
        size = np.abs(icm.eigenvalues_).max()
        assert_allclose(solved(other), Q.T @ solved(icm) @ Q, atol=1e-9 * size)


@properties
@given(seeds, sizes, lams, st.sampled_from(["interventional", "domain", "given"]))
def test_all_rows_twice_are_as_good_as_once(seed, size, lam, kind):
    # Class pairs are other pairs then: a row and its copy are a pair as well.
    Z, *rest = data = draw(seed, size)
    icm = fit(kind, *data, n_components=None, lam=lam)
    twice = (np.concatenate([part, part]) for part in (Z, *rest))
    assert_same(icm, fit(kind, *twice, n_components=None, lam=lam), Z)


@properties
@given(seeds, sizes, lams, kinds, st.integers(1, 30), st.booleans())
def test_chunks_and_parts_give_what_one_fit_gives(seed, size, lam, kind, cut, center):
    Z, *rest = data = draw(seed, size)
    cut = min(cut, len(Z) - 1)
    first, second = (
        [part[rows] for part in data] for rows in (slice(cut), slice(cut, None))
    )
    params = {"n_components": None, "lam": lam, "center": center}
    if kind == "given":  # belongs to the estimator, not to the chunk
        params["pairs"] = Z, rest[0][:, 0]
        whole = ICMTransformer(**params).fit(Z)
        chunks = ICMTransformer(**params).partial_fit(first[0]).partial_fit(second[0])
        left, right = (
            ICMTransformer(**params).partial_fit(part[0]) for part in (first, second)
        )
    else:
        whole = fit(kind, *data, **params)
        chunks = fit(kind, *first, call="partial_fit", **params)
        arguments = {"X_do": second[1]} if kind == "interventional" else {}
        arguments |= {"domains": second[3]} if kind == "domain" else {}
        chunks.partial_fit(second[0], second[2], **arguments)
        left, right = (
            fit(kind, *part, call="partial_fit", **params) for part in (first, second)
        )
    for other in (chunks, left.merge(right)):
        assert_same(whole, other, Z)
        assert other.n_samples_seen_ == len(Z)
        assert other.n_pairs_seen_ == whole.n_pairs_seen_
        assert_allclose(other.mean_, whole.mean_, atol=1e-12 * np.abs(Z).max())


@properties
@given(seeds, sizes, st.sampled_from(["projection", "whitening"]), st.booleans())
def test_what_is_kept_can_be_mapped_back(seed, size, method, center):
    Z, Z_do, *_ = draw(seed, size)
    params = {"method": method, "center": center, "shrinkage": 0.1}
    icm = ICMTransformer(None, **params).fit(Z, X_do=Z_do)
    back = icm.inverse_transform(icm.transform(Z))
    assert_allclose(back, Z, atol=1e-9 * np.abs(Z).max())
    norms = np.sum(icm.transform(Z) ** 2, axis=1)
    if size[1] > 1 or not center or len(np.unique(Z)) > 1:
        assert_allclose(norms.mean(), 1, rtol=1e-9)


# Data that nobody wishes for


def degenerate(name, rng, n, d):
    """Return rows and their counterparts."""
    Z = rng.normal(size=(n, d))
    Z_do = Z + rng.normal(size=(n, d))
    if name == "constant rows":
        Z, Z_do = np.full((n, d), 0.7), np.full((n, d), 0.7)
    elif name == "zeros":
        Z, Z_do = np.zeros((2, n, d))
    elif name == "collinear":
        line = rng.normal(size=d)
        Z, Z_do = (rng.normal(size=(2, n, 1)) * line)[:2]
    elif name == "constant features":
        Z[:, ::2] = Z_do[:, ::2] = 3
    elif name == "pairs that do not differ":
        Z_do = Z.copy()
    elif name == "pairs of opposites":
        Z_do = -Z
    elif name == "one large shift":
        Z_do = Z + 1e6
    elif name == "far from the origin":
        Z, Z_do = Z + 1e7, Z_do + 1e7
    elif name == "columns of all scales":
        scale = 10.0 ** rng.uniform(-20, 20, d)
        Z, Z_do = Z * scale, Z_do * scale
    elif name == "whole numbers":
        Z, Z_do = np.rint(Z), np.rint(Z_do)
    return Z, Z_do


NAMES = """constant rows; zeros; collinear; constant features; pairs that do not differ
pairs of opposites; one large shift; far from the origin; columns of all scales
whole numbers; plain"""
names = st.sampled_from([n.strip() for n in NAMES.replace("\n", ";").split(";")])


@settings(properties, max_examples=300)
@given(
    seeds,
    names,
    st.tuples(st.sampled_from([2, 3, 5, 20]), st.sampled_from([1, 2, 3, 10, 60])),
    st.sampled_from([np.float16, np.float32, np.float64]),
    st.sampled_from(["projection", "whitening"]),
    st.sampled_from(["auto", None, 1, 0.9]),
    st.booleans(),
    st.sampled_from(["auto", 0.0, 1.0]),
)
def test_finite_or_a_clear_error(
    seed, name, size, dtype, method, n_components, center, shrinkage
):
    Z, Z_do = degenerate(name, np.random.default_rng(seed), *size)
    with np.errstate(over="ignore"):
        Z, Z_do = Z.astype(dtype), Z_do.astype(dtype)
    assume(np.isfinite(Z).all() and np.isfinite(Z_do).all())  # float16 ends at 65504
    icm = ICMTransformer(
        n_components, method=method, center=center, shrinkage=shrinkage
    )
    check_finite(icm, Z, Z_do)


@settings(properties, max_examples=150)
@given(
    seeds,
    st.integers(-20, 20),
    st.sampled_from([np.float32, np.float64]),
    st.sampled_from(["projection", "whitening"]),
    st.tuples(st.integers(2, 12), st.integers(1, 30)),
)
def test_the_unit_of_the_data_does_not_matter(seed, exponent, dtype, method, size):
    """Powers of two scale exactly: what depends on the scale is scaled, no more."""
    Z, Z_do = degenerate("plain", np.random.default_rng(seed), *size)
    unit = 2.0 ** round(exponent * np.log2(10))
    Z, Z_do = Z.astype(dtype), Z_do.astype(dtype)
    scaled = (Z * dtype(unit)).astype(dtype), (Z_do * dtype(unit)).astype(dtype)
    params = {"method": method, "shrinkage": 0.5}
    icm = ICMTransformer(**params).fit(Z, X_do=Z_do)
    other = ICMTransformer(**params)
    check_finite(other, *scaled)
    assert other.n_components_ == icm.n_components_
    power = 2 if method == "projection" else -1
    assert_allclose(other.eigenvalues_ / unit**power, icm.eigenvalues_, rtol=1e-12)
    assert_allclose(other.invariance_, icm.invariance_, rtol=1e-9, atol=1e-12)
    tolerance = 1e-5 if dtype is np.float32 else 1e-12
    one, two = icm.transform(Z), other.transform(scaled[0])
    assert_allclose(two, one, rtol=0, atol=tolerance)


def check_finite(icm, Z, Z_do):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # of numpy: overflow, 0 / 0
        try:
            new = icm.fit(Z, X_do=Z_do).transform(Z)
        except ValueError as error:
            no_damping = icm.method == "whitening" and "No pair moves" in str(error)
            too_many = "is more than the" in str(error)
            assert no_damping or too_many, error
            return
        back = icm.inverse_transform(new)
    for values in (
        *(icm.components_, icm.mean_, icm.scale_, icm.eigenvalues_, icm.invariance_),
        *(new, back),
    ):
        assert np.isfinite(values).all()
    expected = np.float32 if Z.dtype == np.float32 else np.float64
    assert new.dtype == icm.components_.dtype == expected
    assert icm.invariance_.max() <= 1


@pytest.mark.parametrize("dtype", [np.float16, np.int8, np.bool_])
def test_other_dtypes_are_as_good_as_float64(dtype):
    Z, Z_do = (np.random.default_rng(0).normal(size=(2, 30, 4)) * 3).astype(dtype)
    icm = ICMTransformer(lam=0.1).fit(Z, X_do=Z_do)
    other = ICMTransformer(lam=0.1).fit(Z.astype(float), X_do=Z_do.astype(float))
    assert_allclose(icm.components_, other.components_, atol=1e-12)
    assert icm.transform(Z).dtype == np.float64


@properties
@given(seeds, sizes, st.data())
def test_paired_embeddings_keep_rows_and_counterparts_together(seed, size, data):
    """Through any selection of rows, repeated and in any order."""
    Z, Z_do, *_ = draw(seed, size)
    paired = PairedEmbeddings(Z, Z_do)
    expected = np.arange(len(Z))
    for _ in range(data.draw(st.integers(1, 4))):
        n = len(expected)
        key = data.draw(
            st.one_of(
                st.slices(n),
                st.lists(st.integers(-n, n - 1), max_size=8),
                st.lists(st.booleans(), min_size=n, max_size=n).map(np.array),
            )
            if n
            else st.just(slice(None))
        )
        key = np.array(key, dtype=int) if isinstance(key, list) else key
        paired, expected = paired[key], expected[key]
    np.testing.assert_array_equal(paired, Z[expected])
    np.testing.assert_array_equal(paired.counterparts, Z_do[expected])
