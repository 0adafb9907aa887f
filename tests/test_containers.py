"""What holds images, texts, labels and embeddings: by position, or refused."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression

from skclip_icm import (
    CLIPFeaturizer,
    ICMTransformer,
    PairedEmbeddings,
    ZeroShotClassifier,
    adapt,
    drop_unreadable,
    fit_files,
    interventional_scorer,
    report,
)
from skclip_icm.datasets import load_domain_folder
from skclip_icm.interventions import captions
from skclip_icm.plotting import InterventionDisplay, InvarianceMapDisplay

matplotlib.use("Agg")


def permuted(values):
    return pd.Series(values, index=range(len(values))[::-1])


CONTAINERS = {
    "list": list,
    "tuple": tuple,
    "array of str": np.array,
    "array of objects": lambda values: np.array(values, dtype=object),
    "Series": pd.Series,
    "Series of strings": lambda values: pd.Series(values, dtype="string"),
    "Series of categories": lambda values: pd.Series(values, dtype="category"),
    "permuted index": permuted,
    "index of duplicates": lambda values: pd.Series(values, index=[7] * len(values)),
    "Index": pd.Index,
    "polars": pl.Series,
    "Arrow": pa.array,
    "scalars of Arrow": lambda values: list(pa.array(values)),
    "arrays without dimensions": lambda values: list(map(np.array, values)),
    "Arrow in chunks": lambda values: pa.chunked_array([values[:1], values[1:]]),
}
COLUMNS = {
    "array of one column": lambda values: np.array(values)[:, None],
    "frame": lambda values: permuted(values).to_frame("name"),
    "polars frame": lambda values: pl.DataFrame({"name": values}),
}
EVERY = {**CONTAINERS, **COLUMNS}
NAMES = ["dog", "cat", "red car", "rose"]
TEMPLATES = ["a photo of a {}.", "a sketch of a {}."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photographs):
    """Photographs as files, two domains of two classes."""
    folder = tmp_path_factory.mktemp("images")
    for i, pixels in enumerate(photographs[:4]):
        path = folder / f"domain {i // 2}" / f"class {i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(params=EVERY)
def put(request):
    return EVERY[request.param]


def test_texts_and_images_are_taken_by_position(put, folder):
    featurizer = CLIPFeaturizer("demo")
    assert_array_equal(
        featurizer.encode_text(put(NAMES)), featurizer.encode_text(NAMES)
    )
    assert captions(put(NAMES)) == captions(NAMES)
    assert captions(NAMES, put(TEMPLATES)) == captions(NAMES, TEMPLATES)
    groups = {"animal": ["dog", "cat"], "colour": ["red", "blue"]}
    swapped = {key: put(values) for key, values in groups.items()}
    assert captions(NAMES[:3], swapped) == captions(NAMES[:3], groups)
    paths = sorted(map(str, folder.rglob("*.png")))
    assert_array_equal(featurizer.transform(put(paths)), featurizer.transform(paths))


def test_names_and_prompts_of_classes_are_taken_by_position(put, photographs):
    def fitted(**params):
        return ZeroShotClassifier(CLIPFeaturizer("demo"), **params).fit(photographs)

    expected = fitted(class_names=NAMES, templates=TEMPLATES)
    found = fitted(class_names=put(NAMES), templates=put(TEMPLATES))
    assert found.classes_.tolist() == NAMES
    assert_array_equal(found.text_embeddings_, expected.text_embeddings_)
    by_class = {"a": put(["dog", "puppy"]), "b": "cat"}
    prompts = {"a": put(TEMPLATES), "b": "a {}."}
    plain = {"a": ["dog", "puppy"], "b": "cat"}
    expected = fitted(class_names=plain, templates={**prompts, "a": TEMPLATES})
    found = fitted(class_names=by_class, templates=prompts)
    assert_array_equal(found.text_embeddings_, expected.text_embeddings_)


@pytest.mark.filterwarnings("ignore:A column-vector")
def test_labels_are_taken_by_position(put):
    rows = np.random.default_rng(0).normal(size=(8, 3))
    y, domains = ["u", "v", "v", "u", "u", "v", "u", "v"], list("abababba")
    icm = ICMTransformer(pairs="domain", center="domain", lam=0.1)
    expected = icm.fit_transform(rows, y, domains=domains)
    found = icm.fit_transform(rows, put(y), domains=put(domains))
    assert_allclose(found, expected)
    in_files = fit_files(rows, icm, y=put(y), domains=put(domains))
    assert_allclose(in_files.eigenvalues_, icm.eigenvalues_)
    in_parts = clone(icm).partial_fit(rows, put(y), domains=put(domains))
    assert_allclose(in_parts.eigenvalues_, in_files.eigenvalues_)
    model = LogisticRegression().fit(rows, y)
    scores = report(model, rows, y, domains).scores
    assert report(model, rows, put(y), put(domains)).scores == scores


def test_names_of_what_is_shown_are_taken_by_position(put, folder, photographs):
    names = [f"class {i}" for i in range(2)]
    data = load_domain_folder(folder, class_names=put(names[::-1]))
    assert data.target_names == names[::-1]
    rows = np.random.default_rng(0).normal(size=(4, 3))
    icm = ICMTransformer().fit(rows, X_do=rows + 0.1)
    display = InvarianceMapDisplay.from_estimator(
        icm, rows, [1, 0, 0, 1], target_names=put(names)
    )
    assert display.y.tolist() == [names[i] for i in (1, 0, 0, 1)]
    display = InterventionDisplay.from_estimator(
        CLIPFeaturizer("demo"), photographs[:2], image_names=put(names)
    )
    assert display.image_names == names
    plt.close("all")


# What is refused, and what is said then

ROWS = np.random.default_rng(0).normal(size=(4, 3))
TABLE = {"a": [0, 1, 0, 1], "b": [0, 1, 2, 3]}
REFUSED = {
    "table": (pa.table(TABLE), r"a table of the columns \['a', 'b'\].*to_pandas\(\)"),
    "lazy frame": (pl.LazyFrame(TABLE), r"a LazyFrame.*collect\(\)"),
    "dict": (TABLE, r"a dict of the keys \['a', 'b'\].*one of its values"),
    "generator": ((row for row in ROWS), "of type generator.*Turn an iterator into a"),
    "set": ({1, 2}, "of type set.* has no order"),
}
TAKES = {
    "images": lambda v: CLIPFeaturizer("demo").transform(v),
    "drop_unreadable": drop_unreadable,
    "texts": lambda v: CLIPFeaturizer("demo").encode_text(v),
    "captions": captions,
    "y": lambda v: ICMTransformer(pairs="class").fit(ROWS, v),
    "domains": lambda v: ICMTransformer(center="domain").fit(
        ROWS, X_do=ROWS, domains=v
    ),
    "domains of files": lambda v: fit_files(
        ROWS, ICMTransformer(center="domain"), X_do=ROWS, domains=v
    ),
    "y of zero-shot": lambda v: ZeroShotClassifier(
        CLIPFeaturizer("demo"), class_names=["cat", "dog"]
    ).fit([np.zeros((8, 8, 3), np.uint8)] * 4, v),
    "y of a scorer": lambda v: interventional_scorer()(
        FITTED, PairedEmbeddings(ROWS, ROWS), v
    ),
    "embeddings": lambda v: ICMTransformer().fit(v),
    "transform": lambda v: ICMTransformer().fit(ROWS, X_do=ROWS + 1).transform(v),
    "X_do": lambda v: ICMTransformer().fit(ROWS, X_do=v),
    "U": lambda v: ICMTransformer(pairs=(v, ROWS)).fit(ROWS),
    "V": lambda v: ICMTransformer(pairs=(ROWS, v, 0.5)).fit(ROWS, X_do=ROWS),
    "counterparts": lambda v: PairedEmbeddings(ROWS, v),
    "paired": lambda v: PairedEmbeddings(v, ROWS),
    "adapt": lambda v: adapt(FITTED, v, X_train=ROWS),
    "X_train": lambda v: adapt(FITTED, ROWS, X_train=v),
    "ICMTransformer.adapt": lambda v: (
        ICMTransformer().fit(ROWS, X_do=ROWS + 1).adapt(v)
    ),
    "inverse_transform": lambda v: (
        ICMTransformer().fit(ROWS, X_do=ROWS + 1).inverse_transform(v)
    ),
    "files": lambda v: fit_files(v, ICMTransformer(), X_do=ROWS + 1),
    "X_do of files": lambda v: fit_files(ROWS, ICMTransformer(), X_do=v),
    "zero-shot": lambda v: ZeroShotClassifier(
        CLIPFeaturizer("demo"), class_names=["cat", "dog"]
    ).fit(v),
}
EMBEDDINGS = [*TAKES][[*TAKES].index("embeddings") : [*TAKES].index("zero-shot")]


# Here a dict has a meaning.
NAMES_OF = {
    "class_names": lambda v: ZeroShotClassifier(
        CLIPFeaturizer("demo"), class_names=v
    ).fit([np.zeros((8, 8, 3), np.uint8)]),
    "templates": lambda v: ZeroShotClassifier(
        CLIPFeaturizer("demo"), class_names=["cat", "dog"], templates=v
    ).fit([np.zeros((8, 8, 3), np.uint8)]),
    "target_names": lambda v: report(FITTED, ROWS, *TABLE.values(), target_names=v),
    "domain_names": lambda v: report(FITTED, ROWS, *TABLE.values(), domain_names=v),
}
FITTED = LogisticRegression().fit(ROWS, TABLE["a"])


LISTS = ROWS.tolist()
MASKED = np.ma.array(ROWS, mask=np.arange(12).reshape(4, 3) == 7)
NO_EMBEDDINGS = {
    "Series of arrays": (pd.Series(list(ROWS)), r"stack\(list\(column\)\)"),
    "frame of arrays": (pd.DataFrame({"e": list(ROWS)}), "an array in each row"),
    "polars' lists": (pl.Series(LISTS), r"stack\(list\(column\)\)"),
    "Arrow's lists": (pa.chunked_array([LISTS]), r"array\(column.to_pylist\(\)\)"),
    "objects": (np.array([*ROWS, None], dtype=object)[:4], "an array in each row"),
    "masked": (MASKED, "masked values, the first in row 2"),
    "sparse": (csr_array(ROWS), r"dense data is required.*toarray\(\)"),
    "complex": (ROWS + 1j, "Complex data not supported"),
    "bfloat16": (torch.tensor(ROWS).bfloat16(), r"bfloat16.*\.float\(\)"),
}


@pytest.mark.parametrize("what", EMBEDDINGS)
@pytest.mark.parametrize("kind", NO_EMBEDDINGS)
def test_what_holds_embeddings_otherwise_is_refused_everywhere(what, kind):
    values, message = NO_EMBEDDINGS[kind]
    with pytest.raises((TypeError, ValueError), match=message):
        TAKES[what](values)


def test_what_is_said_of_columns_of_arrays_helps():
    for column in (NO_EMBEDDINGS[kind][0] for kind in ("Series of arrays", "objects")):
        assert_array_equal(np.stack(list(column)), ROWS)
    assert_array_equal(np.stack(list(NO_EMBEDDINGS["polars' lists"][0])), ROWS)
    assert_array_equal(np.array(NO_EMBEDDINGS["Arrow's lists"][0].to_pylist()), ROWS)


def test_missing_values_of_pandas_are_told_by_their_rows_everywhere():
    frame = pd.DataFrame(ROWS).astype("Float64")
    frame.iloc[2, 1] = pd.NA
    takes = "transform X_do U V adapt X_train ICMTransformer.adapt files".split()
    for what in [*takes, "X_do of files"]:
        with pytest.raises(ValueError, match="NaN or infinity in row 2|row 2: NaN"):
            TAKES[what](frame)


@pytest.mark.parametrize("what", NAMES_OF)
def test_names_are_refused_in_what_is_no_list(what):
    for values, message in (
        REFUSED["table"],
        REFUSED["lazy frame"],
        (iter("ab"), "of type str_.*iterator.*Turn an iterator into a list"),
        (7, "of type int.*Pass a list"),
    ):
        with pytest.raises(TypeError, match=f"{what} is {message}"):
            NAMES_OF[what](values)


@pytest.mark.parametrize("what", TAKES)
@pytest.mark.parametrize("kind", REFUSED)
def test_tables_are_refused_and_it_is_said_what_to_pass(what, kind):
    values, message = REFUSED[kind]
    with pytest.raises(TypeError, match=message):
        TAKES[what](values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((name for name in NAMES), "of type generator.*Turn an iterator into a list"),
        (set(NAMES), "of type set.*has no order"),
        (csr_array(np.eye(2)), "Sparse data was passed"),
        ("dog", "is the string 'dog'.*Wrap it in a list"),
        (pd.DataFrame({"a": NAMES, "b": NAMES}), "a frame of 2 columns"),
        (np.array([NAMES, NAMES]).T, r"has shape \(4, 2\)"),
    ],
)
def test_what_has_no_entries_in_an_order_is_refused(values, message):
    for take in (captions, CLIPFeaturizer("demo").encode_text):
        with pytest.raises((TypeError, ValueError), match=message):
            take(values)


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_blank_texts_are_refused_everywhere(text):
    for take in (captions, CLIPFeaturizer("demo").encode_text):
        with pytest.raises(ValueError, match=r"\[1\] is blank, expected words"):
            take(["dog", text])


# Second inputs whose columns have names

X = pd.DataFrame(ROWS, columns=["a", "b", "c"])
OTHER = X + np.random.default_rng(1).normal(size=X.shape)
SECOND = {
    "X_do": lambda X, second: ICMTransformer().fit(X, X_do=second),
    "partial_fit": lambda X, second: ICMTransformer().partial_fit(X, X_do=second),
    "U": lambda X, second: ICMTransformer(pairs=(second, OTHER * 2)).fit(X),
    "V": lambda X, second: ICMTransformer(pairs=(ROWS, second, 0.5)).fit(
        X, X_do=ROWS + 1
    ),
    "U and V": lambda X, second: ICMTransformer(pairs=(X, second)).fit(ROWS),
    "X_do of files": lambda X, second: fit_files(
        X, ICMTransformer(), X_do=[ROWS + 1, second]
    ),
    "counterparts": lambda X, second: ICMTransformer().fit(PairedEmbeddings(X, second)),
    "adapt": lambda X, second: adapt(
        LogisticRegression().fit(X, [0, 1, 0, 1]), second, X_train=X
    ),
}


@pytest.mark.parametrize("what", SECOND)
@pytest.mark.parametrize("library", [pd.DataFrame, pl.DataFrame])
def test_columns_of_second_inputs_are_those_of_the_first(what, library):
    def frame(values):
        return library({name: values[name] for name in values})

    fit = SECOND[what]
    fit(frame(X), frame(OTHER))
    for names in (["c", "b", "a"], ["a", "b", "z"]):
        wrong = OTHER.set_axis(names, axis=1)
        with pytest.raises(ValueError, match=r"has the columns .*in the same order"):
            fit(frame(X), frame(wrong))


@pytest.mark.parametrize("what", SECOND)
def test_columns_of_second_inputs_are_named_by_strings_alone(what):
    """As scikit-learn wants it of X."""
    with pytest.raises(TypeError, match="columns named by int and str, expected"):
        SECOND[what](X, OTHER.set_axis(["a", 1, "c"], axis=1))


@pytest.mark.parametrize("Z", [ROWS[:, 0], ROWS[:0], ROWS[:, :2], ROWS[:, None]])
def test_adapt_refuses_embeddings_of_another_shape_than_in_training(Z):
    fitted = LogisticRegression().fit(ROWS, [0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"X has shape .*expected \(n, 3\)"):
        adapt(fitted, Z, X_train=ROWS)


def test_the_index_of_second_inputs_plays_no_part():
    expected = ICMTransformer().fit(ROWS, X_do=OTHER.to_numpy())
    shuffled = OTHER.set_axis([3, 1, 0, 0], axis=0)
    assert_allclose(
        ICMTransformer().fit(X, X_do=shuffled).eigenvalues_, expected.eigenvalues_
    )
    unnamed = pd.DataFrame(OTHER.to_numpy())  # whose names are numbers
    assert_allclose(
        ICMTransformer().fit(X, X_do=unnamed).eigenvalues_, expected.eigenvalues_
    )


def test_zero_shot_on_a_frame_of_embeddings_keeps_to_its_columns(photographs):
    featurizer = CLIPFeaturizer("demo").set_output(transform="pandas")
    Z = featurizer.transform(photographs)
    model = ZeroShotClassifier(CLIPFeaturizer("demo"), class_names=["cat", "dog"])
    model.fit(Z)
    assert_array_equal(model.predict(Z), model.predict(Z.to_numpy()))
    with pytest.raises(ValueError, match="X has the columns .*the X that was fitted"):
        model.predict(Z[Z.columns[::-1]])
