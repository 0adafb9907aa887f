"""What a user relies on when fitting and applying `ICMTransformer`."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.covariance import oas
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from skclip_icm import ICMTransformer, PairedEmbeddings
from skclip_icm.datasets import make_causal_embeddings

# Random classes, as the checks have them, may leave no direction to keep.
pytestmark = pytest.mark.filterwarnings("ignore:No direction has more variance")


@pytest.fixture(scope="module")
def causal():
    data = make_causal_embeddings(random_state=0)
    data.train = data.domains == 0
    return data


@pytest.fixture
def small():
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(40, 6)).astype(np.float32)
    Z_do = Z[:, None] + rng.normal(size=(40, 2, 6)).astype(np.float32) * np.arange(6)
    return Z, Z_do.astype(np.float32), np.arange(40) % 3, np.arange(40) % 4


def leak(icm, A_var):
    return np.linalg.norm(icm.components_ @ A_var) / np.linalg.norm(A_var)


@parametrize_with_checks(
    [
        ICMTransformer(pairs="class"),
        ICMTransformer(method="whitening", center=False, pairs="class"),
    ]
)
def test_sklearn_contract(estimator, check):
    check(estimator)


@pytest.mark.parametrize("seed", range(3))
def test_recovers_known_factors_and_predicts_under_shift(seed):
    data = make_causal_embeddings(random_state=seed)
    train, test = data.domains == 0, data.domains == 1
    Z, y = data.embeddings, data.target
    probe = LogisticRegression(max_iter=1000)
    pipe = make_pipeline(ICMTransformer(lam=10), clone(probe)).fit(Z[train], y[train])
    raw = probe.fit(Z[train], y[train])
    assert raw.score(Z[test], y[test]) <= 0.80
    assert pipe.score(Z[test], y[test]) >= 0.98
    assert leak(pipe[0], data.A_var) <= 0.05
    assert pipe[0].n_components_ == 16
    assert pipe[0].pairs_ == "interventional"


def test_largest_eigenvalues_are_the_invariant_ones(causal):
    """The smallest eigenvalues of the same matrix keep the variant factors."""
    Z = causal.embeddings[causal.train]
    icm = ICMTransformer(n_components=None, lam=10).fit(Z)
    largest, smallest = icm.components_[:16], icm.components_[-16:]
    invariant = np.linalg.norm(largest @ causal.A_inv) / np.linalg.norm(causal.A_inv)
    variant = np.linalg.norm(smallest @ causal.A_var) / np.linalg.norm(causal.A_var)
    assert invariant > 0.99
    assert variant > 0.99


def test_maximises_the_objective_of_the_paper(small):
    Z, Z_do, *_ = small
    icm = ICMTransformer(n_components=3, lam=0.5).fit(Z, X_do=Z_do)
    delta = (Z[:, None] - Z_do).reshape(-1, 6).astype(float)
    M = np.cov(Z.T, bias=True) - 0.5 * delta.T @ delta / len(delta)
    assert_allclose(icm.eigenvalues_, np.linalg.eigvalsh(M)[::-1], atol=1e-6)
    value = np.trace(icm.components_ @ M @ icm.components_.T)
    assert_allclose(value, icm.eigenvalues_[:3].sum(), rtol=1e-5)
    assert_allclose(icm.components_ @ icm.components_.T, np.eye(3), atol=1e-6)
    assert icm.n_samples_seen_ == 40
    assert icm.n_pairs_seen_ == 80


def test_differences_are_not_centred():
    """A shift that all pairs share is variation too."""
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(200, 3))
    icm = ICMTransformer(lam=10).fit(Z, X_do=Z + [5.0, 0, 0])
    assert icm.n_components_ == 2
    assert_allclose(icm.components_[:, 0], 0, atol=1e-2)


def test_training_rows_have_unit_mean_square(causal):
    Z = causal.embeddings[causal.train]
    for params in ({}, {"center": False}, {"method": "whitening"}):
        out = ICMTransformer(**params).fit_transform(Z)
        assert_allclose(np.mean(np.sum(out.astype(float) ** 2, axis=1)), 1, rtol=1e-5)
    unscaled = ICMTransformer(rescale=False).fit(Z)
    assert unscaled.scale_ == 1.0


def test_transform_and_inverse(causal):
    Z = causal.embeddings[causal.train]
    for method in ("projection", "whitening"):
        icm = ICMTransformer(n_components=None, method=method).fit(Z)
        back = icm.inverse_transform(icm.transform(Z))
        assert_allclose(back, Z, atol=1e-4)
        assert back.dtype == np.float32
        assert_allclose(icm.project(Z), np.asarray(Z) @ icm.components_.T, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept(small, dtype):
    Z, Z_do, *_ = small
    icm = ICMTransformer().fit(Z.astype(dtype), X_do=Z_do)
    assert icm.components_.dtype == icm.mean_.dtype == dtype
    assert icm.transform(Z.astype(dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("n_components", "expected"), [(2, 2), (None, 6), (0.01, 1), ("auto", 4)]
)
def test_n_components(n_components, expected):
    Z = np.random.default_rng(0).normal(size=(500, 6))
    moved = Z + np.random.default_rng(1).normal(size=Z.shape) * [0, 0, 0, 0, 9, 9]
    icm = ICMTransformer(n_components).fit(Z, X_do=moved)
    assert icm.n_components_ == len(icm.components_) == expected
    assert len(icm.eigenvalues_) == 6
    assert len(icm.get_feature_names_out()) == expected


def test_share_counts_the_positive_spectrum_only():
    Z = np.random.default_rng(0).normal(size=(2000, 4)) * [4, 2, 1, 1]
    icm = ICMTransformer(0.9).fit(Z, X_do=Z + [0, 0, 0, 50.0])
    positive = icm.eigenvalues_[icm.eigenvalues_ > 0]
    share = positive[: icm.n_components_].sum() / positive.sum()
    assert share >= 0.9
    assert positive[: icm.n_components_ - 1].sum() / positive.sum() < 0.9


def test_invariance_is_one_for_untouched_and_zero_for_resampled_directions():
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(5000, 2)) * [2, 1]
    Z_do = np.column_stack([Z[:, 0], rng.normal(size=5000)])
    icm = ICMTransformer(None, lam=0.1).fit(Z, X_do=Z_do)
    assert_allclose(icm.invariance_, [1, 0], atol=0.05)


def all_pairs(Z, y, domains=None):
    """Second moment of the differences of all pairs, listed one by one."""
    differences = [
        Z[i] - Z[j]
        for i in range(len(Z))
        for j in range(i)
        if y[i] == y[j] and (domains is None or domains[i] != domains[j])
    ]
    return np.array(differences)


@pytest.mark.parametrize("kind", ["class", "domain"])
def test_class_and_domain_pairs_equal_listing_all_pairs(small, kind):
    Z, _, y, domains = small
    Z = Z.astype(float) + y[:, None] * 3  # unequal class means
    y, domains = y[:37], domains[:37]  # unequal group sizes
    Z = Z[:37]
    listed = all_pairs(Z, y, domains if kind == "domain" else None)
    used = {"domains": domains} if kind == "domain" else {}
    icm = ICMTransformer(None, pairs=kind).fit(Z, y, **used)
    by_hand = ICMTransformer(None, pairs=(listed, np.zeros_like(listed))).fit(Z)
    assert icm.n_pairs_seen_ == len(listed)
    assert icm.pairs_ == kind
    assert_allclose(icm.eigenvalues_, by_hand.eigenvalues_, atol=1e-10)
    assert_allclose(icm.components_, by_hand.components_, atol=1e-7)


def test_no_other_pairs_than_those_asked_for(small):
    """What is there beside them is not taken in their place, whatever it is."""
    Z, Z_do, y, domains = small
    fit = ICMTransformer().fit
    assert fit(PairedEmbeddings(Z, Z_do), y).pairs_ == "interventional"
    assert fit(Z, y, X_do=Z_do).pairs_ == "interventional"
    for lost in (Z, np.asarray(PairedEmbeddings(Z, Z_do)), Z.tolist()):
        with pytest.raises(ValueError, match='pairs="class", pairs="domain" or'):
            fit(lost, y)
    for pairs in ("class", (Z, Z_do[:, 0])):
        with pytest.raises(ValueError, match="X_do is passed, but pairs="):
            ICMTransformer(pairs=pairs).fit(Z, y, X_do=Z_do)
        with pytest.raises(ValueError, match="domains are passed, but pairs="):
            ICMTransformer(pairs=pairs).fit(Z, y, domains=domains)


@pytest.mark.parametrize("method", ["projection", "whitening"])
def test_given_pairs_beside_those_of_the_data(small, method):
    Z, Z_do, y, _ = small
    rng = np.random.default_rng(1)
    U, V = rng.normal(size=(2, 7, 6))
    params = {"n_components": None, "method": method, "shrinkage": 0}

    def second_moment(differences):
        return differences.T.astype(float) @ differences / len(differences)

    differences = (Z[:, None] - Z_do).reshape(-1, 6)
    S_do = 0.7 * second_moment(differences) + 0.3 * second_moment(U - V)
    # Six pairs whose second moment is S_do.
    root = np.linalg.cholesky(6 * S_do).T
    by_hand = ICMTransformer(pairs=(root, 0 * root), **params).fit(Z)
    icm = ICMTransformer(pairs=(U, V, 0.3), **params).fit(Z, y, X_do=Z_do)
    assert_allclose(icm.eigenvalues_, by_hand.eigenvalues_, rtol=1e-5, atol=1e-6)
    assert_allclose(icm.components_, by_hand.components_, rtol=1e-4, atol=1e-4)
    assert icm.pairs_ == "interventional+given"
    assert icm.n_pairs_seen_ == len(differences) + 7


def test_whitening_damps_moved_directions(causal):
    Z = causal.embeddings[causal.train]
    icm = ICMTransformer(method="whitening").fit(Z)
    assert icm.n_components_ == 64
    shift = np.abs(icm.project(Z) - icm.project(Z.counterparts[:, 0])).mean(axis=0)
    raw = np.abs(np.asarray(Z) - Z.counterparts[:, 0]).mean(axis=0)
    spread = icm.project(Z).std(axis=0)
    assert (shift / spread).min() < 0.1 * (raw / np.asarray(Z).std(axis=0)).min()
    assert np.all(np.diff(icm.eigenvalues_) <= 0)


def test_same_result_in_any_row_order(small):
    Z, Z_do, *_ = small
    order = np.random.default_rng(1).permutation(len(Z))
    one = ICMTransformer().fit(Z, X_do=Z_do)
    other = ICMTransformer().fit(Z[order], X_do=Z_do[order])
    assert_allclose(one.components_, other.components_, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda Z, D: {"X_do": D[:-1]}, "X_do has 39 rows, expected 40"),
        (lambda Z, D: {"X_do": D[..., :5]}, "X_do has 5 features, expected 6"),
        (lambda Z, D: {"X_do": D[0, 0]}, "X_do must have shape"),
        (lambda Z, D: {"X_do": np.where(np.arange(6) == 3, np.nan, D)}, "in rows 0, 1"),
        (lambda Z, D: {"X_do": D, "domains": np.ones(40)}, "domains are passed, but"),
    ],
)
def test_bad_counterparts(small, arguments, message):
    Z, Z_do, *_ = small
    with pytest.raises(ValueError, match=message):
        ICMTransformer().fit(Z, **arguments(Z, Z_do))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ("interventional", "carries no counterparts"),
        ("domain", 'pairs="domain" requires domains'),
        ((np.ones((3, 6)), np.ones((2, 6))), "differ in length: 3 and 2"),
        ((np.ones((3, 5)), np.ones((3, 5))), r"must have shape \(m, 6\)"),
        ((np.ones((3, 6)),), "two arrays"),
        ((np.ones((3, 6)), np.ones((2, 6)), 0.5), "differ in length: 3 and 2"),
        ((np.ones((3, 6)), np.zeros((3, 6)), 1), "weight .* is 1, expected"),
        ("counterfactual", "pairs"),
    ],
)
def test_bad_pairs(small, pairs, message):
    Z, _, y, _ = small
    with pytest.raises(ValueError, match=message):
        ICMTransformer(pairs=pairs).fit(Z, y)


def test_no_pairs_in_the_data(small):
    Z = small[0]
    with pytest.raises(ValueError, match="every class has a single row"):
        ICMTransformer(pairs="class").fit(Z, np.arange(40))
    with pytest.raises(
        ValueError, match="in more than one domain. Give rows of several"
    ):
        ICMTransformer(pairs="domain").fit(Z, np.arange(40) % 2, domains=np.ones(40))


def test_other_bad_input(small):
    Z, Z_do, *_ = small
    with pytest.raises(ValueError, match="minimum of 2"):
        ICMTransformer().fit(Z[:1], X_do=Z_do[:1])
    with pytest.raises(ValueError, match="n_components=7 is more than the 6 features"):
        ICMTransformer(7).fit(Z, X_do=Z_do)
    with pytest.raises(ValueError, match="lam"):
        ICMTransformer(lam=-1).fit(Z, X_do=Z_do)
    with pytest.raises(NotFittedError):
        ICMTransformer().transform(Z)
    fitted = ICMTransformer(2).fit(Z, X_do=Z_do)
    with pytest.raises(ValueError, match="expected n_components_=2"):
        fitted.inverse_transform(Z)
    with pytest.warns(UserWarning, match="Lower lam"):
        assert ICMTransformer(lam=1e9).fit(Z, X_do=-Z).n_components_ == 1


def test_fitted_transformer_is_small(causal):
    import pickle

    icm = ICMTransformer(lam=10).fit(causal.embeddings[causal.train])
    assert len(pickle.dumps(icm)) < 20_000


def test_shrinkage_counts_the_pairs_that_it_is_estimated_from():
    rng = np.random.default_rng(0)
    X, U, V = (rng.normal(size=(n, 64)) for n in (5000, 20, 20))
    U[:, :3] *= 6
    icm = ICMTransformer(method="whitening", pairs=(U, V)).fit(X)
    shrunk, rho = oas(U - V, assume_centered=True)
    assert 0.1 < rho < 0.9
    moved = np.linalg.eigvalsh(shrunk / (1 - rho))
    assert_allclose(icm.eigenvalues_, moved**-0.5, rtol=1e-6)


@pytest.mark.parametrize("n", [5, 40])
def test_invariance_is_one_where_nothing_varies(n):
    rng = np.random.default_rng(0)
    X = np.ones((n, 16), np.float32)
    X[:, :6] = rng.normal(size=(n, 3)) @ rng.normal(size=(3, 6))
    X_do = X + rng.normal(size=(n, 16)).astype(np.float32) * (np.arange(16) < 9)
    for center in (True, False):
        icm = ICMTransformer(None, center=center).fit(X, X_do=X_do)
        varies = (np.asarray(X, float) - X.mean(0)) @ icm.components_.T
        still = np.square(varies).mean(0) < 1e-10
        assert still.any()
        assert_allclose(icm.invariance_[still], 1)
        assert np.isfinite(icm.invariance_).all()
        assert np.abs(icm.invariance_).max() < 1e6


def test_few_rows_give_what_the_full_eigenproblem_gives(monkeypatch):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20, 64)) * np.linspace(0.1, 3, 64)
    X_do, y = X + rng.normal(size=(20, 64)), np.arange(20) % 4
    U, V = rng.normal(size=(2, 6, 64))
    for params, data in (
        ({}, {"X_do": X_do}),
        ({"pairs": "class"}, {"y": y}),
        ({"pairs": "domain"}, {"y": y, "domains": np.arange(20) % 3}),
        ({"pairs": (U, V)}, {}),
        ({"pairs": (U, V, 0.3)}, {"X_do": X_do}),
        ({"center": False, "n_components": 7}, {"X_do": X_do}),
    ):
        icm = ICMTransformer(lam=0.5, **params)
        few = clone(icm).fit(X, **data)
        with monkeypatch.context() as patch:
            patch.setattr("skclip_icm._projection.arrays.CHUNK_BYTES", 8 * 64 * 7)
            in_chunks = clone(icm).fit(X, **data)
        assert_allclose(in_chunks.components_, few.components_, atol=1e-10)
        with monkeypatch.context() as patch:
            patch.setattr(
                "skclip_icm._projection.directions.solve_in_span", lambda *args: None
            )
            full = clone(icm).fit(X, **data)
        assert few.n_components_ == full.n_components_
        assert_allclose(few.components_, full.components_, atol=1e-8)
        assert_allclose(few.eigenvalues_, full.eigenvalues_, atol=1e-10)
        assert_allclose(few.invariance_, full.invariance_, atol=1e-8)
        assert_allclose(few.scale_, full.scale_)


@pytest.mark.parametrize("method", ["projection", "whitening"])
@pytest.mark.parametrize("k", [0, 1])
def test_an_intervention_that_changes_nothing_is_a_warning(small, k, method):
    Z, Z_do = small[0], np.array(small[1])
    Z_do[:, k] = Z
    with pytest.warns(UserWarning, match=rf"2 counterparts .*, number {k} \(from 0\)"):
        ICMTransformer(method=method).fit(Z, X_do=Z_do)


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, pd.NaT])
@pytest.mark.parametrize("name", ["y", "domains"])
def test_missing_labels_are_named(small, name, missing):
    Z, _, y, _ = small
    labels = {"y": y, "domains": np.arange(len(y)) % 2}
    labels[name] = np.array(labels[name], dtype=object)
    labels[name][3] = missing
    for values in (labels[name], pd.Series(labels[name]), list(labels[name])):
        with pytest.raises(ValueError, match=rf"{name}\[3\] is .*missing label"):
            ICMTransformer(pairs="domain").fit(Z, **{**labels, name: values})


@pytest.mark.parametrize("name", ["y", "domains"])
def test_labels_of_another_shape_are_named(small, name):
    Z, _, y, _ = small
    labels = {"y": y, "domains": np.arange(len(y)) % 2}
    for values, message in (
        (labels[name][:-1], f"{name} has {len(y) - 1} entries, expected {len(y)}"),
        (np.stack([y, y], axis=1), rf"{name} has shape \({len(y)}, 2\), expected"),
        (5, rf"{name} is of type int, expected"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            ICMTransformer(pairs="domain").fit(Z, **{**labels, name: values})
    column = {**labels, name: labels[name][:, None]}
    with pytest.warns(DataConversionWarning, match="column-vector"):
        icm = ICMTransformer(pairs="domain").fit(Z, **column)
    expected = ICMTransformer(pairs="domain").fit(Z, **labels)
    assert_allclose(icm.components_, expected.components_)


def test_memory_does_not_grow_with_the_number_of_counterparts():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(4096, 256)).astype(np.float32)
    X_do = np.repeat(X[:, None], 16, axis=1)
    X_do[:, :, :128] += 1
    tracemalloc.start()
    ICMTransformer().fit(X, X_do=X_do)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 90e6
