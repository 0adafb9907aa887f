"""Labels of classes and of domains, over every path that takes them.

None is turned into another one, and none that is missing is taken for one of its own.
"""

import datetime
from decimal import Decimal
from enum import Enum

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import DataConversionWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline

from skclip_icm import (
    CLIPFeaturizer,
    ICMTransformer,
    ZeroShotClassifier,
    fit_files,
    interventional_scorer,
    invariant_search,
    report,
)
from skclip_icm.datasets import make_causal_embeddings
from skclip_icm.plotting import DomainAccuracyDisplay, InvarianceMapDisplay

matplotlib.use("Agg")

DATA = make_causal_embeddings(n_samples=6, random_state=0)
Z, Y, DOMAINS = DATA.embeddings, DATA.target, DATA.domains
Z_DO, N, ROW = Z.counterparts, len(Y), 5
ICM = ICMTransformer(lam=10).fit(Z)
PIPE = make_pipeline(ICMTransformer(lam=10), LogisticRegression())
FITTED = PIPE.fit(Z, Y)


class Unordered(Enum):
    A, B = 1, 2


def zero_shot(y):
    """The classes of a classifier without an image; y names them."""
    images = [np.zeros((8, 8, 3), np.uint8)] * len(DATA.target)
    return ZeroShotClassifier(CLIPFeaturizer("demo")).fit(images, y)


def drawn_map(**labels):
    points = np.zeros((N, 2))
    return InvarianceMapDisplay(before=points, after=points, **labels).plot()


# What takes labels: the name of the argument, and the call.
PATHS = {
    "fit, y": ("y", lambda v: ICMTransformer(pairs="class", lam=0.1).fit(Z, v)),
    "fit, domains": (
        "domains",
        lambda v: ICMTransformer(pairs="domain", lam=0.1).fit(Z, Y, domains=v),
    ),
    "fit_transform": (
        "domains",
        lambda v: ICMTransformer(center="domain", lam=0.1).fit_transform(Z, domains=v),
    ),
    "partial_fit, y": (
        "y",
        lambda v: ICMTransformer(pairs="class", lam=0.1).partial_fit(Z, v),
    ),
    "partial_fit, domains": (
        "domains",
        lambda v: ICMTransformer(center="domain", lam=0.1).partial_fit(Z, domains=v),
    ),
    "fit_files, y": (
        "y",
        lambda v: fit_files(np.asarray(Z), ICMTransformer(pairs="class", lam=0.1), y=v),
    ),
    "fit_files, domains": (
        "domains",
        lambda v: fit_files(
            np.asarray(Z),
            ICMTransformer(center="domain", lam=0.1),
            X_do=Z_DO,
            domains=v,
        ),
    ),
    "zero-shot": ("y", zero_shot),
    "invariant_search": (
        "y",
        lambda v: invariant_search(PIPE, {"icmtransformer__lam": [1]}, cv=2).fit(Z, v),
    ),
    "invariant_search, groups": (
        "groups",
        lambda v: invariant_search(
            PIPE, {"icmtransformer__lam": [1]}, cv=GroupKFold(2)
        ).fit(Z, Y, groups=v),
    ),
    "interventional_scorer": ("y", lambda v: interventional_scorer()(FITTED, Z, v)),
    "report, y": ("y", lambda v: report(FITTED, Z, v, DOMAINS)),
    "report, domains": ("domains", lambda v: report(FITTED, Z, Y, v)),
    "accuracies, y": (
        "y",
        lambda v: DomainAccuracyDisplay.from_estimator(FITTED, Z, v, DOMAINS),
    ),
    "accuracies, domains": (
        "domains",
        lambda v: DomainAccuracyDisplay.from_estimator(FITTED, Z, Y, v),
    ),
    "map, y": ("y", lambda v: InvarianceMapDisplay.from_estimator(ICM, Z, v)),
    "map, domains": (
        "domains",
        lambda v: InvarianceMapDisplay.from_estimator(ICM, Z, Y, v),
    ),
    "drawn map, y": ("y", lambda v: drawn_map(y=v)),
    "drawn map, domains": ("domains", lambda v: drawn_map(y=Y, domains=v)),
}


@pytest.fixture(params=PATHS)
def path(request):
    yield PATHS[request.param]
    plt.close("all")


def with_missing(values, missing):
    return [missing if row == ROW else value for row, value in enumerate(values)]


NAMES = ["a" if label else "b" for label in Y]
NULLED, NUMBERS = with_missing(NAMES, None), with_missing(Y.tolist(), None)
MISSING = {
    "None": NULLED,
    "None among numbers": NUMBERS,
    # numpy.asarray makes the name "nan" of it.
    "NaN in a list of names": with_missing(NAMES, np.nan),
    "NaN in a column of names": [[v] for v in with_missing(NAMES, np.nan)],
    "NaN in an array of numbers": np.array(with_missing(Y, np.nan)),
    "NA": np.array(with_missing(NAMES, pd.NA), dtype=object),
    "NaT": pd.Series(pd.to_datetime(with_missing(["2020-01-01"] * N, None))),
    "a span that is NaT": np.array(with_missing(Y, "NaT"), dtype="m8[s]"),
    # Which takes part in no comparison, not even with itself.
    "a decimal that signals": with_missing([Decimal(1)] * N, Decimal("sNaN")),
    "masked in a list": with_missing(NAMES, np.ma.masked),
    "complex": np.array(with_missing(Y, complex("nan"))),
    "masked": np.ma.array(Y, mask=np.arange(N) == ROW),
    "pandas' numbers": pd.Series(NUMBERS, dtype="Int8"),
    "pandas' truth values": pd.Series(NUMBERS, dtype="boolean"),
    "pandas' strings": pd.Series(NULLED, dtype="string"),
    "pandas' objects": pd.Series(NULLED, dtype=object),
    "pandas' categories": pd.Series(NULLED, dtype="category"),
    "a frame": pd.DataFrame({"label": NULLED}),
    "polars' numbers": pl.Series(NUMBERS),
    "polars' strings": pl.Series(NULLED),
    "polars' categories": pl.Series(NULLED, dtype=pl.Categorical),
    "polars' nanoseconds": pl.Series(NUMBERS).cast(pl.Datetime("ns")),
    "tensors": [torch.tensor(float(v)) for v in with_missing(Y, np.nan)],
    "Arrow's scalars": list(pa.array(NULLED)),
    "Arrow's numbers": pa.array(NUMBERS),
    "Arrow's strings": pa.chunked_array([NULLED]),
    "Arrow's dictionary": pa.array(NULLED).dictionary_encode(),
    "Arrow's dictionaries": pa.chunked_array([pa.array(NULLED).dictionary_encode()]),
}


@pytest.mark.filterwarnings("ignore:A column-vector")
def test_a_missing_label_is_an_error_that_names_its_row(path):
    name, call = path
    for kind, labels in MISSING.items():
        with pytest.raises(ValueError, match=rf"{name}\[{ROW}\] is .*missing label"):
            call(labels)
            pytest.fail(kind)


def test_labels_of_different_types_are_refused(path):
    """numpy.asarray would make one class, or domain, of 0 and "0"."""
    name, call = path
    mixed = [0, "0"] * (N // 2)
    for labels in (mixed, np.array(mixed, dtype=object), pd.Series(mixed)):
        with pytest.raises(TypeError, match=rf"{name}\[0\] is 0, {name}\[1\] is '0'"):
            call(labels)


def test_a_column_is_flattened_with_the_warning_of_scikit_learn(path):
    name, call = path
    labels = Y if name == "y" else DOMAINS
    for column in (labels[:, None], labels[:, None].tolist(), pd.DataFrame(labels)):
        with pytest.warns(DataConversionWarning, match="column-vector"):
            call(column)


def test_pairs_across_domains_are_those_of_the_domains_there_are():
    """Once None was a domain of its own: of four rows, it paired with all."""
    rows = np.random.default_rng(0).normal(size=(8, 3))
    icm = ICMTransformer(pairs="domain", lam=0.1).fit(
        rows[:4], [0] * 4, domains=list("aabb")
    )
    assert icm.n_pairs_seen_ == 4


# Labels that a cast would merge, or wrap

MANY = np.arange(200)
KINDS = {
    "uint8": MANY.astype(np.uint8),
    "int8": (MANY - 100).astype(np.int8),
    "pandas' uint8": pd.Series(MANY, dtype="UInt8"),
    "categories of int8": pd.Series((MANY - 100).astype(np.int8), dtype="category"),
    "categories": pd.Categorical([f"class {i}" for i in MANY]),
    "polars' enum": pl.Series(
        [f"class {i}" for i in MANY], dtype=pl.Enum([f"class {i}" for i in MANY])
    ),
    "polars' nanoseconds": pl.Series(MANY.astype("M8[ns]")),
    "polars' spans of nanoseconds": pl.Series(MANY.astype("m8[ns]")),
    "Arrow's dictionary": pa.array([f"class {i}" for i in MANY]).dictionary_encode(),
    "what iteration over a tensor gives": list(torch.from_numpy(MANY)),
    "what iteration over Arrow gives": list(pa.array(map(str, MANY))),
    "arrays without dimensions": [np.array(f"class {i}") for i in MANY],
    "float16": MANY.astype(np.float16),
    "integers beyond the digits of a float": [2**53 + int(i) for i in MANY[:-1]] + [-1],
    "integers beyond 64 bits": [2**64 + int(i) for i in MANY],
    "unsigned and signed": [2**63 + int(i) for i in MANY[:-1]] + [-1],
    "numpy's unsigned and signed": [np.uint64(2**53 + i) for i in MANY[::2]]
    + [np.int64(2**53 + i) for i in MANY[1::2]],
    "numpy's unsigned and -1": [np.uint64(2**63 + int(i)) for i in MANY[:-1]] + [-1],
    "names that end in null": ["a" + "\0" * int(i) for i in MANY],
    "names that end in blanks": ["a" + " " * int(i) for i in MANY],
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_labels_become_one(kind):
    labels = KINDS[kind]
    several = np.concatenate([MANY, MANY])
    taken = [list(labels)[i] for i in several] if isinstance(labels, list) else None
    if taken is None:
        taken = labels.take(several) if hasattr(labels, "take") else labels[several]
    rows = np.random.default_rng(0).normal(size=(400, 3))
    for params in ({"pairs": "class"}, {"pairs": "domain"}):
        icm = ICMTransformer(**params, lam=0.1)
        if params["pairs"] == "class":
            found = icm.fit(rows, taken)
            assert found.n_pairs_seen_ == 200
        else:
            found = icm.fit(rows, np.zeros(400, bool), domains=taken)
            assert found.n_pairs_seen_ == 400 * 399 // 2 - 200
    centred = ICMTransformer(center="domain", lam=0.1).fit(
        rows, X_do=-rows, domains=taken
    )
    assert len(centred.domains_) == 200


def test_truth_values_are_two_domains():
    for labels in (DOMAINS == 0, pd.Series(DOMAINS == 0, dtype="boolean")):
        found = ICMTransformer(center="domain", lam=0.1).fit(Z, domains=labels)
        assert sorted(found.domains_) == [False, True]


def test_records_are_no_labels():
    """NaN within them was a domain of its own in each row."""
    records = np.array([(0.0,), (np.nan,)] * (N // 2), dtype=[("camera", float)])
    for domains in (records, np.ma.array(records)):
        with pytest.raises(TypeError, match=r"records of the fields \['camera'\]"):
            ICMTransformer(center="domain", lam=0.1).fit(Z, domains=domains)


# Labels that come in chunks

TIMES = [datetime.datetime(2020, 1, 1), datetime.datetime(2021, 1, 1)] * (N // 2)
OF_ONE_KIND = {
    "objects": TIMES,
    "nanoseconds": np.array(TIMES, dtype="M8[ns]"),
    "seconds": np.array(TIMES, dtype="M8[s]"),
    "pandas": pd.Series(TIMES),
    "polars": pl.Series(TIMES),
    "Arrow": pa.array(TIMES, pa.timestamp("ns")),
}


@pytest.mark.parametrize("kind", OF_ONE_KIND)
def test_a_time_is_one_domain_whatever_it_comes_in(kind):
    """Nanoseconds once became integers, other domains than those of other chunks."""
    icm = ICMTransformer(center="domain", lam=0.1)
    icm.partial_fit(Z, domains=OF_ONE_KIND[kind]).partial_fit(Z, domains=TIMES)
    assert icm.domains_.tolist() == TIMES[:2]


def test_times_finer_than_those_of_python_stay_apart():
    times = np.array([0, 1] * (N // 2), dtype="M8[ns]")
    icm = ICMTransformer(center="domain", lam=0.1).fit(Z, domains=times)
    assert list(icm.domains_) == list(np.unique(times))


@pytest.mark.parametrize("others", [list("01"), [b"0", b"1"], [TIMES[0]] * 2])
@pytest.mark.parametrize("pairs", ["class", "domain", "interventional"])
def test_chunks_with_labels_of_another_type_are_refused(pairs, others):
    """Once classes, or domains, of their own: 0 and "0" were two."""
    name = "y" if pairs == "class" else "domains"
    params = {"center": "domain"} if pairs == "interventional" else {}
    first = {"y": Y} if pairs == "domain" else {}
    first, other = ({**first, name: v * (N // 2)} for v in ([0, 1], others))
    icm = ICMTransformer(pairs=pairs, lam=0.1, **params)
    icm.partial_fit(Z, **first)
    with pytest.raises(TypeError, match=r"sorted: (classes|domains_?)\[0\] is 0,"):
        icm.partial_fit(Z, **other)
    assert icm.n_samples_seen_ == N
    part = ICMTransformer(pairs=pairs, lam=0.1, **params)
    part.partial_fit(Z, **other)
    with pytest.raises(TypeError, match="cannot be sorted"):
        icm.merge(part)


def test_domains_that_are_numbers_of_many_digits_are_kept():
    domains = [2**53 + 1, float(2**53)] * (N // 2)
    icm = ICMTransformer(center="domain", lam=0.1).fit(Z, domains=domains)
    assert sorted(icm.domains_.tolist()) == [2**53, 2**53 + 1]


# Labels of another type than the classifier's


@pytest.mark.parametrize("as_other", [str, np.str_, lambda v: f"class {v}"])
def test_report_refuses_labels_of_another_type_than_the_classifiers(as_other):
    """Once 0.0 % for a perfect model."""
    others = [as_other(label) for label in Y.tolist()]
    with pytest.raises(
        ValueError, match=r"y\[0\] is '.*' of type str, but Pipeline pr"
    ):
        report(FITTED, Z, others, DOMAINS)
    named = make_pipeline(LogisticRegression()).fit(Z, others)
    with pytest.raises(ValueError, match="of type int, but Pipeline predicts '"):
        report(named, Z, Y, DOMAINS)
    with pytest.raises(ValueError, match="but named predicts '"):
        report(FITTED, Z, Y, DOMAINS, compare={"named": named})
    for labels in (others, np.array(others, dtype=object), pd.Series(others)):
        assert report(named, Z, labels, DOMAINS).scores["Pipeline"].keys() == {"0", "1"}


@pytest.mark.parametrize(
    "others",
    [TIMES[:2], np.array(TIMES[:2], dtype="M8[D]"), [b"a", b"b"], list("ab")],
)
def test_report_refuses_labels_that_have_no_order_with_those_predicted(others):
    for labels in (Y, np.where(Y, "b", "a")):
        fitted = make_pipeline(LogisticRegression()).fit(Z, labels)
        if isinstance(others[0], type(labels.tolist()[0])):
            continue
        with pytest.raises(ValueError, match=r"y\[0\] is .*, but Pipeline predicts"):
            report(fitted, Z, np.asarray(others)[Y], DOMAINS)


def test_report_knows_a_time_whatever_it_comes_in():
    order = np.argsort(Y, kind="stable")
    rows, domains = Z[order], DOMAINS[order]
    y = np.array([*TIMES[:2]], dtype="M8[ns]")[Y[order]]
    fitted = KNeighborsClassifier(1).fit(rows, y)
    of_objects = DummyClassifier(strategy="prior").fit(rows, y)
    of_objects.classes_ = np.array(TIMES[:2], dtype=object)
    python = y.astype("M8[us]").tolist()
    for labels in (
        y,
        y.astype("M8[D]"),
        python,
        pd.Series(y),
        pl.Series(y),
        pa.array(y),
    ):
        found = report(fitted, rows, labels, domains).scores["KNeighborsClassifier"]
        assert [score["accuracy"] for score in found.values()] == [1, 1]
    found = report(of_objects, rows, y, domains).scores["DummyClassifier"]
    assert all(score["balanced accuracy"] == 0.5 for score in found.values())


@pytest.mark.parametrize("names", [["1970", "1971"], [0, 1]])
def test_report_makes_no_time_of_what_a_classifier_predicts(names):
    fitted = DummyClassifier(strategy="prior").fit(Z, np.array(names, object)[Y])
    with pytest.raises(ValueError, match="give y as the labels that it was fitted on"):
        report(fitted, Z, Y.astype("M8[ns]"), DOMAINS)


def test_report_refuses_what_predicts_several_classes_at_once():
    fitted = KNeighborsClassifier().fit(Z, np.c_[Y, Y])
    with pytest.raises(ValueError, match=rf"of shape \({N}, 2\), expected \({N},\)"):
        report(fitted, Z, Y, DOMAINS)


def test_report_takes_numbers_of_any_type():
    expected = report(FITTED, Z, Y, DOMAINS).scores
    for dtype in (np.uint8, np.int8, bool, np.float32, object):
        assert report(FITTED, Z, Y.astype(dtype), DOMAINS).scores == expected
    found = report(FITTED, Z, Y.astype(np.uint64), DOMAINS, target_names=["no", "yes"])
    assert found.scores == expected


def test_report_tells_apart_signed_and_unsigned_numbers_of_many_digits():
    """As floats, 2**53 and 2**53 + 1 are one class, and both always right."""
    first, other = 2**53, 2**53 + 1
    fitted = DummyClassifier(strategy="constant", constant=other)
    fitted.fit(Z, np.where(Y, other, first))
    with_floats = report(fitted, Z, np.where(Y, other, first).astype(float), DOMAINS)
    assert set(with_floats.mistakes["true"]) == {first}
    found = report(fitted, Z, np.where(Y, other, first).astype(np.uint64), DOMAINS)
    accuracies = [row["accuracy"] for row in found.scores["DummyClassifier"].values()]
    assert accuracies == [Y[DOMAINS == d].mean() for d in (0, 1)]
    assert set(found.mistakes["true"]) == {first}
    assert set(found.mistakes["predicted"]) == {other}
    assert len(found.mistakes) == (Y == 0).sum()


def test_labels_without_an_order_are_refused():
    for pair in ([frozenset("a"), frozenset("b")], [Unordered.A, Unordered.B]):
        with pytest.raises((TypeError, ValueError), match=r"y\[0\] is (froz|<Uno)"):
            ICMTransformer(pairs="class", lam=0.1).fit(Z, pair * (N // 2))


def test_zero_shot_refuses_labels_of_another_type_than_its_names():
    images = [np.zeros((8, 8, 3), np.uint8)] * 2
    for names, y in (({0: "cat", 1: "dog"}, "01"), ({"0": "cat", "1": "dog"}, (0, 1))):
        model = ZeroShotClassifier(CLIPFeaturizer("demo"), class_names=names)
        with pytest.raises(ValueError, match=r"y\[0\] is .*, an unknown class"):
            model.fit(images, list(y))
    for names, message in (
        ({0: "cat", "1": "dog"}, r"class_names\[0\] is 0, class_names\[1\] is '1'"),
        ({0: "cat", None: "dog"}, r"class_names\[1\] is None"),
    ):
        model = ZeroShotClassifier(CLIPFeaturizer("demo"), class_names=names)
        with pytest.raises((TypeError, ValueError), match=message):
            model.fit(images)
