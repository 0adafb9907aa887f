"""Rows that cannot be read are dropped before a fit, and told."""

import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from skclip_icm import (
    CLIPFeaturizer,
    ICMTransformer,
    ZeroShotClassifier,
    adapt,
    drop_unreadable,
)


@pytest.fixture
def paths(photographs, tmp_path):
    """Six files, of which the fourth is cut short and the last is not there."""
    paths = [str(tmp_path / f"{i}.png") for i in range(6)]
    for path, pixels in zip(paths, photographs, strict=True):
        Image.fromarray(pixels).save(path)
    with open(paths[3], "r+b") as file:
        file.truncate(200)
    paths[5] = str(tmp_path / "nowhere.png")
    return paths


KEPT = [0, 1, 2, 4]


@pytest.mark.parametrize("wrap", [list, np.array, pd.Series])
def test_failed_rows_go_from_all_arrays_and_are_named(paths, wrap):
    y, groups = np.arange(6), list("abcdef")
    with pytest.warns(UserWarning, match="2 of 6 images cannot be read") as told:
        X, y, groups, none, errors = drop_unreadable(wrap(paths), y, groups, None)
    assert "row 3: " in str(told[0].message) and "row 5: " in str(told[0].message)
    assert type(X) is type(wrap(paths))
    assert list(X) == [paths[row] for row in KEPT]
    assert y.tolist() == KEPT and groups == list("abce") and none is None
    assert [error.row for error in errors] == [3, 5]
    assert "no such file" in str(errors[1])


def test_frames_keep_their_index(paths):
    frame = pd.DataFrame({"path": paths}, index=range(10, 16))
    with pytest.warns(UserWarning, match="2 of 6"):
        kept, _ = drop_unreadable(frame)
    assert kept.index.tolist() == [10, 11, 12, 14]


def test_columns_of_a_dataset_stay_columns(paths):
    class Rows:
        def __init__(self, rows):
            self.rows = rows

        def __getitem__(self, name):
            return Column(self, name)

        def select(self, rows):
            return Rows([self.rows[row] for row in rows])

    class Column:
        def __init__(self, source, name):
            self.source, self.column_name = source, name

        def __len__(self):
            return len(self.source.rows)

        def __getitem__(self, row):
            return self.source.rows[row]

    with pytest.warns(UserWarning, match="2 of 6"):
        kept, y, _ = drop_unreadable(Rows(paths)["image"], Rows(range(6))["y"])
    assert isinstance(kept, Column) and kept.source.rows == [paths[i] for i in KEPT]
    assert y.source.rows == KEPT


def test_nothing_is_said_or_copied_where_all_can_be_read(photographs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        X, y, errors = drop_unreadable(photographs, [0] * 6, n_jobs=2)
    assert X is photographs and errors == []


def test_what_cannot_be_dropped(paths):
    with pytest.raises(ValueError, match=r"arrays\[0\] has 2 rows, expected 6"):
        drop_unreadable(paths, [0, 1])
    with pytest.raises(ValueError, match="None of the 1 images"):
        drop_unreadable(paths[3:4])


def test_a_pipeline_says_what_to_do_and_fits_on_what_is_left(paths):
    pipe = make_pipeline(
        CLIPFeaturizer("demo", on_error="nan"), ICMTransformer(2), LogisticRegression()
    )
    y = np.array([0, 1] * 3)
    with pytest.raises(ValueError, match="in rows 3, 5, .*drop_unreadable"):
        pipe.fit(paths, y)
    with pytest.warns(UserWarning, match="2 of 6"):
        X, y, _ = drop_unreadable(paths, y)
    pipe.fit(X, y)
    with pytest.raises(ValueError, match="X: NaN or infinity in rows 3, 5"):
        pipe.predict(paths)


def test_every_estimator_names_the_rows_of_nan(paths):
    featurizer = CLIPFeaturizer("demo", on_error="nan")
    good = [paths[row] for row in KEPT]
    zero_shot = ZeroShotClassifier(featurizer, class_names=["cat", "dog"]).fit(good)
    Z, bad = featurizer.fit_transform(good), featurizer.transform(paths)
    probe = LogisticRegression().fit(Z, [0, 1, 0, 1])
    for call in (
        lambda: zero_shot.predict(paths),
        lambda: ICMTransformer(2).fit(Z).adapt(bad),
        lambda: adapt(probe, bad, X_train=Z),
    ):
        with pytest.raises(ValueError, match="in rows 3, 5, .*drop_unreadable"):
            call()
    with pytest.raises(ValueError, match="X_train: NaN or infinity in rows 3, 5"):
        adapt(probe, Z, X_train=bad)


def test_many_rows_are_counted():
    Z = np.ones((40, 3))
    Z[5:] = np.nan
    with pytest.raises(ValueError, match="rows 5, 6, .* 14 and 25 more"):
        ICMTransformer().fit(Z, X_do=Z)
