"""The pipeline on real photographs, in every setting that scikit-learn offers."""

import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, make_scorer
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    LeaveOneGroupOut,
    ParameterGrid,
    cross_val_predict,
    cross_val_score,
)
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from skclip_icm import (
    CLIPFeaturizer,
    ICMTransformer,
    PairedEmbeddings,
    interventional_scorer,
    invariant_search,
)


def make_pipeline(*between, memory=None, transform_input=None, **clip):
    steps = [
        ("clip", CLIPFeaturizer("demo", **clip)),
        *between,
        ("icm", ICMTransformer(pairs="interventional")),
        ("clf", LogisticRegression(max_iter=1000)),
    ]
    return Pipeline(steps, memory=memory, transform_input=transform_input)


def test_default_pipeline(elpv, forward_rows):
    pipe = make_pipeline().fit(elpv.images, elpv.target)
    assert forward_rows() == 80  # each photograph and its one counterpart
    assert pipe["icm"].n_pairs_seen_ == 40
    assert pipe.score(elpv.images, elpv.target) > 0.8
    assert forward_rows() == 80
    pipe.predict([np.asarray(pixels) for pixels in np.zeros((2, 50, 50), np.uint8)])
    assert forward_rows() == 81  # two equal images, themselves only


def test_pipeline_without_icm_never_encodes_counterparts(elpv, forward_rows):
    pipe = make_pipeline().set_params(icm="passthrough")
    pipe.fit(elpv.images, elpv.target)
    assert forward_rows() == 40


def test_grid_search_encodes_each_image_and_intervention_once(elpv, forward_rows):
    grid = {"icm__lam": [0.3, 1, 3], "clf__C": [0.3, 1]}
    search = GridSearchCV(
        make_pipeline(interventions=["invert", "gaussian_blur"]),
        grid,
        cv=LeaveOneGroupOut(),
        scoring=interventional_scorer("roc_auc"),
        error_score="raise",
    )
    search.fit(elpv.images, elpv.target, groups=elpv.domains)
    assert forward_rows() == 40 * 3
    assert search.best_estimator_["icm"].pairs_ == "interventional"
    search.predict(elpv.images)
    assert forward_rows() == 40 * 3


def test_scorer_scores_each_intervention_apart(elpv):
    pipe = make_pipeline().fit(elpv.images, elpv.target)
    names = ["invert", "gaussian_blur", "equalize"]
    mean = interventional_scorer("accuracy", names)
    worst = interventional_scorer("accuracy", names, aggregate="worst")
    paired = pipe["clip"].intervene(elpv.images, names)
    apart = [pipe[1:].score(Z, elpv.target) for Z in paired.counterparts.swapaxes(0, 1)]
    assert_allclose(mean(pipe, elpv.images, elpv.target), np.mean(apart))
    assert_allclose(worst(pipe, elpv.images, elpv.target), min(apart))
    precomputed = interventional_scorer("accuracy")(pipe[1:], paired, elpv.target)
    assert_allclose(precomputed, np.mean(apart))


def test_scorer_on_what_has_no_counterparts(elpv):
    Z = np.random.default_rng(0).normal(size=(40, 4))
    probe = LogisticRegression().fit(Z, elpv.target)
    with pytest.raises(ValueError, match="CLIPFeaturizer.*LogisticRegression"):
        interventional_scorer("accuracy")(probe, Z, elpv.target)
    with pytest.raises(ValueError, match="scoring"):
        interventional_scorer(3)
    with pytest.raises(ValueError, match="aggregate"):
        interventional_scorer("accuracy", aggregate="median")


def test_grid_search_in_two_processes(elpv):
    search = GridSearchCV(
        make_pipeline(), {"icm__lam": [1, 3]}, cv=2, n_jobs=2, error_score="raise"
    )
    search.fit(elpv.images, elpv.target)
    alone = GridSearchCV(make_pipeline(), {"icm__lam": [1, 3]}, cv=2)
    alone.fit(elpv.images, elpv.target)
    assert_allclose(
        search.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"]
    )


def test_grid_search_on_precomputed_embeddings(elpv):
    Z = CLIPFeaturizer("demo").fit_transform(elpv.images)
    search = GridSearchCV(
        make_pipeline()[1:],
        {"icm__lam": [1, 3]},
        cv=3,
        scoring=interventional_scorer("accuracy"),
        n_jobs=2,
        error_score="raise",
    )
    assert search.fit(Z, elpv.target).best_score_ > 0.5


def test_pipeline_memory(elpv, tmp_path, forward_rows):
    for _ in range(2):
        pipe = make_pipeline(memory=str(tmp_path)).fit(elpv.images, elpv.target)
        assert pipe["icm"].pairs_ == "interventional"
    assert forward_rows() == 80
    other = make_pipeline(memory=str(tmp_path), interventions="invert")
    other.fit(elpv.images, elpv.target)
    assert np.abs(other["icm"].eigenvalues_ - pipe["icm"].eigenvalues_).max() > 1e-4


def test_fitted_pipeline_round_trips(elpv, tmp_path):
    pipe = make_pipeline().fit(elpv.images, elpv.target)
    expected = pipe.predict_proba(elpv.images)
    joblib.dump(pipe, tmp_path / "pipe.joblib")
    assert (tmp_path / "pipe.joblib").stat().st_size < 5_000_000
    for loaded in (
        joblib.load(tmp_path / "pipe.joblib"),
        pickle.loads(pickle.dumps(pipe)),
    ):
        assert_array_equal(loaded.predict_proba(elpv.images), expected)


def test_cross_validation_helpers(elpv):
    predicted = cross_val_predict(make_pipeline(), elpv.images, elpv.target, cv=2)
    assert predicted.shape == (40,)
    scores = cross_val_score(
        make_pipeline(),
        elpv.images,
        elpv.target,
        groups=elpv.domains,
        cv=LeaveOneGroupOut(),
        scoring=interventional_scorer("roc_auc"),
        error_score="raise",
    )
    assert len(scores) == 2


def test_pandas_output_throughout(elpv):
    pipe = make_pipeline().set_output(transform="pandas")
    search = GridSearchCV(
        pipe,
        {"icm__lam": [1]},
        cv=2,
        scoring=interventional_scorer("accuracy"),
        error_score="raise",
    ).fit(elpv.images, elpv.target)
    fitted = search.best_estimator_
    assert fitted["icm"].pairs_ == "interventional"
    assert list(fitted["clf"].feature_names_in_[:1]) == ["icmtransformer0"]
    plain = make_pipeline().fit(elpv.images, elpv.target)
    assert_allclose(fitted["icm"].eigenvalues_, plain["icm"].eigenvalues_, atol=1e-9)


def test_explicit_counterparts_by_metadata(elpv):
    """`X_do` holds images here: the pipeline embeds them as it embeds `X`."""
    changed = [image for image in elpv.images[::-1]]
    with config_context(enable_metadata_routing=True):
        pipe = make_pipeline(transform_input=["X_do"])
        pipe.fit(elpv.images, elpv.target, X_do=changed)
        search = GridSearchCV(pipe, {"icm__lam": [1]}, cv=2, error_score="raise")
        search.fit(elpv.images, elpv.target, X_do=np.array(changed, dtype=object))
    Z = CLIPFeaturizer("demo").transform(elpv.images)
    by_hand = ICMTransformer().fit(Z, X_do=Z[::-1])
    assert_allclose(pipe["icm"].eigenvalues_, by_hand.eigenvalues_, atol=1e-9)


def test_a_step_that_rebuilds_the_array_is_an_error(elpv):
    pipe = make_pipeline(("scale", StandardScaler()))
    with pytest.raises(ValueError, match="a plain ndarray; any step that computes new"):
        pipe.fit(elpv.images, elpv.target)


def test_interventional_validation_picks_what_survives_the_shift(elpv):
    """On embeddings whose classes a background gives away, lam must not stay 0."""
    from skclip_icm.datasets import make_causal_embeddings

    data = make_causal_embeddings(400, random_state=0)
    train = data.domains == 0
    Z, y = data.embeddings, data.target
    pipe = Pipeline([("icm", ICMTransformer(None)), ("clf", LogisticRegression())])
    grid = {"icm__lam": [0, 10], "icm__n_components": [None, "auto"]}
    chosen = {}
    for name, scoring in (("inside", "accuracy"), ("do", interventional_scorer())):
        search = GridSearchCV(pipe, grid, scoring=scoring).fit(Z[train], y[train])
        chosen[name] = (
            search.score(Z[~train], y[~train])
            if name == "inside"
            else (search.best_estimator_.score(Z[~train], y[~train]))
        )
    assert chosen["inside"] < 0.8
    assert chosen["do"] > 0.95


def test_invariant_search_takes_the_worst_intervention(elpv):
    Z = CLIPFeaturizer("demo").intervene(elpv.images, ["invert", "equalize"])
    folds = [
        (np.flatnonzero(elpv.domains == d), np.flatnonzero(elpv.domains != d))
        for d in (0, 1)
    ]
    search = invariant_search(make_pipeline()[1:], {"icm__lam": [1]}, cv=folds)
    search.fit(Z, elpv.target)
    scores = []
    for train, test in folds:
        pipe = make_pipeline()[1:].set_params(icm__lam=1)
        pipe.fit(Z[train], elpv.target[train])
        views = Z[test].counterparts.swapaxes(0, 1)
        scores.append(min(pipe.score(view, elpv.target[test]) for view in views))
    assert_allclose(search.best_score_, np.mean(scores))


def test_scorer_counts_the_original_on_request(elpv):
    Z = CLIPFeaturizer("demo").intervene(elpv.images, ["invert", "equalize"])
    pipe = make_pipeline()[1:].fit(Z, elpv.target)
    views = [Z, *Z.counterparts.swapaxes(0, 1)]
    scorer = interventional_scorer("accuracy", include_original=True)
    by_hand = np.mean([pipe.score(view, elpv.target) for view in views])
    assert_allclose(scorer(pipe, Z, elpv.target), by_hand)


def test_invariant_search_over_images(elpv):
    grid = {"icm__lam": [1]}
    pipe = make_pipeline()
    search = invariant_search(pipe, grid, interventions="invert", error_score="raise")
    search.fit(elpv.images, elpv.target)
    assert search.best_estimator_["icm"].pairs_ == "interventional"


def test_scorer_finds_the_featurizer_in_any_nesting(elpv):
    score = interventional_scorer("accuracy", ["invert", "equalize"])
    flat = make_pipeline().fit(elpv.images, elpv.target)
    expected = score(flat, elpv.images, elpv.target)
    inner = make_pipeline()
    nested = Pipeline([("embed", inner[:2]), ("end", Pipeline(inner.steps[2:]))])
    columns = ColumnTransformer([("image", inner[:2], ["image"])])
    frame = pd.DataFrame({"image": list(elpv.images), "number": np.zeros(40)})
    for model, X in (
        (nested, elpv.images),
        (Pipeline([("columns", columns), ("clf", inner[-1])]), frame),
        (GridSearchCV(nested, {"embed__icm__lam": [1]}, cv=2), elpv.images),
        (FixedThresholdClassifier(nested, threshold=0.5), elpv.images),
    ):
        fitted = clone(model).fit(X, elpv.target)
        assert score(fitted, X, elpv.target) == expected
        assert score(FrozenEstimator(fitted), X, elpv.target) == expected
        predicted = fitted.predict(X)
        assert_array_equal(predicted, flat.predict(elpv.images))  # as it was
    search = invariant_search(nested, {"embed__icm__lam": [1]}, cv=2)
    assert np.isfinite(search.fit(elpv.images, elpv.target).best_score_)


def test_scorer_intervenes_on_every_column_of_images(elpv):
    branch = make_pipeline()[:1]
    columns = ColumnTransformer([("front", branch, "front"), ("back", branch, "back")])
    model = Pipeline([("columns", columns), ("clf", LogisticRegression(max_iter=999))])
    images = list(elpv.images)
    frame = pd.DataFrame({"front": images, "back": images[::-1]})
    model.fit(frame, elpv.target)
    front, back = (
        branch[0].intervene(frame[name], "invert").counterparts[:, 0]
        for name in ("front", "back")
    )
    by_hand = model["clf"].score(np.hstack([front, back]), elpv.target)
    score = interventional_scorer("accuracy", "invert")
    assert score(model, frame, elpv.target) == by_hand


def test_scorer_does_not_look_where_it_cannot_intervene(elpv):
    """An ensemble predicts with many pipelines, not with the one that it was given."""
    model = CalibratedClassifierCV(make_pipeline(), cv=2)
    model.fit(elpv.images, elpv.target)
    with pytest.raises(ValueError, match=r"got a CalibratedClassifierCV over a Pipe"):
        interventional_scorer()(model, elpv.images, elpv.target)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scoring": "acuracy"}, "'acuracy'"),
        ({"scoring": accuracy_score}, "looks like it is a metric function"),
        ({"interventions": "gaussian_blurr"}, "gaussian_blurr"),
        ({"interventions": ["invert", "blurr"]}, "blurr"),
        ({"scoring": interventional_scorer}, "is an interventional_scorer"),
    ],
)
def test_a_mistaken_scorer_is_refused_when_it_is_made(arguments, message):
    with pytest.raises(ValueError, match=message):
        interventional_scorer(**arguments)
    with pytest.raises(ValueError, match=message):
        invariant_search(make_pipeline(), {}, **arguments)


def test_a_scorer_that_is_not_called_is_an_error():
    Z = PairedEmbeddings(np.eye(8), np.eye(8))
    search = GridSearchCV(
        LogisticRegression(), {"C": [1, 2]}, scoring=interventional_scorer, cv=2
    )
    with pytest.raises(ValueError, match=r"call it, scoring=interventional_scorer\(\)"):
        search.fit(Z, [0, 1] * 4)


def test_the_ready_grid_has_no_icm_both_methods_and_c_in_it():
    pipe = make_pipeline()
    grid = list(ParameterGrid(invariant_search(pipe).param_grid))
    assert len(grid) == (1 + 6 + 6) * 5
    assert {"icm": "passthrough", "clf__C": 1} in grid
    assert {"icm__method": "projection", "icm__lam": 1000, "clf__C": 100} in grid
    assert {"icm__method": "whitening", "icm__shrinkage": "auto", "clf__C": 1} in grid
    centroid = Pipeline([("icm", ICMTransformer()), ("clf", NearestCentroid())])
    assert len(ParameterGrid(invariant_search(centroid).param_grid)) == 13
    with pytest.raises(ValueError, match="no Pipeline with an ICMTransformer"):
        invariant_search(LogisticRegression())


def test_validation_under_what_is_fitted_with_is_a_warning(recwarn):
    pipe = make_pipeline()
    invariant_search(pipe)
    assert not recwarn
    with pytest.warns(UserWarning, match="fitted with solarize, which candidates"):
        invariant_search(pipe, interventions=["invert", "solarize"])
    own = lambda image: image  # noqa: E731
    pipe[0].set_params(interventions=own)
    with pytest.warns(UserWarning, match="fitted with <lambda>"):
        invariant_search(pipe, interventions=[own, "invert"])


def test_invariant_search_does_not_go_on_without_counterparts():
    search = invariant_search(LogisticRegression(), {"C": [1, 2]}, cv=2)
    with pytest.raises(ValueError, match="needs an estimator over images"):
        search.fit(np.eye(8), [0, 1] * 4)


@pytest.mark.parametrize("scoring", ["accuracy", None, make_scorer(accuracy_score)])
def test_scorer_hands_on_the_metadata_that_it_asks_for(scoring):
    rng = np.random.default_rng(0)
    Z, y = rng.normal(size=(60, 3)), np.arange(60) % 2
    paired = PairedEmbeddings(Z, rng.normal(size=(60, 2, 3)))
    weights = rng.uniform(size=60) * (y == 0)
    with config_context(enable_metadata_routing=True):
        model = LogisticRegression().set_fit_request(sample_weight=False)
        model.set_score_request(sample_weight=True)
        scorer = interventional_scorer(scoring).set_score_request(sample_weight=True)
        fitted = clone(model).fit(Z, y)
        views = paired.counterparts.swapaxes(0, 1)
        by_hand = [fitted.score(view, y, sample_weight=weights) for view in views]
        weighted = scorer(fitted, paired, y, sample_weight=weights)
        assert_allclose(weighted, np.mean(by_hand))
        search = GridSearchCV(model, {"C": [1]}, scoring=scorer, cv=[(range(60),) * 2])
        search.fit(paired, y, sample_weight=weights)
        assert_allclose(search.best_score_, weighted)
