"""Centring by domain, and adapting to a new one."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from skclip_icm import (
    CLIPFeaturizer,
    ICMTransformer,
    PairedEmbeddings,
    ZeroShotClassifier,
    adapt,
    fit_files,
)


@pytest.fixture
def rows():
    """Embeddings, counterparts, classes and domains; each domain has a shift."""
    rng = np.random.default_rng(0)
    n, d = 300, 6
    y, domains = rng.integers(0, 3, n), rng.choice(["a", "b", "c"], n)
    shifts = {name: rng.normal(size=d) * 5 for name in "abc"}
    Z = rng.normal(size=(n, d)) * [3, 2, 2, 1, 1, 1] + np.eye(3, d)[y] * 4
    Z += np.stack([shifts[name] for name in domains])
    Z_do = Z + rng.normal(size=(n, d)) * [0.1, 2, 0.1, 1, 1, 0.5]
    return Z, Z_do, y, domains


def centred(Z, domains):
    means = {name: Z[domains == name].mean(axis=0) for name in np.unique(domains)}
    return Z - np.stack([means[name] for name in domains])


KINDS = {
    "interventional": lambda Z, Z_do, y: {"X_do": Z_do},
    "class": lambda Z, Z_do, y: {"y": y},
    "domain": lambda Z, Z_do, y: {"y": y},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("params", [{"lam": 0.3}, {"method": "whitening"}])
@pytest.mark.parametrize("wide", [False, True])
def test_domain_means_are_taken_off_before_everything_else(rows, kind, params, wide):
    Z, Z_do, y, domains = rows
    if wide:  # fewer rows than features
        keep = np.arange(40)
        lift = np.random.default_rng(1).normal(size=(6, 200))
        Z, Z_do, y, domains = Z[keep] @ lift, Z_do[keep] @ lift, y[keep], domains[keep]
    extra = KINDS[kind](Z, Z_do, y)
    icm = ICMTransformer(pairs=kind, center="domain", **params)
    found = icm.fit_transform(Z, **extra, domains=domains)
    if kind == "interventional":
        extra = {"X_do": Z_do - Z + centred(Z, domains)}
    if kind == "domain":
        extra["domains"] = domains
    plain = ICMTransformer(pairs=kind, **params)
    expected = plain.fit_transform(centred(Z, domains), **extra)
    assert_allclose(icm.eigenvalues_, plain.eigenvalues_, rtol=1e-6, atol=1e-9)
    assert_allclose(found, expected, atol=1e-6)
    assert_allclose(icm.mean_, Z.mean(axis=0))
    for label, mean in zip(icm.domains_, icm.domain_means_, strict=True):
        assert_allclose(mean, Z[domains == label].mean(axis=0))


@pytest.mark.parametrize("kind", KINDS)
def test_any_split_gives_the_same(rows, kind, tmp_path):
    Z, Z_do, y, domains = rows
    icm = ICMTransformer(pairs=kind, center="domain")
    extra = KINDS[kind](Z, Z_do, y)
    expected = clone(icm).fit(Z, **extra, domains=domains)
    parts = [clone(icm), clone(icm)]
    for start in range(0, 300, 60):
        some = slice(start, start + 60)
        its = {name: values[some] for name, values in extra.items()}
        parts[start % 120 // 60].partial_fit(Z[some], **its, domains=domains[some])
    np.save(tmp_path / "z.npy", Z)
    in_files = fit_files(tmp_path / "z.npy", icm, **extra, domains=domains)
    for found in (parts[0].merge(parts[1]), in_files):
        assert_allclose(found.eigenvalues_, expected.eigenvalues_, rtol=1e-8)
        assert_allclose(found.components_, expected.components_, atol=1e-6)
        order = [list(found.domains_).index(name) for name in expected.domains_]
        assert_allclose(found.domain_means_[order], expected.domain_means_)


def test_domains_that_are_missing_or_not_used(rows):
    Z, Z_do, _, domains = rows
    with pytest.raises(ValueError, match='center="domain" needs domains'):
        ICMTransformer(center="domain").fit(Z, X_do=Z_do)
    with pytest.raises(ValueError, match='set center="domain" or pairs="domain"'):
        ICMTransformer().fit(Z, X_do=Z_do, domains=domains)
    with pytest.raises(ValueError, match=r"domains\[3\] is None"):
        missing = [None if i == 3 else name for i, name in enumerate(domains)]
        ICMTransformer(center="domain").fit(Z, X_do=Z_do, domains=missing)


def test_adapting_moves_the_mean_by_the_number_of_rows(rows):
    Z, Z_do, *_ = rows
    icm = ICMTransformer().fit(Z, X_do=Z_do)
    before = icm.transform(Z)
    new = Z[:30] + 7
    for weight in (0, 10.0, 1e6):
        adapted = icm.adapt(new, prior_weight=weight)
        expected = (30 * new.mean(axis=0) + weight * icm.mean_) / (30 + weight)
        assert_allclose(adapted.mean_, expected)
        assert_allclose(adapted.components_, icm.components_)
    assert_allclose(icm.transform(Z), before)  # untouched
    with pytest.raises(
        ValueError, match="prior_weight is -1, expected a number from 0"
    ):
        icm.adapt(new, prior_weight=-1)
    with pytest.raises(ValueError, match="center=False, so there is no mean"):
        ICMTransformer(center=False).fit(Z, X_do=Z_do).adapt(new)
    with pytest.raises(ValueError, match="features"):
        icm.adapt(new[:, :2])


@pytest.fixture
def shifted():
    """Two classes, in training and where all embeddings are shifted."""
    rng = np.random.default_rng(0)
    y = np.arange(200) % 2
    Z = rng.normal(size=(200, 8)) + 3 * y[:, None]
    Z_do = Z + rng.normal(size=Z.shape) * 0.3
    return PairedEmbeddings(Z, Z_do[:, None]), y, Z + 6


def test_fitted_estimators_are_adapted_in_any_nesting(shifted):
    Z, y, elsewhere = shifted
    pipe = make_pipeline(ICMTransformer(), LogisticRegression())
    grid = {"logisticregression__C": [0.1, 1]}
    for model in (pipe, GridSearchCV(pipe, grid)):
        model.fit(Z, y)
        adapted = adapt(model, elsewhere[:40], prior_weight=1)
        assert model.score(elsewhere, y) == 0.5
        assert adapted.score(elsewhere, y) > 0.95
        assert model.score(elsewhere, y) == 0.5
        assert adapt(model, elsewhere[:40], prior_weight=1e9).score(elsewhere, y) < 0.6


def test_without_icm_the_training_rows_tell_the_mean(shifted):
    Z, y, elsewhere = shifted
    Z = np.asarray(Z)
    for model in (
        LogisticRegression(),
        make_pipeline("passthrough", LogisticRegression()),
        GridSearchCV(LogisticRegression(), {"C": [1, 2]}),
    ):
        model.fit(Z, y)
        with pytest.raises(ValueError, match="no one ICMTransformer .*Pass X_train"):
            adapt(model, elsewhere)
        adapted = adapt(model, elsewhere, X_train=Z)
        assert model.score(elsewhere, y) == 0.5 and adapted.score(elsewhere, y) > 0.95
    model = make_pipeline(ICMTransformer(), LogisticRegression()).fit(*shifted[:2])
    known = adapt(model, elsewhere).predict(elsewhere)
    found = adapt(model, elsewhere, X_train=Z + 99).predict(elsewhere)  # not needed
    assert (found == known).all()


def test_images(photographs):
    y, dark = [0, 1] * 3, photographs // 3
    images = make_pipeline(CLIPFeaturizer("demo"), ICMTransformer(lam=0.1))
    probe = make_pipeline(CLIPFeaturizer("demo"), "passthrough", LogisticRegression())
    images.fit(photographs)
    adapted = adapt(images, dark, prior_weight=0)
    assert_allclose(adapted.transform(dark).mean(axis=0), 0, atol=1e-4)
    probe.fit(photographs, y)
    Z, Z_dark = probe[0].transform(photographs), probe[0].transform(dark)
    expected = probe[-1].decision_function(Z_dark - Z_dark.mean(0) + Z.mean(0))
    adapted = adapt(probe, dark, X_train=photographs, prior_weight=0)
    assert_allclose(adapted.decision_function(dark), expected, atol=1e-4)


def test_frames_keep_their_names(photographs):
    pytest.importorskip("pandas")
    probe = make_pipeline(CLIPFeaturizer("demo"), LogisticRegression())
    probe.set_output(transform="pandas").fit(photographs, [0, 1] * 3)
    adapted = adapt(probe, photographs // 3, X_train=photographs)
    assert list(adapted[:-1].transform(photographs).columns) == list(
        probe[:-1].transform(photographs).columns
    )
    adapted.predict(photographs)


def test_all_columns_of_images_are_adapted(photographs):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"left": list(photographs), "right": list(photographs)})
    both = make_column_transformer(
        *(
            (make_pipeline(CLIPFeaturizer("demo"), ICMTransformer(2)), [side])
            for side in frame
        )
    ).fit(frame)
    dark = frame.map(lambda image: image // 3)
    adapted = adapt(both, dark, prior_weight=0)
    assert_allclose(adapted.transform(dark).mean(axis=0), 0, atol=1e-4)


def test_zero_shot(photographs):
    classifier = ZeroShotClassifier(
        CLIPFeaturizer("demo"), ICMTransformer(3), class_names=["cat", "dog"]
    ).fit(photographs)
    before = classifier.decision_function(photographs)
    dark = photographs // 3
    adapted = adapt(classifier, dark, prior_weight=0)
    Z = classifier.featurizer_.transform(dark)
    assert_allclose((Z + adapted.shift_).mean(axis=0), classifier.icm_.mean_, atol=1e-5)
    assert np.abs(adapted.decision_function(dark) - before).max() > 0
    assert_allclose(classifier.decision_function(photographs), before)
    alone = ZeroShotClassifier(CLIPFeaturizer("demo"), class_names=["cat", "dog"])
    with pytest.raises(ValueError, match="icm=None, so the mean"):
        adapt(alone.fit(photographs), dark)
