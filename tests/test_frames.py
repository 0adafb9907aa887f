"""Columns of images in pandas and polars frames, alone and beside numbers."""

import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from skclip_icm import (
    CLIPFeaturizer,
    ICMTransformer,
    PairedEmbeddings,
    interventional_scorer,
)
from skclip_icm.pairs import attach_to_frame, find_paired
from skclip_icm.plotting import InvarianceMapDisplay, SpectrumDisplay

LIBRARIES = {"pandas": pd, "polars": pl}
Y = [0, 1] * 3


@pytest.fixture(scope="module")
def table(photographs, tmp_path_factory):
    """Paths beside two columns of numbers."""
    folder = tmp_path_factory.mktemp("images")
    paths = [str(folder / f"{i}.png") for i in range(6)]
    for path, pixels in zip(paths, photographs, strict=True):
        Image.fromarray(pixels).save(path)
    numbers = np.random.default_rng(0).normal(size=(2, 6))
    return {"path": paths, "area": numbers[0], "age": numbers[1]}


@pytest.fixture(scope="module")
def polars_support(table):
    """Skip where scikit-learn cannot put polars columns through its transformers."""
    scaler = ("numbers", StandardScaler(), ["area", "age"])
    columns = ColumnTransformer([scaler]).set_output(transform="polars")
    try:
        columns.fit_transform(pl.DataFrame(table))
    except (AttributeError, ValueError):
        pytest.skip("this scikit-learn does not know this polars")


@pytest.fixture(params=LIBRARIES)
def library(request):
    return request.param


@pytest.fixture
def frame(library, table):
    return LIBRARIES[library].DataFrame(table)


def image_branch(**params):
    return Pipeline(
        [
            ("clip", CLIPFeaturizer("demo")),
            ("icm", ICMTransformer(2, **params)),
        ]
    )


def beside_numbers(branch, column=("path",)):
    return ColumnTransformer(
        [
            ("image", branch, column if isinstance(column, str) else list(column)),
            ("numbers", StandardScaler(), ["area", "age"]),
        ]
    )


def test_a_series_and_a_frame_of_one_column_are_the_same(frame, photographs):
    expected = CLIPFeaturizer("demo").transform(photographs)
    for X in (frame["path"], frame[["path"]]):
        assert_allclose(CLIPFeaturizer("demo").transform(X), expected, atol=1e-6)


def test_named_columns_come_out_and_counterparts_reach_icm(frame):
    pipe = image_branch().set_output(transform="pandas")
    for X in (frame["path"], frame[["path"]]):
        Z = pipe.fit_transform(X)
        assert isinstance(Z, pd.DataFrame)
        assert list(Z.columns) == ["icmtransformer0", "icmtransformer1"]
        assert list(pipe.transform(X).columns) == list(Z.columns)
        plain = image_branch().fit_transform(X)
        assert_allclose(Z.to_numpy(), plain, atol=1e-6)


def test_search_over_a_frame_with_named_columns(frame):
    pipe = make_pipeline(*image_branch().set_output(transform="pandas"))
    pipe.steps.append(("clf", LogisticRegression()))
    search = GridSearchCV(
        pipe,
        {"icmtransformer__lam": [0.1, 1]},
        cv=2,
        scoring=interventional_scorer("accuracy"),
        error_score="raise",
    )
    assert search.fit(frame["path"], Y).best_estimator_[1].pairs_ == "interventional"


@pytest.mark.parametrize("output", ["default", "pandas", "polars"])
@pytest.mark.parametrize("column", ["path", ("path",)])
@pytest.mark.usefixtures("polars_support")
def test_images_beside_numbers(frame, output, column):
    # polars frames carry no counterparts.
    params = {"pairs": "class", "lam": 0.1} if output == "polars" else {}
    branch = image_branch(**params)
    columns = beside_numbers(branch, column).set_output(transform=output)
    Z = np.asarray(columns.fit_transform(frame, Y))
    assert columns.get_feature_names_out().tolist() == [
        "image__icmtransformer0",
        "image__icmtransformer1",
        "numbers__area",
        "numbers__age",
    ]
    alone = image_branch(**params).fit_transform(frame["path"], Y)
    assert_allclose(Z[:, :2], alone, atol=1e-5)
    assert_allclose(columns.transform(frame), Z, atol=1e-5)


@pytest.mark.usefixtures("polars_support")
def test_classifier_on_images_and_numbers(frame):
    model = make_pipeline(beside_numbers(image_branch()), LogisticRegression())
    search = GridSearchCV(
        model, {"columntransformer__image__icm__lam": [0.1, 1]}, cv=2
    ).fit(frame, Y)
    assert set(search.predict(frame)) <= {0, 1}
    assert pickle.loads(pickle.dumps(search)).score(frame, Y) == search.score(frame, Y)


@pytest.mark.usefixtures("polars_support")
def test_displays_look_inside_a_column_transformer(frame):
    model = make_pipeline(beside_numbers(image_branch()), LogisticRegression())
    model.fit(frame, Y)
    assert SpectrumDisplay.from_estimator(model).n_components == 2
    display = InvarianceMapDisplay.from_estimator(model, frame, Y)
    assert display.before.shape == (6, 2)


@pytest.mark.usefixtures("polars_support")
def test_icm_after_a_column_transformer_says_that_counterparts_are_lost(frame):
    columns = beside_numbers(CLIPFeaturizer("demo"))
    with pytest.raises(ValueError, match="X carries no counterparts"):
        make_pipeline(columns, ICMTransformer()).fit(frame, Y)


def test_pandas_index_is_kept(table):
    frame = pd.DataFrame(table, index=list("uvwxyz"))
    featurizer = CLIPFeaturizer("demo").set_output(transform="pandas")
    Z = featurizer.fit_transform(frame[["path"]])
    assert Z.index.tolist() == list("uvwxyz")
    part = Z.loc[["x", "u"]]
    expected = find_paired(Z).counterparts[[3, 0]]
    assert_array_equal(find_paired(part).counterparts, expected)


@pytest.mark.usefixtures("polars_support")
def test_polars_output_carries_no_counterparts_and_says_so(table):
    frame = pl.DataFrame(table)[["path"]]
    Z = CLIPFeaturizer("demo").set_output(transform="polars").fit_transform(frame)
    assert find_paired(Z) is None
    message = r"polars frame cannot carry counterparts: use set_output\(transform=\"pan"
    with pytest.raises(ValueError, match=message):
        ICMTransformer(2).fit(Z)
    with pytest.raises(ValueError, match=message):
        image_branch().set_output(transform="polars").fit(frame["path"])
    pipe = image_branch().set_params(icm__pairs="class", icm__lam=0.1)
    named = pipe.set_output(transform="polars").fit_transform(frame["path"], Y)
    assert named.columns == ["icmtransformer0", "icmtransformer1"]


def test_scorer_on_polars_output(table):
    """A probe needs no counterparts to fit; its score under intervention makes them."""
    pipe = make_pipeline(CLIPFeaturizer("demo"), LogisticRegression())
    score = interventional_scorer("accuracy")
    paths = pl.DataFrame(table)["path"]
    expected = score(pipe.fit(paths, Y), paths, Y)
    named = pipe.set_output(transform="polars").fit(paths, Y)
    assert score(named, paths, Y) == expected


def test_scorer_on_frames_of_embeddings():
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(40, 3)).astype(np.float32)
    y = (Z[:, 0] > 0).astype(int)
    frame = pd.DataFrame(Z, columns=["a", "b", "c"])
    attach_to_frame(frame, PairedEmbeddings(Z, -Z))
    model = LogisticRegression().fit(frame, y)
    assert interventional_scorer("accuracy")(model, frame, y) < 0.2


def test_frames_of_the_featurizer_that_lost_counterparts_are_noticed(table):
    featurizer = CLIPFeaturizer("demo").set_output(transform="pandas")
    Z = featurizer.fit_transform(pd.DataFrame(table)["path"])
    with pytest.raises(ValueError, match="no longer those that CLIPFeaturizer gave"):
        ICMTransformer(2).fit(Z * 2, Y)
