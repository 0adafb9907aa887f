"""Names that mean something elsewhere: to matplotlib, HTML, CSV or the file system.

They come out as they went in, and those that only look alike are told.
"""

import os
import unicodedata
import warnings
from html.parser import HTMLParser
from xml.etree import ElementTree

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from skclip_icm import (
    CLIPFeaturizer,
    EmbeddingFiles,
    ICMTransformer,
    ZeroShotClassifier,
    embed_files,
    fit_files,
    report,
    transform_files,
)
from skclip_icm._containers import printable
from skclip_icm.datasets import load_domain_folder
from skclip_icm.interventions import captions
from skclip_icm.plotting import DomainAccuracyDisplay, InvarianceMapDisplay

matplotlib.use("Agg")

NAMES = [
    "$x^2$ dog",
    "one $ cat",
    "_hidden rose",
    '</td><b>"car"&amp;',
    '=1+1, "tree"',
    "two\nlines ship",
    "caf\udce9 {} moon",  # of a file system whose names are not UTF-8
    "naïve bird",
]
PREFIX = "domain "


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two domains with a class for each name, and a file of such a name in each."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for domain in NAMES[:2]:
        for name in NAMES:
            path = root / f"{PREFIX}{domain}" / name.replace("/", "∕")
            try:
                path.mkdir(parents=True)
                image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
                image.save(path / f"{name.replace('/', '∕')}.png")
            except (OSError, UnicodeError):
                pytest.skip("this file system has no such names")
    return root


@pytest.fixture(scope="module")
def data(folder):
    return load_domain_folder(folder)


@pytest.fixture
def rows():
    """Embeddings, and for each its name and a domain."""
    rng = np.random.default_rng(0)
    codes = np.arange(48) % len(NAMES)
    Z = rng.normal(size=(48, 10)) + 3 * np.eye(len(NAMES), 10)[codes]
    domains = [f"{PREFIX}{NAMES[(code + i) % 3]}" for i, code in enumerate(codes)]
    return Z, [NAMES[code] for code in codes], domains


class Texts(HTMLParser):
    """The texts of the cells of a page, and its tags."""

    def __init__(self, page):
        super().__init__()
        self.texts, self.tags = [""], set()
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.texts.append("")

    def handle_data(self, data):
        self.texts[-1] += data


def model_of(Z, y):
    pipe = make_pipeline(ICMTransformer(lam=0.1), LogisticRegression())
    return pipe.fit(Z, y, icmtransformer__X_do=Z + 0.1 * np.roll(Z, 1, axis=1))


def shown(texts):
    """What matplotlib draws of texts."""
    return [text.get_text().replace(r"\$", "$") for text in texts]


def test_folders_become_classes_as_they_are_called(data):
    names = [name.replace("/", "∕") for name in NAMES]
    assert data.target_names == sorted(names)
    for path, target in zip(data.images, data.target, strict=True):
        name = data.target_names[target]
        assert path.split(os.sep)[-2:] == [name, f"{name}.png"]
    framed = load_domain_folder(data.images[0].rsplit(os.sep, 3)[0], as_frame=True)
    assert framed.images.tolist() == data.images.tolist()


def test_report(rows, tmp_path):
    Z, y, domains = rows
    guess = y[::-1]
    made = report(model_of(Z, y), Z, guess, domains, path=tmp_path / "report.html")
    assert set(made.scores["Pipeline"]) == set(domains)
    page = Texts((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert not {"b", "script"} & page.tags
    for name in NAMES:
        assert printable(name) in page.texts
        assert f"predicted: {printable(name)}" in page.texts
    assert set(made.mistakes["true"]) | set(made.mistakes["predicted"]) == set(NAMES)
    assert set(made.mistakes["domain"]) == set(domains)


def test_table_of_mistakes_through_a_file(rows, tmp_path):
    Z, y, domains = rows
    mistakes = report(model_of(Z, y), Z, y[::-1], domains).mistakes
    path = tmp_path / "mistakes.csv"
    mistakes.to_csv(path, errors="surrogateescape")
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        found = pd.read_csv(file, index_col="row", dtype=object, engine="python")
    for column in ("domain", "true", "predicted"):
        assert found[column].tolist() == mistakes[column].tolist()


def test_report_of_images_and_names_of_codes(data):
    pipe = make_pipeline(
        CLIPFeaturizer("demo"), ICMTransformer(2, lam=0.1), LogisticRegression()
    )
    pipe.fit(data.images, data.target)
    made = report(
        pipe,
        data.images,
        data.target[::-1],
        data.domains,
        target_names=data.target_names,
        domain_names=data.domain_names,
    )
    assert set(made.mistakes["true"]) <= set(data.target_names)
    assert set(made.mistakes["domain"]) == set(data.domain_names)
    assert set(made.mistakes["path"]) <= set(data.images)


def test_displays(rows, tmp_path):
    Z, y, domains = rows
    model = model_of(Z, y)
    methods = {name: model for name in NAMES}
    accuracies = DomainAccuracyDisplay.from_estimator(methods, Z, y, domains)
    legend = accuracies.ax_.get_legend().get_texts()
    assert shown(legend) == list(map(printable, NAMES))
    ticks = shown(accuracies.ax_.get_xticklabels())[:-1]
    assert [" ".join(tick.split()) for tick in ticks] == sorted(set(domains))
    mapped = InvarianceMapDisplay.from_estimator(model, Z, y)
    legend = mapped.axes_[0, 1].get_legend().get_texts()
    assert shown(legend) == sorted(map(printable, NAMES))
    for display in (accuracies, mapped):
        display.figure_.savefig(tmp_path / "figure.svg")
        display.figure_.savefig(tmp_path / "figure.png")
    plt.close("all")


@pytest.mark.parametrize("name", ["bell\x07", "\x1b[31m", "no\ufffe"])
def test_control_characters_are_written_out(name, rows, tmp_path):
    """No XML, and so no SVG, may hold them."""
    Z, y, _ = rows
    y = [name if label == NAMES[0] else "other" for label in y]
    InvarianceMapDisplay.from_estimator(model_of(Z, y), Z, y)
    plt.savefig(tmp_path / "figure.svg")
    ElementTree.parse(tmp_path / "figure.svg")
    plt.close("all")
    page = report(model_of(Z, y), Z, y, np.zeros(len(y))).html
    assert ascii(name)[1:-1] in page and name not in page


def test_long_names_stay_different_in_a_legend(rows):
    Z, y, _ = rows
    names = [f"photographs of {i} in the garden" for i in range(2)]
    y = [names[label == NAMES[0]] for label in y]
    mapped = InvarianceMapDisplay.from_estimator(model_of(Z, y), Z, y)
    assert shown(mapped.axes_[0, 1].get_legend().get_texts()) == names
    plt.close("all")


@pytest.mark.filterwarnings("ignore:The model gives")
def test_zero_shot_and_captions(data):
    images = data.images[:3]
    by_names = ZeroShotClassifier(CLIPFeaturizer("demo"), class_names=NAMES)
    assert by_names.fit(images).classes_.tolist() == NAMES
    assert set(by_names.predict(images)) <= set(NAMES)
    of_codes = ZeroShotClassifier(CLIPFeaturizer("demo"), class_names=data.target_names)
    assert set(of_codes.fit(data.images, data.target).predict(images)) <= set(range(8))
    originals, edited = captions(NAMES)
    for name, one, other in zip(NAMES, originals, edited, strict=True):
        assert name in one and name in other
    assert CLIPFeaturizer("demo").encode_text(originals).shape == (len(NAMES), 1280)


@pytest.mark.parametrize("file_format", ["npy", "parquet"])
def test_files(data, tmp_path, file_format):
    target = tmp_path / NAMES[5] / NAMES[6]
    featurizer = CLIPFeaturizer("demo", cache=tmp_path / NAMES[6])
    made = embed_files(data.images, featurizer, target, file_format=file_format)
    again = embed_files(data.images, featurizer, target, file_format=file_format)
    assert again.embeddings.shape == made.embeddings.shape == (16, 1280)
    names = np.array(data.target_names)[data.target].tolist()
    icm = ICMTransformer(2, center="domain", lam=0.1)
    icm = fit_files(made.embeddings, icm, X_do=made.counterparts, domains=names)
    assert sorted(icm.domains_) == data.target_names
    written = transform_files(made.embeddings, icm, target / NAMES[3].replace("/", ""))
    assert EmbeddingFiles(written.paths[0]).shape == (16, 2)
    if file_format == "parquet":
        with open(made.embeddings.paths[0], "rb") as file:
            paths = pq.read_table(file)["image_path"].to_pylist()
        as_bytes = map(os.fsencode, data.images)
        assert paths == [b.decode("utf-8", "backslashreplace") for b in as_bytes]


# Names that look alike


def names_that_look_alike():
    composed = unicodedata.normalize("NFC", "café")
    return [
        (["Dog", "dog"], "'Dog', 'dog'"),
        ([composed, unicodedata.normalize("NFD", "CAFÉ")], r"'CAFE\u0301', 'caf\xe9'"),
        (["dog", " dog "], "' dog ', 'dog'"),
        (["red car", "red\u3000 car"], r"'red car', 'red\u3000 car'"),
        (["dog", "\uff44\uff4f\uff47"], r"'dog', '\uff44\uff4f\uff47'"),
        (["dog", "do\u200bg\u200f"], r"'dog', 'do\u200bg\u200f'"),
    ]


@pytest.mark.parametrize(("names", "told"), names_that_look_alike())
@pytest.mark.parametrize("level", ["classes", "domains"])
def test_folders_that_look_alike_are_told(names, told, level, tmp_path):
    for i, name in enumerate([*names, "horse"]):
        path = ("photo", name) if level == "classes" else (name, "horse")
        folder = tmp_path.joinpath(*path)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.png").touch()
    if len(os.listdir(folder.parents[0 if level == "classes" else 1])) < 3:
        pytest.skip("to this file system they are one name")
    with pytest.warns(UserWarning) as caught:
        data = load_domain_folder(tmp_path)
    message = str(caught[0].message)
    assert len(caught) == 1 and f"the folders {told} are different {level}" in message
    found = data.target_names if level == "classes" else data.domain_names
    assert set(names) < set(found)  # and they are
    with warnings.catch_warnings(action="error"):
        chosen = {"class_names" if level == "classes" else "domains": ["horse"]}
        load_domain_folder(tmp_path, **chosen)


@pytest.mark.parametrize(
    "names",
    [
        ["Cat", "cat"],
        ["café", unicodedata.normalize("NFD", "café")],
        ["a" + " cat" * 90, "a" + " cat" * 91],
    ],
)
def test_classes_that_the_model_cannot_tell_apart_are_told(names, photographs):
    classifier = ZeroShotClassifier(CLIPFeaturizer("demo"))
    classifier.set_params(class_names=["dog", *names])
    first, second = map(ascii, names)
    with pytest.warns(UserWarning, match="gives the same embedding") as caught:
        classifier.fit(photographs)
    told = caught[-1]  # before, that long ones are cut
    assert f"the prompts of {first} and {second}: of these" in str(told.message)
    assert told.filename == __file__
    with warnings.catch_warnings(action="error"):
        warnings.filterwarnings("ignore", "The model reads")
        classifier.set_params(class_names=["dog", names[0]]).fit(photographs)


def test_labels_without_words_are_refused_as_names(photographs):
    with pytest.raises(ValueError, match=r"classes_\[0\] is blank, expected words"):
        ZeroShotClassifier(CLIPFeaturizer("demo")).fit(photographs, ["dog", " "] * 3)


def test_names_without_end_leave_room_for_the_bars():
    names = ["x" * 400 + end for end in "ab"]
    display = DomainAccuracyDisplay.from_scores(
        {n: dict.fromkeys(names, 1) for n in names}
    )
    for texts in display.ax_.get_legend().get_texts(), display.ax_.get_xticklabels():
        found = [text.get_text().replace("\n", "") for text in texts][:2]
        assert [len(text) for text in found] == [56, 56]
        assert [text[-1] for text in found] == ["a", "b"]
    plt.close("all")


def test_scores_of_a_report_are_refused_with_how_to_take_them(rows):
    Z, y, domains = rows
    scores = report(model_of(Z, y), Z, y, domains).scores
    with pytest.raises(ValueError, match=r"dict of the measures \['accuracy', "):
        DomainAccuracyDisplay.from_scores(scores)
    DomainAccuracyDisplay.from_scores(
        {m: {d: s["accuracy"] for d, s in of.items()} for m, of in scores.items()}
    )
    plt.close("all")


def test_two_labels_are_not_shown_by_one_name(rows):
    Z, y, domains = rows
    codes = np.unique(y, return_inverse=True)[1]
    model = model_of(Z, codes)
    same = {"target_names": ["cat"] * 8}
    for call in (
        lambda: report(model, Z, codes, domains, **same),
        lambda: InvarianceMapDisplay.from_estimator(model, Z, codes, **same),
        lambda: DomainAccuracyDisplay.from_estimator(
            model, Z, codes, codes % 2, domain_names=["a", "b", "a"]
        ),
    ):
        with pytest.raises(ValueError, match="_names holds '[ac].*' more than once"):
            call()
