"""Counterparts stay with their embeddings through everything scikit-learn does."""

import copy
import errno
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

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

from skclip_icm import CLIPFeaturizer, ICMTransformer, PairedEmbeddings
from skclip_icm._replacing import replacing
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
        pd.Series([2, 0]),
        ...,
        ([1, 2], ...),
    ],
)
def test_row_selection_keeps_pairs(paired, key):
    selected = paired[key]
    assert_array_equal(selected.counterparts[:, 0], np.asarray(selected) + 1)
    assert_array_equal(np.asarray(selected), np.asarray(paired)[key])


def test_selections_of_selections(paired):
    twice = paired[[5, 2, 7]][1:][[1, 0]]
    assert_array_equal(np.asarray(twice), np.asarray(paired)[[7, 2]])
    assert_array_equal(twice.counterparts, paired.counterparts[[7, 2]])
    assert len(paired[[]]) == len(paired[np.zeros(10, bool)]) == 0


def test_it_is_an_array_to_who_asks_for_one(paired):
    values = np.asarray(paired)
    assert paired.shape == values.shape == (10, 3)
    assert paired.dtype == values.dtype == np.float32
    assert paired.ndim == 2
    assert len(paired) == 10
    assert_array_equal(np.asarray(paired, np.float64), values)
    assert_array_equal(paired[4], values[4])
    assert_array_equal(list(paired), values)
    assert_array_equal(pd.DataFrame(paired), values)
    assert_array_equal(StandardScaler().fit_transform(paired).mean(0).round(5), 0)
    changed = np.array(paired)
    changed *= 2


@pytest.mark.parametrize(
    "operation",
    [
        lambda Z: Z * 2,
        lambda Z: 1 - Z,
        lambda Z: Z + Z,
        lambda Z: Z @ np.eye(3),
        lambda Z: np.eye(10) @ Z,
        lambda Z: Z == Z,
        lambda Z: -Z,
        lambda Z: np.sqrt(Z),
        lambda Z: np.add(Z, 1),
        lambda Z: Z[:, :2],
        lambda Z: Z[:, [0, 1, 2]],
        lambda Z: Z[0, 0],
        lambda Z: Z[None],
        lambda Z: Z[True],
        lambda Z: Z[np.array([[0, 1], [2, 3]])],
    ],
)
def test_whatever_changes_values_is_an_error_that_names_asarray(paired, operation):
    with pytest.raises(TypeError, match="numpy.asarray"):
        operation(paired)


@pytest.mark.parametrize(
    "operation",
    [
        lambda Z: np.asarray(Z),
        lambda Z: np.concatenate([Z, Z]),
        lambda Z: np.sort(Z, axis=0),
        lambda Z: StandardScaler().fit_transform(Z),
    ],
)
def test_what_rebuilds_the_array_cannot_be_fitted_on(paired, operation):
    with pytest.raises(ValueError, match="carries no counterparts: it is a plain"):
        ICMTransformer(1).fit(operation(paired))


def test_what_an_array_can_do_is_an_error_that_names_asarray(paired):
    with pytest.raises(AttributeError, match=r"no attribute 'mean'.*numpy.asarray"):
        paired.mean(axis=0)
    with pytest.raises(AttributeError, match="no attribute 'columns'$"):
        paired.columns  # noqa: B018


@pytest.mark.parametrize("rows", [np.ix_([0, 1], [0]), (0, 1), (slice(2), None)])
def test_columns_cannot_be_selected(paired, rows):
    with pytest.raises(TypeError, match="Only rows can be selected.*numpy.asarray"):
        paired[rows]


def test_values_cannot_be_changed_in_place(paired):
    for values in (np.asarray(paired), paired.counterparts, paired[0]):
        with pytest.raises(ValueError, match="read-only"):
            values[:] = 0
    with pytest.raises(TypeError, match="numpy.asarray"):
        paired *= 2
    with pytest.raises(TypeError, match="item assignment"):
        paired[0] = 1


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


def test_joblib_hashes_by_content(paired):
    flipped = np.asfortranarray(np.asarray(paired))
    same = PairedEmbeddings(flipped, np.asfortranarray(paired.counterparts))
    other = PairedEmbeddings(flipped, paired.counterparts + 1)
    single = PairedEmbeddings(flipped, flipped)[2:]
    assert joblib.hash(pickle.loads(pickle.dumps(single))) == joblib.hash(single)
    expected = joblib.hash(paired[2:])
    assert joblib.hash(same[2:]) == expected
    assert joblib.hash(pickle.loads(pickle.dumps(same[2:]))) == expected
    assert joblib.hash(other[2:]) != expected


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
    lazy = PairedEmbeddings(Z, LazyCounterparts(compute, (6, 1, 2)))
    part = lazy[[4, 1]]
    assert asked == []
    assert_array_equal(part.counterparts[:, 0], Z[[4, 1]] + 1)
    assert_array_equal(lazy.counterparts[:, 0], Z + 1)
    pickle.loads(pickle.dumps(lazy))
    assert asked == [[1, 4], [0, 2, 3, 5]]


def test_concatenate(paired):
    whole = PairedEmbeddings.concatenate([paired[5:], paired[:5]])
    assert_array_equal(whole.counterparts[5:], paired.counterparts[:5])
    assert_array_equal(np.asarray(whole)[:5], np.asarray(paired)[5:])
    with pytest.raises(TypeError, match=r"parts\[1\] is of type ndarray"):
        PairedEmbeddings.concatenate([paired, np.asarray(paired)])
    with pytest.raises(ValueError, match="no part at all"):
        PairedEmbeddings.concatenate([])
    one = PairedEmbeddings(np.asarray(paired), paired.counterparts[:, :1])
    with pytest.raises(ValueError, match=r"one number of counterparts.*\(3, 1\)"):
        PairedEmbeddings.concatenate([paired, one])


def test_save_and_load(paired, tmp_path):
    path = tmp_path / "Z.npz"
    paired[2:].save(path)
    loaded = PairedEmbeddings.load(path)
    assert_array_equal(np.asarray(loaded), np.asarray(paired)[2:])
    assert_array_equal(loaded.counterparts, paired.counterparts[2:])
    np.savez(path, embeddings=np.array([object()], dtype=object))
    with pytest.raises(ValueError, match=r"save has written \(Object arrays[^.]*\)\.$"):
        PairedEmbeddings.load(path)
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"Z.npz: not a file that"):
        PairedEmbeddings.load(path)
    with pytest.raises(FileNotFoundError):
        PairedEmbeddings.load(tmp_path / "nowhere.npz")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        paired.save(tmp_path / "nowhere" / "Z.npz")


def test_saving_to_links_and_to_names_that_are_long_or_taken(paired, tmp_path):
    real, link = tmp_path / ("Z" * 250), tmp_path / "link.npz"
    link.symlink_to(real)
    paired.save(real)
    real.chmod(0o600)
    paired[:3].save(link)
    assert link.is_symlink()
    assert len(PairedEmbeddings.load(real)) == 3
    assert real.stat().st_mode & 0o777 == 0o600
    os.mkfifo(tmp_path / "pipe")
    for path, what in (tmp_path, "folder"), (tmp_path / "pipe", "device or pipe"):
        with pytest.raises(FileExistsError, match=f"is a {what}, expected the path"):
            paired.save(path)
    with pytest.raises(IsADirectoryError):
        PairedEmbeddings.load(tmp_path)
    for use in paired.save, PairedEmbeddings.load:
        with pytest.raises(TypeError, match="path is of type int, expected a path"):
            use(3)
    assert len(list(tmp_path.iterdir())) == 3


def test_saving_to_one_file_at_the_same_time(tmp_path):
    def save(number):
        Z = np.full((100, 100), float(number))
        for _ in range(10):
            PairedEmbeddings(Z, Z).save(tmp_path / "Z.npz")
            found = PairedEmbeddings.load(tmp_path / "Z.npz")
            assert len({*np.unique(found), *np.unique(found.counterparts)}) == 1

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(save, range(4)))
    assert [path.name for path in tmp_path.iterdir()] == ["Z.npz"]


def test_a_disk_that_is_full_is_told_with_the_file(paired, tmp_path):
    path = tmp_path / "Z.npz"
    with pytest.raises(OSError, match="No space") as raised, replacing(path) as to:
        to.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert raised.value.__notes__ == [f"While {path} was written."]
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_removed_does_not_hide_the_cause(tmp_path):
    """As where the disk becomes read-only, or a file takes the place of the folder."""
    folder = tmp_path / "folder"
    with pytest.raises(NotADirectoryError) as raised, replacing(folder / "Z") as to:
        folder.rmdir()
        folder.write_text("")
        to.write_text("half")
    assert raised.value.__notes__ == [f"While {folder / 'Z'} was written."]


def test_a_saved_file_stays_where_counterparts_cannot_be_computed(
    paired, photographs, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    paired.save("~/Z.npz")

    def fail(image):
        raise RuntimeError("not today")

    later = CLIPFeaturizer("demo", interventions=fail).intervene(photographs)
    with pytest.raises(RuntimeError, match="not today"):
        later.save(tmp_path / "Z.npz")
    assert len(PairedEmbeddings.load("~/Z.npz")) == len(paired)


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


def test_frames_with_counterparts_can_be_written_copied_and_pickled(train, tmp_path):
    Z, _ = train
    frame = pd.DataFrame(np.asarray(Z)).rename(columns=str)
    attach_to_frame(frame, Z)
    for other in (
        frame.copy(),
        copy.deepcopy(frame),
        pickle.loads(pickle.dumps(frame)),
    ):
        assert_array_equal(find_paired(other).counterparts, Z.counterparts)
    frame.to_parquet(tmp_path / "Z.parquet")
    read = pd.read_parquet(tmp_path / "Z.parquet")
    assert_array_equal(read, frame)
    with pytest.raises(ValueError, match="carries no counterparts"):
        ICMTransformer().fit(read)
    changed = frame.copy()
    changed.iloc[3, 2] += 1
    with pytest.raises(ValueError, match="values of this pandas frame are no longer"):
        ICMTransformer().fit(changed)
    joined = pd.concat([frame, frame * 2])
    assert find_paired(joined) is None


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
