"""Counterparts stay with their embeddings through everything scikit-learn does."""

import copy
import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal
from sklearn import config_context
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from skclip_icm import ICMTransformer, PairedEmbeddings
from skclip_icm.datasets import make_causal_embeddings
from skclip_icm.pairs import LazyCounterparts, attach_to_frame, find_paired


@pytest.fixture
def paired():
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(10, 3)).astype(np.float32)
    return PairedEmbeddings(Z, np.stack([Z + 1, Z + 2], axis=1))


@pytest.fixture(scope="module")
def train():
    data = make_causal_embeddings(300, random_state=0)
    rows = data.domains == 0
    return data.embeddings[rows], data.target[rows]


def icm_pipeline(**params):
    icm = ICMTransformer(pairs="interventional", lam=10)
    return make_pipeline(icm, LogisticRegression(), **params)


@pytest.mark.parametrize(
    "key",
    [
        [3, 1, 1],
        np.arange(10) % 2 == 0,
        slice(2, 8, 3),
        slice(None, None, -1),
        (slice(1, 4), slice(None)),
        (np.array([-1, 0]), slice(None)),
        ...,
        ([1, 2], ...),
    ],
)
def test_row_selection_keeps_pairs(paired, key):
    selected = paired[key]
    assert_array_equal(selected.counterparts[:, 0], np.asarray(selected) + 1)
    assert_array_equal(selected, np.asarray(paired)[key])


def test_selections_of_selections(paired):
    twice = paired[[5, 2, 7]][1:].take([1, 0], axis=0)
    assert_array_equal(twice, np.asarray(paired)[[7, 2]])
    assert_array_equal(twice.counterparts, paired.counterparts[[7, 2]])
    assert_array_equal(np.take(paired, [4], axis=0).counterparts[0, 0], paired[4] + 1)


@pytest.mark.parametrize(
    "operation",
    [
        lambda Z: Z * 2,
        lambda Z: Z + Z,
        lambda Z: Z[:, :2],
        lambda Z: Z[:, [0, 1, 2]],
        lambda Z: Z.T,
        lambda Z: np.asarray(Z),
        lambda Z: np.vstack([Z, Z]),
        lambda Z: Z[0],
        lambda Z: Z.mean(axis=0),
        lambda Z: Z @ np.eye(3),
        lambda Z: Z.astype(np.float64),
        lambda Z: Z.reshape(5, 6),
        lambda Z: np.sort(Z, axis=0),
        lambda Z: Z.copy(),
    ],
)
def test_changed_values_lose_pairs(paired, operation):
    assert find_paired(operation(paired)) is None


def test_values_cannot_drift_from_their_counterparts(paired):
    with pytest.raises(ValueError, match="read-only"):
        paired *= 2
    changed = paired.copy()
    changed *= 2
    assert_array_equal(changed, np.asarray(paired) * 2)


def test_scalars_and_reductions_are_plain(paired):
    assert isinstance(paired[0, 0], np.float32)
    assert isinstance(paired.sum(), np.float32)
    assert type(paired[0]) is np.ndarray


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.copy,
        copy.deepcopy,
        lambda Z: pickle.loads(pickle.dumps(Z)),
        lambda Z: pickle.loads(pickle.dumps(Z[::2]))[[0, 1]],
    ],
)
def test_copies_and_pickles_keep_pairs(paired, duplicate):
    other = duplicate(paired)
    assert_array_equal(other.counterparts[:, 0], np.asarray(other) + 1)


def test_joblib_dump_round_trip(paired, tmp_path):
    joblib.dump({"Z": paired[3:]}, tmp_path / "Z.joblib")
    loaded = joblib.load(tmp_path / "Z.joblib")["Z"]
    assert_array_equal(loaded.counterparts, paired.counterparts[3:])


def test_pickled_rows_hold_their_own_counterparts_only(paired):
    large = PairedEmbeddings(np.zeros((2000, 8), np.float32), np.zeros((2000, 5, 8)))
    assert len(pickle.dumps(large[:1])) < 2000


def test_lazy_counterparts_are_computed_once_and_only_where_asked():
    asked = []

    def compute(rows):
        asked.append(rows.tolist())
        return Z[rows, None] + 1

    Z = np.arange(12, dtype=np.float32).reshape(6, 2)
    lazy = PairedEmbeddings(Z, LazyCounterparts(compute, (6, 1, 2), "plus one"))
    part = lazy[[4, 1]]
    assert asked == []
    assert_array_equal(part.counterparts[:, 0], Z[[4, 1]] + 1)
    assert_array_equal(lazy.counterparts[:, 0], Z + 1)
    pickle.loads(pickle.dumps(lazy))
    assert asked == [[1, 4], [0, 2, 3, 5]]


def test_bad_shapes():
    Z = np.zeros((4, 3))
    with pytest.raises(ValueError, match="has 3 rows, expected 4"):
        PairedEmbeddings(Z, Z[:3])
    with pytest.raises(ValueError, match="has 2 features, expected 3"):
        PairedEmbeddings(Z, Z[:, :2])
    with pytest.raises(ValueError, match=r"must have shape \(4, 3\) or"):
        PairedEmbeddings(Z, Z[0])
    with pytest.raises(ValueError, match=r"shape \(n, d\)"):
        PairedEmbeddings(Z[0], Z[0])


def test_grid_search_on_precomputed_embeddings(train):
    Z, y = train
    grid = {"icmtransformer__lam": [1, 10]}
    for n_jobs in (1, 2):
        search = GridSearchCV(
            icm_pipeline(), grid, cv=3, n_jobs=n_jobs, error_score="raise"
        )
        search.fit(Z, y)
        assert search.best_estimator_[0].pairs_ == "interventional"
        assert search.best_score_ > 0.9


def test_cross_validation_helpers(train):
    Z, y = train
    assert cross_val_score(icm_pipeline(), Z, y, error_score="raise").min() > 0.9
    assert np.mean(cross_val_predict(icm_pipeline(), Z, y) == y) > 0.9


def test_pipeline_memory_tells_counterparts_apart(train, tmp_path):
    """Equal embeddings with other counterparts must not hit the cached fit."""
    Z, y = train
    fitted = []
    for shift in (0.0, 3.0):
        counterparts = Z.counterparts + shift * np.eye(64, dtype=np.float32)[0]
        pipe = icm_pipeline(memory=str(tmp_path))
        fitted.append(pipe.fit(PairedEmbeddings(np.asarray(Z), counterparts), y)[0])
    again = icm_pipeline(memory=str(tmp_path)).fit(Z, y)[0]
    assert np.abs(fitted[1].eigenvalues_ - fitted[0].eigenvalues_).max() > 1
    assert_array_equal(again.eigenvalues_, fitted[0].eigenvalues_)


def test_pandas_frames_carry_pairs_through_row_selection(train):
    Z, y = train
    index = pd.Index([f"image {i}" for i in range(len(Z))])
    columns = [f"z{i}" for i in range(64)]
    frame = attach_to_frame(pd.DataFrame(np.asarray(Z), index, columns), Z)
    part = frame.iloc[[5, 3]]
    assert_array_equal(find_paired(part).counterparts, Z.counterparts[[5, 3]])
    search = GridSearchCV(
        icm_pipeline(), {"icmtransformer__lam": [10]}, error_score="raise"
    )
    assert search.fit(frame, y).best_score_ > 0.9
    assert find_paired(frame * 2) is None
    assert find_paired(frame[columns[:5]]) is None
    reloaded = pickle.loads(pickle.dumps(part))
    assert_array_equal(find_paired(reloaded).counterparts, Z.counterparts[[5, 3]])


def test_explicit_route_by_metadata(train):
    """`X_do` passes through the steps before the transformer, as `X` does."""
    Z, y = train
    plain, Z_do = np.asarray(Z), Z.counterparts[:, 0]
    with config_context(enable_metadata_routing=True):
        pipe = Pipeline(
            [
                ("double", FunctionTransformer(lambda Z: 2 * Z)),
                ("icm", ICMTransformer(pairs="interventional", lam=10)),
                ("clf", LogisticRegression()),
            ],
            transform_input=["X_do"],
        )
        pipe.fit(plain, y, X_do=Z_do)
        search = GridSearchCV(pipe, {"icm__lam": [10]}, error_score="raise")
        search.fit(plain, y, X_do=Z_do)
    by_hand = ICMTransformer(lam=10).fit(2 * plain, X_do=2 * Z_do)
    assert_array_equal(pipe["icm"].components_, by_hand.components_)
    assert search.best_score_ > 0.9


class Featurizer(FunctionTransformer):
    """Stands for anything that intervenes: embeddings in, paired embeddings out."""

    def fit_transform(self, X, y=None):
        return PairedEmbeddings(X, X + 1)

    def intervene(self, X, interventions=None):
        return self.fit_transform(X)


def pipeline_with(*between, **params):
    steps = [("clip", Featurizer()), *between, ("icm", ICMTransformer(**params))]
    return Pipeline(steps)


def test_lost_pairs_name_the_step(train):
    Z, y = np.asarray(train[0]), train[1]
    scaler = ("scale", StandardScaler())
    with pytest.raises(ValueError, match=r"step 'scale' \(StandardScaler\) rebuilt"):
        pipeline_with(scaler, pairs="interventional").fit(Z, y)
    with pytest.raises(ValueError, match=r"'scale' \(StandardScaler\), 'scale2'"):
        both = scaler, ("scale2", StandardScaler())
        pipeline_with(*both, pairs="interventional").fit(Z, y)
    with pytest.warns(UserWarning, match="'scale'.*falls back to class pairs"):
        pipeline_with(scaler, lam=0.1).fit(Z, y)
    nothing_between = pipeline_with(("no", "passthrough"), pairs="interventional")
    assert nothing_between.fit(Z, y)["icm"].pairs_ == "interventional"
