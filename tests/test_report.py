"""The report opens anywhere, and says what a user needs to know about each domain."""

import datetime
import html.parser
import os
import re

import matplotlib
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from PIL import Image
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.metrics import balanced_accuracy_score, confusion_matrix
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline

from skclip_icm import (
    CLIPFeaturizer,
    ICMTransformer,
    ZeroShotClassifier,
    interventional_scorer,
)
from skclip_icm.datasets import make_causal_embeddings
from skclip_icm.reporting import report
from skclip_icm.reporting._scores import wilson_interval

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

SCRIPT = "<script>alert('x')</script>"


class Page(html.parser.HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, report):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(report.html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def causal():
    data = make_causal_embeddings(200, random_state=0)
    data.names = np.array(["seen", "new"])[data.domains]
    return data


@pytest.fixture(scope="module")
def fitted(causal):
    train = causal.domains == 0
    pipe = make_pipeline(ICMTransformer(lam=10), LogisticRegression())
    return pipe.fit(causal.embeddings[train], causal.target[train])


@pytest.fixture(scope="module")
def raw(causal):
    train = causal.domains == 0
    return LogisticRegression().fit(causal.embeddings[train], causal.target[train])


@pytest.fixture(scope="module")
def of_embeddings(causal, fitted, raw):
    return report(
        fitted, causal.embeddings, causal.target, causal.names, compare={"raw": raw}
    )


@pytest.fixture(scope="module")
def hostile(photographs, tmp_path_factory):
    """Images, classes, domains and a parameter whose names are code."""
    folder = tmp_path_factory.mktemp("images")
    paths = np.array([str(folder / f"{i}<img src=x>&.png") for i in range(6)])
    for path, pixels in zip(paths, photographs, strict=True):
        Image.fromarray(pixels).save(path)
    classes = np.array([f"{SCRIPT} $a$", '"></td>$b'])
    y, domains = classes[[0, 1] * 3], np.array(["<b>$x_$", "&amp;"])[[0, 0, 0, 1, 1, 1]]
    pipe = Pipeline(
        [
            ("clip", CLIPFeaturizer("demo")),
            ("icm", ICMTransformer(2)),
            (SCRIPT, LogisticRegression(class_weight={c: 1 for c in classes})),
        ]
    )
    return pipe.fit(paths, y[::-1]), paths, y, domains


@pytest.fixture(scope="module")
def of_images(hostile):
    return report(*hostile)


def test_scores_are_those_of_scikit_learn(of_embeddings, causal, fitted, raw):
    assert list(of_embeddings.scores) == ["Pipeline", "raw"]
    for method, estimator in (("Pipeline", fitted), ("raw", raw)):
        for domain in ("new", "seen"):
            rows = causal.names == domain
            X, y = causal.embeddings[rows], causal.target[rows]
            found = of_embeddings.scores[method][domain]
            assert_allclose(found["accuracy"], estimator.score(X, y))
            expected = balanced_accuracy_score(y, estimator.predict(X))
            assert_allclose(found["balanced accuracy"], expected)


def test_table_has_counts_scores_intervals_and_the_mean(of_embeddings):
    text = Page(of_embeddings).text
    accuracy = of_embeddings.scores["raw"]["new"]["accuracy"]
    low, high = wilson_interval(accuracy, 200)
    assert re.search(
        rf"new raw {accuracy:.3f} {low:.3f} to {high:.3f} \d\.\d+ 200", text
    )
    mean = np.mean([s["accuracy"] for s in of_embeddings.scores["raw"].values()])
    assert f"mean of domains raw {mean:.3f}" in text


def test_wilson_interval():
    # Its bounds are the p that lie z standard errors of their own from the share.
    for share, n in ((0.0, 10), (0.3, 40), (1.0, 5)):
        for p in wilson_interval(share, n):
            gap = 1.959964 * np.sqrt(p * (1 - p) / n)
            assert_allclose(abs(share - p), gap, atol=1e-6)


def test_page_needs_nothing_from_elsewhere(of_embeddings, of_images):
    for made in (of_embeddings, of_images):
        page = Page(made)
        assert not {"script", "link", "iframe", "object", "base"} & {
            tag for tag, _ in page.tags
        }
        for _, attributes in page.tags:
            assert not any(name.startswith("on") for name in attributes)
            for name in ("src", "href"):
                assert attributes.get(name, "#").startswith(("data:image/", "#"))
        policy = page.all("meta")[1]["content"]
        assert policy.startswith("default-src 'none'")


def test_page_is_accessible(of_embeddings, of_images):
    for made in (of_embeddings, of_images):
        page = Page(made)
        assert page.all("html") == [{"lang": "en"}]
        assert "width=device-width" in page.all("meta")[2]["content"]
        assert all(image["alt"] for image in page.all("img"))
        assert all(cell["scope"] in ("col", "row") for cell in page.all("th"))
        assert len(page.all("caption")) == len(page.all("table"))
        assert len(page.all("h1")) == 1
        targets = {heading.get("id") for heading in page.all("h2")}
        assert {link["href"][1:] for link in page.all("a")} == targets


def test_names_that_are_code_are_shown_as_text(of_images):
    text = Page(of_images).text
    assert SCRIPT in text
    assert "<img src=x>" in text
    assert "<script" not in of_images.html.lower()
    assert "&lt;b&gt;$x_$" in of_images.html
    assert "&amp;amp;" in of_images.html


def test_mistakes_are_shown_as_small_images_with_their_paths(of_images, hostile):
    pipe, paths, y, _ = hostile
    n_mistakes = int((pipe.predict(paths) != y).sum())
    assert n_mistakes
    page = Page(of_images)
    thumbnails = [i for i in page.all("img") if i["src"].startswith("data:image/jpeg")]
    assert len(thumbnails) == n_mistakes
    assert "true: " in thumbnails[0]["alt"]
    assert "probability" in page.text
    wrong = np.flatnonzero(pipe.predict(paths) != y)
    for row in wrong:
        assert page.text.count(paths[row]) == 2  # below the image, and in the table
    frame = of_images.mistakes
    assert sorted(frame.index) == wrong.tolist()
    assert frame["path"].tolist() == paths[frame.index].tolist()
    assert frame["true"].tolist() == y[frame.index].tolist()
    assert frame["confidence"].is_monotonic_decreasing


def test_of_images_it_has_all_sections(of_images):
    links = re.findall(r'<a href="#s\d+">([^<]+)', of_images.html)
    assert links == [
        "Scores by domain",
        "Confusion by domain",
        "Invariant directions",
        "Interventions",
        "Before and after",
        "Most confident mistakes",
        "Parameters",
        "Versions",
    ]


def test_surest_mistakes_come_first(causal, raw):
    Z, y = causal.embeddings, causal.target
    made = report(raw, Z, y, causal.names, n_mistakes=5)
    text = Page(made).text
    sure = [float(x) for x in re.findall(r" [01] [01] (0\.\d\d\d)", text)]
    wrong = np.sort(raw.predict_proba(Z)[raw.predict(Z) != y].max(axis=1))[::-1]
    assert_allclose(sure[:5], wrong[:5], atol=0.0005)
    assert_allclose(made.mistakes["confidence"], wrong)
    assert made.mistakes["true"].dtype == y.dtype


def test_embeddings_have_neither_images_nor_interventions(of_embeddings):
    assert "data:image/jpeg" not in of_embeddings.html
    assert "Interventions</a>" not in of_embeddings.html


def test_without_icm_it_says_so(causal, raw):
    text = Page(report(raw, causal.embeddings, causal.target, causal.names)).text
    assert "There is no ICMTransformer" in text
    assert "Before and after" not in text


def test_classifier_without_probabilities(causal):
    Z, y = np.asarray(causal.embeddings)[:, :1], causal.target
    ridge = RidgeClassifier().fit(Z, y)
    assert "distance" in Page(report(ridge, Z, y, causal.names)).text


def test_no_mistakes(causal):
    class Oracle(LogisticRegression):
        def predict(self, X):
            return causal.target

    oracle = Oracle().fit(causal.embeddings, causal.target)
    made = report(oracle, causal.embeddings, causal.target, causal.names)
    assert "There is no mistake." in made.html
    assert list(made.mistakes.columns) == ["domain", "true", "predicted", "confidence"]
    assert made.mistakes.empty


def test_search_has_its_best_candidates(causal):
    train = causal.domains == 0
    pipe = make_pipeline(ICMTransformer(), LogisticRegression())
    grid = {"icmtransformer__lam": [0.1, 10], "logisticregression__C": [1, 2]}
    search = GridSearchCV(pipe, grid, cv=2, scoring=interventional_scorer("accuracy"))
    search.fit(causal.embeddings[train], causal.target[train])
    text = Page(report(search, causal.embeddings, causal.target, causal.names)).text
    assert "GridSearchCV tried 4 candidates" in text
    assert "interventional_scorer('accuracy'" in text
    assert f"1 {search.best_score_:.3f}" in text
    assert "icmtransformer__lam" in text


def test_search_over_several_grids_shows_the_parameters_of_all(causal):
    pipe = make_pipeline(ICMTransformer(), LogisticRegression())
    grids = [
        {"icmtransformer": ["passthrough"], "logisticregression__C": [2]},
        {"icmtransformer__lam": [7]},
    ]
    search = GridSearchCV(pipe, grids, cv=2).fit(causal.embeddings, causal.target)
    text = Page(report(search, causal.embeddings, causal.target, causal.names)).text
    table = text[text.index("Best candidates") :]
    for name in ("icmtransformer", "logisticregression__C", "icmtransformer__lam"):
        assert name in table
    assert "– – 7" in table  # what the second grid does not have
    assert "'passthrough' 2 –" in table


def test_halving_counts_each_candidate_once(causal):
    search = HalvingGridSearchCV(
        LogisticRegression(),
        {"C": [0.01, 0.1, 1, 10]},
        cv=2,
        factor=2,
        min_resources=100,
        random_state=0,
    ).fit(causal.embeddings, causal.target)
    text = Page(report(search, causal.embeddings, causal.target, causal.names)).text
    assert "tried 4 candidates" in text
    assert f"in {search.n_iterations_} rounds" in text
    table = text[text.index("Best candidates of the search") :]
    best = re.search(r" 1 (\d\.\d+) \d\.\d+ (\S+) ", table).groups()
    assert best == (f"{search.best_score_:.3f}", str(search.best_params_["C"]))


def test_confusion_has_the_counts_of_each_domain(causal, fitted):
    made = report(
        fitted,
        causal.embeddings,
        causal.target,
        causal.domains,
        target_names=["cat", "dog"],
        domain_names=["seen", "new"],
    )
    rows = causal.domains == 1
    X, y = causal.embeddings[rows], causal.target[rows]
    (a, b), (c, d) = confusion_matrix(y, fitted.predict(X))
    text = Page(made).text
    counts = f"true: cat {a} {b} {a + b} true: dog {c} {d} {c + d}"
    assert f"Domain new class predicted: cat predicted: dog rows {counts}" in text
    assert set(made.scores["Pipeline"]) == {"seen", "new"}


def test_of_many_classes_the_most_frequent_confusions_are_listed(causal):
    y = np.arange(len(causal.target)) % 20
    raw = LogisticRegression().fit(causal.embeddings, y)
    text = Page(report(raw, causal.embeddings, y, causal.names)).text
    assert "The most frequent confusions" in text
    rows = causal.names == "new"
    cells = confusion_matrix(y[rows], raw.predict(causal.embeddings[rows]))
    np.fill_diagonal(cells, 0)
    assert re.search(rf"share of the class \d+ \d+ {cells.max()} 0\.\d+", text)


def test_title_and_date(causal, fitted):
    arguments = fitted, causal.embeddings, causal.target, causal.names
    made = report(*arguments, title="Trial <3>")
    assert "<title>Trial &lt;3&gt;</title>" in made.html
    assert f"Made on {datetime.date.today().isoformat()} from 400 rows." in made.html


def test_no_folder_of_this_machine_is_in_the_parameters(tmp_path, photographs):
    for cache in (str(tmp_path / "kept"), tmp_path / "kept"):
        pipe = make_pipeline(
            CLIPFeaturizer("demo", cache=cache), ICMTransformer(2), LogisticRegression()
        ).fit(photographs, [0, 1] * 3)
        html = report(pipe, photographs, [0, 1] * 3, ["a", "b"] * 3).html
        assert str(tmp_path) not in html
        assert "…/kept" in html


def test_wrong_output_is_found_before_the_work(causal, tmp_path):
    class Untouched(LogisticRegression):
        def predict(self, X):
            raise AssertionError("worked")

    model = Untouched().fit(causal.embeddings, causal.target)
    arguments = model, causal.embeddings, causal.target, causal.names
    with pytest.raises(FileNotFoundError, match="there is no folder .* Make it"):
        report(*arguments, path=tmp_path / "nowhere" / "report.html")
    with pytest.raises(IsADirectoryError, match=r"such as .*report\.html"):
        report(*arguments, path=tmp_path)


def test_names_of_files_may_hold_any_bytes(photographs, tmp_path):
    paths = [os.fsdecode(os.fsencode(tmp_path) + b"/\xe9%d.png" % i) for i in range(6)]
    for path, pixels in zip(paths, photographs, strict=True):
        Image.fromarray(pixels).save(path)
    y = np.array([0, 1] * 3)
    pipe = make_pipeline(
        CLIPFeaturizer("demo"), ICMTransformer(2), LogisticRegression()
    )
    pipe.fit(paths, y)
    made = report(pipe, paths, 1 - y, y, path=tmp_path / "report.html")
    assert "\\udce9" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert made.mistakes["path"].isin(paths).all()


def test_parameters_that_were_changed_come_first(of_embeddings):
    text = Page(of_embeddings).text
    changed = text.index("Changed parameters of icmtransformer (ICMTransformer)")
    assert changed < text.index("lam 10") < text.index("n_components 'auto'")
    assert "scikit-learn" in text[text.index("Versions of packages") :]


def test_another_measure_and_domains_where_it_is_undefined(causal, fitted):
    domains = np.where(causal.target == 0, "one class", "other class")
    domains[:100] = "both"
    made = report(fitted, causal.embeddings, causal.target, domains, scoring="roc_auc")
    found = made.scores["Pipeline"]
    assert 0.5 < found["both"]["roc auc"] <= 1
    assert np.isnan(found["one class"]["roc auc"])
    assert "–" in Page(made).text


def test_zero_shot_and_frames_and_column_transformers(photographs, tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(6)]
    for path, pixels in zip(paths, photographs, strict=True):
        Image.fromarray(pixels).save(path)
    y = np.array(["cat", "dog"] * 3)
    frame = pd.DataFrame({"path": paths, "age": range(6)})
    zero_shot = ZeroShotClassifier(CLIPFeaturizer("demo"), ICMTransformer(2))
    made = report(zero_shot.fit(frame["path"], y), frame["path"], y, y)
    assert "Interventions</a>" in made.html
    image = make_pipeline(CLIPFeaturizer("demo"), ICMTransformer(2))
    columns = ColumnTransformer([("image", image, "path")], remainder="passthrough")
    model = make_pipeline(columns, LogisticRegression(C=1e-9)).fit(frame, y)
    made = report(model, frame, y, y)
    assert "Interventions</a>" in made.html
    assert "data:image/jpeg" in made.html


def test_it_is_saved_and_shown_in_notebooks(causal, fitted, tmp_path):
    arguments = fitted, causal.embeddings, causal.target, causal.names
    made = report(*arguments, path=tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == made.html
    assert made.save(str(tmp_path / "again.html")) is made
    with pytest.raises(FileNotFoundError, match="there is no folder .* Make it"):
        made.save(tmp_path / "nowhere" / "report.html")
    assert re.fullmatch(
        r"Report\(Pipeline: accuracy \d\.\d+, mean of 2 domains \d\.\d+\)", repr(made)
    )
    shown = made._repr_html_()
    assert shown.startswith("<iframe")
    assert "<!DOCTYPE" not in shown  # escaped
    assert report(*arguments).html == made.html


def test_no_figure_is_left_open(causal, fitted):
    before = plt.get_fignums()
    report(fitted, causal.embeddings, causal.target, causal.names)
    assert plt.get_fignums() == before


def test_what_cannot_be_reported(causal, fitted, raw):
    arguments = causal.embeddings, causal.target, causal.names
    with pytest.raises(NotFittedError, match="LogisticRegression is not fitted"):
        report(LogisticRegression(), *arguments)
    with pytest.raises(TypeError, match="an ICMTransformer, which does not predict"):
        report(fitted[0], *arguments)
    with pytest.raises(ValueError, match="y has 3 entries, expected 400"):
        report(fitted, causal.embeddings, [0, 1, 0], causal.names)
    with pytest.raises(
        TypeError, match="Ridge, which predicts numbers.*RidgeClassifier"
    ):
        report(Ridge().fit(Z := causal.embeddings, causal.target), Z, *arguments[1:])
    clusters = KMeans(2, n_init=1).fit(Z)
    with pytest.raises(TypeError, match="a KMeans, which predicts clusters"):
        report(clusters, Z, *arguments[1:])
    with pytest.raises(ValueError, match="n_mistakes.* Got -1"):
        report(raw, Z, *arguments[1:], n_mistakes=-1)
    with pytest.raises(ValueError, match="domain_names holds 1 name,"):
        report(raw, Z, causal.target, causal.domains, domain_names=["seen"])
    with pytest.raises(TypeError, match="compare is a list, expected a dict"):
        report(fitted, *arguments, compare=[raw])
    with pytest.raises(ValueError, match="compare has the name 'Pipeline'"):
        report(fitted, *arguments, compare={"Pipeline": raw})


# Estimators in notebooks


def test_estimators_show_parameters_and_state(photographs):
    pipe = make_pipeline(CLIPFeaturizer("demo"), ICMTransformer(2, lam=3))
    assert "CLIPFeaturizer" in pipe._repr_html_()
    fitted = pipe.fit(photographs)
    for shown in (fitted._repr_html_(), fitted[1]._repr_html_()):
        assert "fitted" in shown
        assert "lam" in shown
    zero_shot = ZeroShotClassifier(CLIPFeaturizer("demo"), class_names=["a", "b"])
    assert "class_names" in zero_shot._repr_html_()


def test_showing_a_featurizer_loads_no_model(monkeypatch):
    def load(*args, **kwargs):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("skclip_icm.featurizer.load_encoder", load)
    for featurizer in (CLIPFeaturizer(), CLIPFeaturizer("demo")):
        assert "CLIPFeaturizer" in featurizer._repr_html_()
