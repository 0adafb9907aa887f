"""What a user sees in the displays."""

import io
import subprocess
import sys
import warnings

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import make_scorer, roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from skclip_icm import (
    CLIPFeaturizer,
    ICMTransformer,
    ZeroShotClassifier,
    interventional_scorer,
)
from skclip_icm._images.inputs import ImageError
from skclip_icm.datasets import make_causal_embeddings
from skclip_icm.interventions import intervene
from skclip_icm.plotting import (
    DomainAccuracyDisplay,
    InterventionDisplay,
    InvarianceMapDisplay,
    SpectrumDisplay,
)


@pytest.fixture(scope="module")
def causal():
    data = make_causal_embeddings(300, random_state=0)
    data.names = np.array(["source", "target"])[data.domains]
    return data


@pytest.fixture(scope="module")
def icm(causal):
    return ICMTransformer(lam=10).fit(causal.embeddings[causal.domains == 0])


@pytest.fixture
def demo():
    return CLIPFeaturizer("demo")


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """Displays change no global setting; figures are closed after each test."""
    before = matplotlib.rcParams.copy()
    yield
    assert matplotlib.rcParams == before
    plt.close("all")


def save(display):
    """Save as a user would, and fail on any warning."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        display.figure_.savefig(file, format="png")
    file.seek(0)
    assert np.asarray(Image.open(file).convert("L")).std() > 1


def legend_texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def overlapping(texts):
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    return any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


# Spectrum


def drawn_eigenvalues(display):
    return sum(patch.get_data().values for patch in display.axes_[0, 0].patches)


def test_spectrum_draws_eigenvalues_cut_and_invariance(icm):
    display = SpectrumDisplay.from_estimator(icm)
    upper, lower = display.axes_.ravel()
    assert_allclose(drawn_eigenvalues(display), icm.eigenvalues_)
    assert icm.n_components_ + 0.5 in [line.get_xdata()[0] for line in upper.lines]
    assert_allclose(lower.lines[0].get_ydata(), icm.invariance_)
    assert legend_texts(upper) == [
        "positive (16)",
        "negative (48)",
        "cut: 16 of 64 kept",
    ]
    assert "10" in upper.get_ylabel()
    save(display)
    assert not overlapping(upper.get_yticklabels())


def test_spectrum_tells_the_signs_apart_without_colour(icm):
    positive, negative = SpectrumDisplay.from_estimator(icm).axes_[0, 0].patches
    assert positive.get_hatch() is None
    assert negative.get_hatch()


def test_spectrum_of_the_whitening_has_weights_only(causal):
    icm = ICMTransformer(method="whitening").fit(causal.embeddings)
    display = SpectrumDisplay.from_estimator(icm)
    assert_allclose(drawn_eigenvalues(display), icm.eigenvalues_)
    ax = display.axes_[0, 0]
    assert ax.get_ylabel() == "whitening weight"
    assert legend_texts(ax) == ["positive (64)", "cut: 64 of 64 kept"]
    save(display)


def test_spectrum_counts_agree_with_the_cut_where_nothing_varies():
    rng = np.random.default_rng(0)
    Z = np.pad(rng.normal(size=(50, 4)), [(0, 0), (0, 30)]) @ rng.normal(size=(34, 34))
    icm = ICMTransformer(lam=0.5).fit(Z, X_do=Z + 0.1 * np.roll(Z, 1, axis=0))
    texts = legend_texts(SpectrumDisplay.from_estimator(icm).axes_[0, 0])
    assert texts == ["positive (4)", "cut: 4 of 34 kept"]


def test_spectrum_of_a_single_direction_and_of_none_that_varies(causal):
    with pytest.warns(UserWarning, match="keeping the single best"):
        icm = ICMTransformer(lam=1e6).fit(causal.embeddings)
    save(SpectrumDisplay.from_estimator(icm))
    with pytest.warns(UserWarning, match="changes nothing"):
        still = ICMTransformer(2).fit(np.ones((5, 3)), X_do=np.ones((5, 3)))
    save(SpectrumDisplay.from_estimator(still))


def nested(icm):
    return make_pipeline("passthrough", make_pipeline(icm, StandardScaler()))


def searched(icm):
    pipe = Pipeline([("icm", icm), ("clf", LogisticRegression())])
    return GridSearchCV(pipe, {"icm__lam": [3]}, cv=2)


@pytest.mark.parametrize("wrap", [nested, searched])
def test_icm_is_found_inside(wrap, causal):
    estimator = wrap(ICMTransformer()).fit(causal.embeddings, causal.target)
    found = getattr(estimator, "best_estimator_", estimator)[-1]
    found = estimator.best_estimator_[0] if wrap is searched else found[0]
    display = SpectrumDisplay.from_estimator(estimator)
    assert_array_equal(display.eigenvalues, found.eigenvalues_)


def test_what_zero_shot_learnt_and_sees(demo, photographs):
    y = [0, 1] * 3
    classifier = ZeroShotClassifier(demo, ICMTransformer(2), class_names=["cat", "dog"])
    with pytest.raises(NotFittedError, match="in this ZeroShotClassifier"):
        SpectrumDisplay.from_estimator(classifier)
    classifier.fit(photographs, y)
    display = SpectrumDisplay.from_estimator(classifier)
    assert_array_equal(display.eigenvalues, classifier.icm_.eigenvalues_)
    of_images = InvarianceMapDisplay.from_estimator(classifier, photographs, y)
    Z = demo.transform(photographs)
    of_embeddings = InvarianceMapDisplay.from_estimator(classifier, Z, y)
    assert_allclose(of_images.after, of_embeddings.after, atol=1e-6)
    shown = InterventionDisplay.from_estimator(classifier, photographs[:2])
    assert shown.cosines.shape == (2, 1)
    plain = ZeroShotClassifier(demo, class_names=["cat", "dog"]).fit(photographs)
    with pytest.raises(ValueError, match="got a ZeroShotClassifier"):
        SpectrumDisplay.from_estimator(plain)


def test_names_with_dollar_signs_are_no_formulas(icm, causal):
    names = np.array(["$5 & $6", r"$\frac$"])
    y = names[causal.target]
    drawn = InvarianceMapDisplay.from_estimator(icm, causal.embeddings, y, y)
    save(drawn)
    scores = {name: {name: 0.5} for name in [r"$\frac$"]}
    save(DomainAccuracyDisplay.from_scores(scores, score_name="$x$ and $"))


def test_labels_may_come_in_any_container(icm, causal):
    Z, y, names = causal.embeddings, causal.target, causal.names
    expected = InvarianceMapDisplay.from_estimator(icm, Z, y, names)
    model = DummyClassifier().fit(Z, y)
    for series in (pd.Series, pl.Series):
        display = InvarianceMapDisplay.from_estimator(icm, Z, series(y), series(names))
        assert_array_equal(display.domains, expected.domains)
        scored = DomainAccuracyDisplay.from_estimator(
            model, Z, series(y), series(names)
        )
        assert list(scored.scores["DummyClassifier"]) == ["source", "target"]
    for frame in (pd.DataFrame(Z), pl.DataFrame(np.asarray(Z))):
        fitted = ICMTransformer(pairs="class", lam=0.1).fit(frame, y)
        display = InvarianceMapDisplay.from_estimator(fitted, frame, y, max_samples=50)
        assert len(display.before) == 50


def test_errors_say_what_to_fit_or_pass(causal):
    with pytest.raises(NotFittedError, match="call fit of the ICMTransformer first"):
        SpectrumDisplay.from_estimator(ICMTransformer())
    message = "in this GridSearchCV is not fitted: .* refit=True"
    with pytest.raises(NotFittedError, match=message):
        SpectrumDisplay.from_estimator(searched(ICMTransformer()))
    pipe = make_pipeline(StandardScaler(), LogisticRegression())
    message = "Expected an ICMTransformer.* steps standardscaler, logisticregression"
    with pytest.raises(ValueError, match=message):
        SpectrumDisplay.from_estimator(pipe)
    with pytest.raises(ValueError, match="GridSearchCV over a LogisticRegression"):
        SpectrumDisplay.from_estimator(GridSearchCV(LogisticRegression(), {}))
    with pytest.raises(ValueError, match="Expected a CLIPFeaturizer"):
        InterventionDisplay.from_estimator(pipe, causal.embeddings)


# Axes


def test_one_ax_is_divided_within_the_users_figure(icm):
    figure, axes = plt.subplots(1, 2, layout="constrained")
    display = SpectrumDisplay.from_estimator(icm, ax=axes[0])
    assert display.figure_ is figure
    save(display)
    edge = axes[1].get_position().x0
    assert all(panel.get_position().x1 < edge for panel in display.axes_.ravel())
    with pytest.raises(ValueError, match="ax=display.axes_"):
        display.plot(ax=axes[0])
    panels = display.axes_
    assert_array_equal(display.plot(ax=panels).axes_, panels)


def test_given_axes_are_used_in_their_order(icm):
    figure, axes = plt.subplots(1, 2)
    display = SpectrumDisplay.from_estimator(icm, ax=axes)
    assert display.axes_.ravel().tolist() == axes.tolist()
    assert len(figure.axes) == 2


def test_wrong_axes_are_refused(icm):
    figure, axes = plt.subplots(1, 3)
    with pytest.raises(ValueError, match=r"3 axes, expected 2 \(2 x 1\)"):
        SpectrumDisplay.from_estimator(icm, ax=axes)
    with pytest.raises(TypeError, match="ax holds a Figure"):
        SpectrumDisplay.from_estimator(icm, ax=figure)
    free = figure.add_axes((0.1, 0.1, 0.5, 0.5))
    with pytest.raises(ValueError, match=r"plt\.subplots, or pass 2 axes"):
        SpectrumDisplay.from_estimator(icm, ax=free)


# Scores by domain

SCORES = {
    "raw": {"photo": [0.9, 0.8], "sketch": [0.5, 0.2]},
    "ICM": {"photo": [0.9, 0.9], "sketch": [0.6, 0.8]},
}


def heights(display, method):
    return [bar.get_height() for bar in display.bars_[method]]


def error_bars(display, method):
    """Half the length of each error bar that is drawn."""
    errors = display.bars_[method].errorbar
    segments = errors.lines[2][0].get_segments() if errors else []
    return [np.ptp(segment[:, 1]) / 2 for segment in segments if len(segment)]


def test_domains_have_mean_and_deviation_of_repeats_and_a_mean_column():
    display = DomainAccuracyDisplay.from_scores(SCORES, score_name="ROC AUC")
    assert_allclose(heights(display, "raw"), [0.85, 0.35, 0.6])
    expected = [np.std(x, ddof=1) for x in ([0.9, 0.8], [0.5, 0.2], [0.7, 0.5])]
    assert_allclose(error_bars(display, "raw"), expected)
    ticks = [tick.get_text() for tick in display.ax_.get_xticklabels()]
    assert ticks == ["photo", "sketch", "mean of\ndomains"]
    assert legend_texts(display.ax_) == ["raw", "ICM"]
    assert display.ax_.get_ylabel() == "ROC AUC"
    save(display)


def test_methods_differ_in_colour_and_hatch():
    scores = {f"method {i}": {"a": i / 20, "b": 0.5} for i in range(20)}
    bars = DomainAccuracyDisplay.from_scores(scores).bars_.values()
    assert len({(b[0].get_facecolor(), b[0].get_hatch()) for b in bars}) == 20


def test_single_scores_have_no_error_bars_and_unequal_repeats_none_for_the_mean():
    single = {"raw": {"a": 0.5, "b": 0.7}}
    assert error_bars(DomainAccuracyDisplay.from_scores(single), "raw") == []
    unequal = {"raw": {"a": [0.4, 0.6], "b": 0.7}}
    display = DomainAccuracyDisplay.from_scores(unequal)
    assert_allclose(heights(display, "raw"), [0.5, 0.7, 0.6])
    assert_allclose(error_bars(display, "raw"), [np.std([0.4, 0.6], ddof=1)])
    save(display)


def test_one_domain_needs_no_mean_column():
    display = DomainAccuracyDisplay.from_scores({"raw": {"a": -0.5}, "ICM": {"a": 0.7}})
    assert heights(display, "raw") == [-0.5]
    save(display)


FEW = ["photograph", "art painting (oil and acrylic)", "cartoon", "sketch"]
MANY = [f"a camera with a long name, number {i} of many" for i in range(30)]


@pytest.mark.parametrize("domains", [FEW, MANY[:12], MANY], ids=len)
def test_no_labels_overlap_with_many_methods_and_long_names(domains):
    rng = np.random.default_rng(0)
    scores = {
        method: {domain: rng.uniform(0.5, 0.9, 3) for domain in domains}
        for method in ["raw", "projection", "whitening", "class pairs", "zero-shot"]
    }
    display = DomainAccuracyDisplay.from_scores(scores)
    save(display)
    ax = display.ax_
    assert not overlapping([*ax.texts, *ax.get_xticklabels()])
    top = ax.get_window_extent().y1
    assert all(text.get_window_extent().y1 < top for text in ax.texts)


def test_scores_fit_into_half_a_figure():
    _, axes = plt.subplots(1, 2, layout="constrained")
    names = ["raw embeddings", "ICM, projection", "ICM, whitening"]
    scores = {name: {"photo": 0.7, "sketch": 0.6} for name in names}
    display = DomainAccuracyDisplay.from_scores(scores, ax=axes[0])
    save(display)
    legend = display.ax_.get_legend().get_window_extent()
    assert not legend.overlaps(axes[1].get_window_extent())


def test_estimators_are_scored_domain_by_domain(causal):
    Z, y, source = causal.embeddings, causal.target, causal.domains == 0
    raw = LogisticRegression().fit(Z[source], y[source])
    pipe = make_pipeline(ICMTransformer(lam=10), LogisticRegression())
    pipe.fit(Z[source], y[source])
    guesses = [
        DummyClassifier(strategy="constant", constant=c).fit(Z, y) for c in (0, 1)
    ]
    _, ax = plt.subplots()
    display = DomainAccuracyDisplay.from_estimator(
        {"raw": raw, "ICM": pipe, "guess": guesses},
        Z,
        y,
        causal.names,
        scoring="accuracy",
        ax=ax,
    )
    assert display.ax_ is ax
    assert list(display.scores["raw"]) == ["source", "target"]
    assert display.scores["raw"]["target"] == [raw.score(Z[~source], y[~source])]
    assert display.scores["ICM"]["target"][0] > display.scores["raw"]["target"][0]
    assert_allclose(sum(display.scores["guess"]["source"]), 1)
    assert ax.get_ylabel() == "accuracy"
    single = DomainAccuracyDisplay.from_estimator(
        raw, Z, y, causal.domains, domain_names=["source", "target"]
    )
    assert list(single.scores) == ["LogisticRegression"]
    assert list(single.scores["LogisticRegression"]) == ["source", "target"]
    with pytest.raises(ValueError, match="domain_names holds 1 name,.* are 0 to 1"):
        DomainAccuracyDisplay.from_estimator(
            raw, Z, y, causal.domains, domain_names=["source"]
        )


@pytest.mark.parametrize(
    ("scoring", "name"),
    [
        (None, "accuracy"),
        ("balanced_accuracy", "balanced accuracy"),
        (make_scorer(roc_auc_score), "roc auc"),
        (interventional_scorer("accuracy"), "accuracy under intervention"),
    ],
)
def test_the_axis_names_the_metric(causal, scoring, name):
    Z, y = causal.embeddings, causal.target
    raw = LogisticRegression().fit(Z, y)
    names = causal.names
    made = DomainAccuracyDisplay.from_estimator(raw, Z, y, names, scoring=scoring)
    assert made.ax_.get_ylabel() == name


def test_names_with_a_leading_underscore_are_in_the_legends(icm, causal):
    scores = {"_raw": {"a": 0.5, "b": 0.5}, "ICM": {"a": 0.5, "b": 0.6}}
    display = DomainAccuracyDisplay.from_scores(scores)
    assert legend_texts(display.ax_) == ["_raw", "ICM"]
    save(display)
    names = np.char.add("_", causal.names)
    shown = InvarianceMapDisplay.from_estimator(
        icm, causal.embeddings, causal.target, names, target_names=["cat", "dog"]
    )
    assert legend_texts(shown.axes_[0, 1]) == ["cat", "dog"]
    assert legend_texts(shown.axes_[1, 1]) == ["_source", "_target"]
    save(shown)


def test_wrong_scores_are_refused(causal):
    refused = DomainAccuracyDisplay.from_scores
    with pytest.raises(
        ValueError, match=r"'b' has .*\['q'\], expected .* 'a', \['p'\]"
    ):
        refused({"a": {"p": 1}, "b": {"q": 1}})
    with pytest.raises(ValueError, match="'a' in domain 'p' is nan"):
        refused({"a": {"p": float("nan")}})
    for wrong in ({}, {"a": {}}, {"a": 0.5}, [0.5]):
        with pytest.raises(ValueError, match="scores is .*, expected {method: {dom"):
            refused(wrong)
    model = DummyClassifier().fit(causal.embeddings, causal.target)
    from_estimator = DomainAccuracyDisplay.from_estimator
    arguments = causal.embeddings, causal.target
    with pytest.raises(ValueError, match="domains has 3 entries, expected 600"):
        from_estimator(model, *arguments, [0, 1, 1])
    with pytest.raises(TypeError, match="dict that names"):
        from_estimator([model], *arguments, causal.domains)
    for nothing in ({}, {"a": []}):
        with pytest.raises(ValueError, match="expected one method and one fitted"):
            from_estimator(nothing, *arguments, causal.domains)


# Interventions


def test_images_stand_beside_what_the_model_sees_of_their_counterparts(
    demo, photographs
):
    display = InterventionDisplay.from_estimator(
        demo, photographs[:3], interventions=["invert", "hue"]
    )
    assert display.axes_.shape == (3, 3)
    seen = [panel.images[0].get_array() for panel in display.axes_[1]]
    resized = demo._encoder().resize(Image.fromarray(photographs[1]))
    assert_array_equal(seen[0], resized)
    for drawn, name in zip(seen[1:], ["invert", "hue"], strict=True):
        assert_array_equal(drawn, intervene(resized, name))

    Z = demo.intervene(photographs[:3], ["invert", "hue"])
    cosines = np.einsum("nd,nkd->nk", Z, Z.counterparts)
    assert_allclose(display.cosines, cosines, atol=1e-5)
    under = [panel.get_xlabel() for panel in display.axes_[1]]
    assert under == ["image 1", *(f"cosine {c:.2f}" for c in cosines[1])]
    above = [panel.get_title() for panel in display.axes_[0]]
    between = (np.sum(np.asarray(Z) @ np.asarray(Z).T) - 3) / 6
    assert above[0] == f"as the model sees it\ntwo images: cosine {between:.2f}"
    assert above[1:] == ["invert", "hue"]
    save(display)


def test_preview_draws_the_featurizers_own_interventions(photographs, tmp_path):
    path = tmp_path / "a_photograph_with_a_rather_long_name_01.png"
    Image.fromarray(photographs[0]).save(path)
    display = CLIPFeaturizer("demo", n_interventions=2).preview([path])
    figure = display.figure_
    titles = [panel.get_title() for panel in figure.axes]
    assert titles[1:] == ["photometric, draw 1", "photometric, draw 2"]
    name = figure.axes[0].get_xlabel()
    assert name.startswith("a_photo")
    assert name.endswith("_01.png")
    assert len(name) <= 22
    assert figure is plt.gcf()


def test_pictures_and_cosines_belong_together_with_a_random_state(photographs):
    featurizer = CLIPFeaturizer("demo", random_state=np.random.RandomState(0))
    display = InterventionDisplay.from_estimator(featurizer, photographs[:2])
    Z = featurizer.transform(photographs[:2])
    Z_do = featurizer.transform(display.counterparts[:, 0])
    assert_allclose(display.cosines[:, 0], np.sum(Z * Z_do, axis=1), atol=1e-5)


def test_preview_needs_no_fit_of_what_holds_the_featurizer(demo, photographs):
    pipe = make_pipeline(demo, ICMTransformer(), LogisticRegression())
    for estimator in (pipe, GridSearchCV(pipe, {"icmtransformer__lam": [1]})):
        display = InterventionDisplay.from_estimator(estimator, photographs[:1])
        assert display.cosines.shape == (1, 1)


def test_images_and_interventions_that_cannot_be_drawn(demo, photographs, tmp_path):
    with pytest.raises(ValueError, match=r"36 images, at most 32 .* X\[:8\]"):
        demo.preview(np.concatenate([photographs] * 6))
    with pytest.raises(ValueError, match="There is no intervention"):
        CLIPFeaturizer("demo", interventions=None).preview(photographs)
    with pytest.raises(ValueError, match="'inverse' is not an intervention"):
        InterventionDisplay.from_estimator(demo, photographs, interventions="inverse")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    with pytest.raises(ImageError, match="broken.png"):
        CLIPFeaturizer("demo", on_error="nan").preview([broken])


# Map


def offsets(panel):
    return np.concatenate([points.get_offsets() for points in panel.collections])


def spread_between(points, labels):
    """Share of the variance that lies between the groups."""
    means = [points[labels == label].mean(axis=0) for label in np.unique(labels)]
    return np.var(means, axis=0).sum() / np.var(points, axis=0).sum()


def test_map_shows_classes_apart_and_domains_mixed_after_icm(icm, causal):
    Z, y = causal.embeddings, causal.target
    crossed = np.where((y == 1) == (causal.domains == 0), "a", "b")
    display = InvarianceMapDisplay.from_estimator(icm, Z, y, crossed)
    assert spread_between(display.after, y) > 0.7
    assert spread_between(display.before, crossed) > 0.3
    assert spread_between(display.after, crossed) < 0.01
    for panels in display.axes_:
        assert len(offsets(panels[0])) == len(offsets(panels[1])) == len(Z)
    first = display.axes_[1, 1].collections[0].get_offsets()
    assert_allclose(first, display.after[crossed == "a"])
    assert [p.get_title() for p in display.axes_[0]] == ["before ICM", "after ICM"]
    assert [legend_texts(p) for p in display.axes_[:, 1]] == [["0", "1"], ["a", "b"]]
    share = np.var(display.after[:, 0]) / np.var(icm.transform(Z), axis=0).sum()
    assert f"PC 1 ({share:.0%} of variance)" == display.axes_[0, 1].get_xlabel()
    save(display)


def test_map_without_domains_has_one_row(icm, causal):
    display = InvarianceMapDisplay.from_estimator(
        icm, causal.embeddings, causal.target_names * 300
    )
    assert display.axes_.shape == (1, 2)
    assert legend_texts(display.axes_[0, 1]) == causal.target_names
    save(display)


@pytest.mark.parametrize("n_groups, n_entries", [(10, 10), (14, 10)])
def test_groups_differ_in_colour_and_marker_and_the_smallest_are_summed_up(
    icm, causal, n_groups, n_entries
):
    y = np.minimum(np.arange(600) % 20, n_groups - 1)
    display = InvarianceMapDisplay.from_estimator(icm, causal.embeddings, y)
    panel = display.axes_[0, 1]
    texts = legend_texts(panel)
    assert len(texts) == n_entries
    assert ("5 smaller ones" in texts) == (n_groups == 14)
    assert str(n_groups - 1) in texts
    assert len(offsets(panel)) == 600
    looks = [tuple(points.get_facecolor()[0]) for points in panel.collections]
    shapes = {points.get_paths()[0].vertices.tobytes() for points in panel.collections}
    assert len(set(looks)) == len(shapes) == n_entries
    save(display)


def test_map_encodes_only_the_rows_it_draws(demo, photographs, forward_rows):
    y = [0, 0, 1, 1, 0, 1]
    pipe = make_pipeline(demo, ICMTransformer(n_components=2), LogisticRegression())
    pipe.set_params(clipfeaturizer__cache=None).fit(photographs, y)
    encoded = forward_rows()
    new = [Image.fromarray(255 - pixels) for pixels in photographs]
    display = InvarianceMapDisplay.from_estimator(pipe, new, y, y, max_samples=4)
    assert forward_rows() == encoded + 4
    assert display.before.shape == display.after.shape == (4, 2)
    again = InvarianceMapDisplay.from_estimator(pipe, new, y, y, max_samples=4)
    assert_array_equal(again.after, display.after)


def test_images_may_come_in_any_container(demo, photographs, tmp_path):
    y = np.array([0, 0, 1, 1, 0, 1])
    pipe = make_pipeline(demo, ICMTransformer(n_components=2), LogisticRegression())
    pipe.fit(photographs, y)
    paths = [str(tmp_path / f"{i}.png") for i in range(6)]
    for path, pixels in zip(paths, photographs, strict=True):
        Image.fromarray(pixels).save(path)
    expected = InvarianceMapDisplay.from_estimator(pipe, photographs, y, max_samples=4)
    tensor = torch.from_numpy(photographs).permute(0, 3, 1, 2)
    for X in (paths, pd.Series(paths, index=list("uvwxyz")), pl.Series(paths), tensor):
        display = InvarianceMapDisplay.from_estimator(pipe, X, y, max_samples=4)
        assert_allclose(display.after, expected.after, atol=1e-5)
        scored = DomainAccuracyDisplay.from_estimator(pipe, X, y, y)
        assert set(scored.scores["Pipeline"]) == {"0", "1"}


def test_map_of_a_single_direction(causal):
    icm = ICMTransformer(n_components=1).fit(causal.embeddings)
    display = InvarianceMapDisplay.from_estimator(
        icm, causal.embeddings, causal.target, causal.domains
    )
    assert not display.after[:, 1].any()
    save(display)


def test_map_of_a_single_row_has_no_variance_to_share(icm, causal):
    display = InvarianceMapDisplay.from_estimator(icm, causal.embeddings[:1], [0])
    assert display.axes_[0, 0].get_xlabel() == "PC 1 (0% of variance)"


def test_lines_are_seen_on_a_dark_ground(icm, causal):
    with plt.style.context("dark_background"):
        ground = matplotlib.colors.to_rgba("black")
        spectrum = SpectrumDisplay.from_estimator(icm)
        scores = {"raw": {"a": [0.5, 0.6], "b": [0.6, 0.7]}}
        by_domain = DomainAccuracyDisplay.from_scores(scores)
        for ax in (*spectrum.axes_.ravel(), by_domain.ax_):
            drawn = [line.get_color() for line in ax.lines]
            assert ground not in map(matplotlib.colors.to_rgba, drawn)
        edges = {bar.get_edgecolor() for bar in by_domain.bars_["raw"]}
        [whiskers] = by_domain.bars_["raw"].errorbar[2]
        assert ground not in {*edges, tuple(whiskers.get_color()[0])}
        negative = spectrum.axes_[0, 0].patches[1]
        assert negative.get_facecolor() == ground


def test_map_refuses_labels_that_do_not_fit(icm, causal):
    Z, y = causal.embeddings, causal.target
    with pytest.raises(ValueError, match="y has 10 entries, expected 600"):
        InvarianceMapDisplay.from_estimator(icm, Z, y[:10])
    with pytest.raises(ValueError, match="domains has 1 entries, expected 600"):
        InvarianceMapDisplay.from_estimator(icm, Z, y, [0])
    with pytest.raises(ValueError, match="max_samples is 0"):
        InvarianceMapDisplay.from_estimator(icm, Z, y, max_samples=0)
    with pytest.raises(NotFittedError):
        InvarianceMapDisplay.from_estimator(ICMTransformer(), Z, y)


# matplotlib


def test_matplotlib_is_imported_when_drawing_only():
    code = "import sys, skclip_icm.plotting; print('matplotlib' in sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_missing_matplotlib_is_named_with_its_extra(icm, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r'pip install "skclip-icm\[plot\]"'):
        SpectrumDisplay.from_estimator(icm)
