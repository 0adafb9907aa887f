"""What a user relies on when classifying images by the names of classes."""

import pickle
import warnings
from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from skclip_icm import (
    CLIPFeaturizer,
    ICMTransformer,
    PairedEmbeddings,
    ZeroShotClassifier,
    interventional_scorer,
    invariant_search,
)
from skclip_icm._encoding.encoder import load_encoder
from skclip_icm._encoding.stores import open_cache
from skclip_icm.interventions._captions import captions

NAMES = ["cat", "dog", "car"]


class KnownFeaturizer(BaseEstimator):
    """An "image" is (class, style); style outweighs content in every embedding.

    Directions 0 to 2 hold the class, 3 to 5 the style, mixed by a rotation. The
    prompt of class c looks like style c, so that plain CLIP recognises the style.
    """

    encoded_texts: list = []
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]

    def __init__(self, interventions="style", cache=None):
        self.interventions = interventions
        self.cache = cache

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return self._rows([content for content, _ in X], [style for _, style in X])

    def fit_transform(self, X, y=None):
        return self.transform(X) if self.interventions is None else self.intervene(X)

    def intervene(self, X, interventions=None):
        moved = [self.transform([(c, (s + k) % 3) for c, s in X]) for k in (1, 2)]
        return PairedEmbeddings(self.transform(X), np.stack(moved, axis=1))

    def encode_text(self, texts):
        self.encoded_texts.extend(texts)
        contents = [next(i for i, n in enumerate(NAMES) if n in t) for t in texts]
        styles = [
            1 if "sketch" in t else c for t, c in zip(texts, contents, strict=True)
        ]
        # Different lengths, as with normalize=False.
        return self._rows(contents, styles) * (1 + np.arange(len(texts)))[:, None]

    def _encoder(self):
        return SimpleNamespace(fingerprint="known", logit_scale=10.0, logit_bias=-3.0)

    def _rows(self, contents, styles):
        eye = np.eye(6)
        rows = eye[list(contents)] + 3 * eye[3 + np.array(styles)]
        return (rows @ self.rotation).astype(np.float32)


@pytest.fixture
def known():
    open_cache(None).clear()
    KnownFeaturizer.encoded_texts.clear()
    images = list(product(range(3), range(3))) * 2
    return images, np.array([content for content, _ in images])


@pytest.fixture
def classifier():
    return ZeroShotClassifier(
        KnownFeaturizer(), ICMTransformer(lam=10), class_names=NAMES
    )


# The only array of numbers that it takes are embeddings as wide as its prompts', so
# scikit-learn leaves out the checks that feed other arrays.
@pytest.mark.filterwarnings("ignore:Can't test estimator")
@parametrize_with_checks(
    [ZeroShotClassifier(CLIPFeaturizer("demo"), class_names=NAMES)]
)
def test_sklearn_contract(estimator, check):
    check(estimator)


def test_without_icm_it_is_clip(photographs):
    featurizer = CLIPFeaturizer("demo", normalize=False)
    plain = ZeroShotClassifier(featurizer, class_names=NAMES).fit(photographs)
    I, T = (  # noqa: E741
        torch.nn.functional.normalize(torch.from_numpy(rows), dim=-1)
        for rows in (
            featurizer.transform(photographs),
            featurizer.encode_text([f"a photo of a {name}." for name in NAMES]),
        )
    )
    scale = load_encoder("demo", None).logit_scale
    expected = (scale * I @ T.T).softmax(dim=-1).numpy()
    assert_allclose(plain.predict_proba(photographs), expected, atol=1e-5)
    assert plain.predict(photographs).tolist() == [
        NAMES[i] for i in expected.argmax(axis=1)
    ]


@pytest.mark.parametrize(
    "icm", [ICMTransformer(lam=10), ICMTransformer(method="whitening", shrinkage=0.01)]
)
def test_icm_removes_a_planted_style(known, icm):
    images, y = known
    plain = ZeroShotClassifier(KnownFeaturizer(), class_names=NAMES).fit(images)
    by_style = [NAMES[style] for _, style in images]
    assert plain.predict(images).tolist() == by_style
    classifier = ZeroShotClassifier(KnownFeaturizer(), icm, class_names=NAMES)
    assert classifier.fit(images).predict(images).tolist() == [NAMES[c] for c in y]
    assert classifier.icm_.pairs_ == "interventional"


def test_icm_from_caption_pairs(known):
    images, y = known
    featurizer = KnownFeaturizer(interventions=None)
    by = ["a photo of a {}", "a sketch of a {}"]
    rows = [(0, 0), (1, 0), (2, 0)], [(0, 1), (1, 1), (2, 2)]
    U, V = map(featurizer.transform, rows)
    U2, V2 = map(featurizer.encode_text, captions(NAMES, by))
    icm = ICMTransformer(pairs=(np.vstack([U, U2]), np.vstack([V, V2])), lam=10)
    classifier = ZeroShotClassifier(featurizer, icm, class_names=NAMES)
    assert classifier.fit(images, y).score(images, y) == 1
    assert classifier.icm_.pairs_ == "given"


def test_embeddings_in_place_of_images(known, classifier):
    images, y = known
    expected = classifier.fit(images, y).predict_proba(images)
    Z = KnownFeaturizer().intervene(images)
    frame = pd.DataFrame(KnownFeaturizer().transform(images)).add_prefix("clip")
    again = clone(classifier).fit(Z, y)
    for X in (images, Z, np.asarray(Z, np.float64), frame):
        assert_allclose(again.predict_proba(X), expected, atol=1e-6)
    assert again.n_features_in_ == 6


def test_labels_never_influence_the_map(known, classifier):
    images, y = known
    one = clone(classifier).fit(images, y)
    other = clone(classifier).fit(images, y[::-1])
    assert_array_equal(one.icm_.components_, other.icm_.components_)
    assert_array_equal(one.text_embeddings_, other.text_embeddings_)


@pytest.mark.parametrize(
    ("class_names", "code"),
    [
        (NAMES, [0, 1, 2]),
        (NAMES, NAMES),
        (None, NAMES),
        (dict(zip([7, -1, 5], NAMES, strict=True)), [7, -1, 5]),
        ({"k9": "dog", "fe": "cat", "au": "car"}, ["fe", "k9", "au"]),
    ],
)
def test_predictions_are_coded_as_y(known, classifier, class_names, code):
    images, y = known
    labels = np.array(code)[y]
    classifier.set_params(class_names=class_names).fit(images, labels)
    assert_array_equal(classifier.predict(images), labels)
    assert_array_equal(classifier.classes_, np.unique(labels))
    assert classifier.classes_.dtype.kind == labels.dtype.kind
    best = classifier.predict_proba(images).argmax(axis=1)
    assert_array_equal(classifier.classes_[best], labels)


@pytest.mark.filterwarnings("ignore:The model gives the same")
@pytest.mark.filterwarnings("ignore:The number of unique classes")
@pytest.mark.parametrize(
    ("y", "n_names"),
    [
        (np.arange(256, dtype=np.uint8), 300),
        (np.array([False, True]), 3),
        (np.arange(100, dtype=np.int8), 200),
        (np.array([False, True]), 2),
    ],
)
def test_labels_do_not_wrap(known, y, n_names):
    names = [f"{NAMES[i % 3]} {i}" for i in range(n_names)]
    model = ZeroShotClassifier(KnownFeaturizer(), class_names=names).fit(
        [(0, 0)] * len(y), y
    )
    assert_array_equal(model.classes_, np.arange(n_names))


def test_classes_without_labels_keep_their_order(known, classifier):
    images, _ = known
    assert classifier.fit(images).classes_.tolist() == NAMES
    named = classifier.set_params(class_names={2: "car", 0: "cat"}).fit(images)
    assert named.classes_.tolist() == [2, 0]


def test_a_class_that_is_named_but_absent_can_be_predicted(known, classifier):
    """As in a fold that happens to lack a class."""
    images, y = known
    seen = np.flatnonzero(y != 1)
    # Which drops no direction, such as what only this class has.
    classifier.set_params(icm=ICMTransformer(method="whitening", shrinkage=0.01))
    classifier.fit([images[i] for i in seen], y[seen])
    assert 1 in classifier.predict(images)


def test_probabilities_and_decision(known, classifier):
    images, y = known
    P = classifier.fit(images).predict_proba(images)
    assert_allclose(P.sum(axis=1), 1, rtol=1e-5)
    logits = classifier.decision_function(images)
    assert np.abs(logits).max() <= classifier.logit_scale_ + 1e-4
    assert_allclose(np.log(P[:, 1] / P[:, 0]), logits[:, 1] - logits[:, 0], atol=1e-4)
    classifier.set_params(class_names=["dog", "cat"]).fit(images)
    margin = classifier.decision_function(images)
    assert margin.shape == (len(images),)
    chosen = classifier.classes_[(margin > 0).astype(int)]
    assert_array_equal(chosen, classifier.predict(images))


def test_icm_leaves_spread_and_mean_of_the_logits(known, classifier):
    """Else unit length, after the projection, makes nearly all of them certain."""
    images, _ = known
    for link in ("softmax", "sigmoid"):
        with_icm = clone(classifier).set_params(link=link).fit(images)
        plain = clone(with_icm).set_params(icm=None).fit(images)
        mapped, whole = (m.decision_function(images) for m in (with_icm, plain))
        assert_allclose(mapped.var(axis=1).mean(), whole.var(axis=1).mean(), rtol=1e-4)
        if link == "sigmoid":
            assert_allclose(mapped.mean(), whole.mean(), rtol=1e-4)
        assert plain.logit_scale_ == 10
    # One class, of which there is no spread.
    one = clone(classifier).set_params(class_names=["cat"]).fit(images)
    assert one.logit_scale_ == 10


def test_classes_that_the_map_makes_alike_are_told(known, classifier):
    images, _ = known
    with pytest.warns(UserWarning, match="After the map .* 'cat' and 'car': of these"):
        classifier.set_params(icm__n_components=1).fit(images)
    # Prompts of nothing but what the map takes out.
    Z, T = (np.eye(6, dtype=np.float32)[rows] for rows in ([0, 1, 2] * 6, [3, 4, 5]))
    shifts = np.eye(6)[[3, 4, 5] * 6, None]
    classifier.set_params(icm=ICMTransformer(lam=100), class_names=NAMES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KnownFeaturizer, "encode_text", lambda self, texts: T)
        open_cache(None).clear()
        with pytest.warns(UserWarning, match="nothing is left of the prompts of 'cat'"):
            classifier.fit(PairedEmbeddings(Z, Z[:, None] + shifts))
    open_cache(None).clear()


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_the_length_of_embeddings_does_not_matter(factor, known, classifier):
    images, _ = known
    Z = KnownFeaturizer().transform(images)
    classifier.set_params(icm=None).fit(images)
    found = classifier.predict_proba(Z * np.float32(factor))
    assert_allclose(found, classifier.predict_proba(Z), rtol=1e-4)


def test_sigmoid_judges_each_class_by_itself(known, classifier):
    images, _ = known
    model = classifier.set_params(link="sigmoid").fit(images)
    P, logits = model.predict_proba(images), model.decision_function(images)
    assert_allclose(P, 1 / (1 + np.exp(-logits)), rtol=1e-5)
    assert not np.allclose(P.sum(axis=1), 1)
    assert_array_equal(model.classes_[P.argmax(axis=1)], model.predict(images))
    plain = clone(model).set_params(icm=None).fit(images)
    cosines = (plain.decision_function(images) + 3) / 10
    assert np.abs(cosines).max() <= 1 + 1e-6
    with pytest.raises(ValueError, match="link='sigmoid' is for models .* SigLIP"):
        ZeroShotClassifier(
            CLIPFeaturizer("demo"), class_names=NAMES, link="sigmoid"
        ).fit(images)


def test_frames_as_output_of_transformers_change_nothing(photographs):
    icm = ICMTransformer(method="whitening")
    classifier = ZeroShotClassifier(CLIPFeaturizer("demo"), icm, class_names=NAMES)
    expected = clone(classifier).fit(photographs).predict_proba(photographs)
    for output in ("pandas", "polars"):
        pytest.importorskip(output)
        with config_context(transform_output=output):
            found = clone(classifier).fit(photographs).predict_proba(photographs)
        assert_array_equal(found, expected)


def test_a_frame_with_paths_among_other_columns_is_told(known, classifier):
    frame = pd.DataFrame({"path": ["a.jpg", "b.jpg"], "age": [1, 2]})
    with pytest.raises(ValueError, match="frame of 2 columns.*Select one"):
        ZeroShotClassifier(CLIPFeaturizer("demo"), class_names=NAMES).fit(frame)


@pytest.mark.parametrize(("value", "name"), [(np.nan, "wombat"), (0.0, "quokka")])
def test_texts_of_nan_are_an_error_and_not_kept(value, name, monkeypatch, photographs):
    encoder = load_encoder("demo", None)
    classifier = ZeroShotClassifier(CLIPFeaturizer("demo"), class_names=[name])
    with monkeypatch.context() as patch:
        patch.setattr(
            encoder._model,
            "encode_text",
            lambda t, normalize: torch.full((1, 9), value),
        )
        with pytest.raises(
            RuntimeError, match=rf"texts\[0\], 'a photo of a {name}.'.*NaN"
        ):
            classifier.fit(photographs)
    assert np.isfinite(classifier.fit(photographs).text_embeddings_).all()


def test_prompt_ensemble_averages_unit_embeddings(known, classifier):
    images, _ = known
    templates = ["a photo of a {}.", "a sketch of a {}.", "{}"]
    forwards = clone(classifier).set_params(templates=templates).fit(images)
    backwards = clone(classifier).set_params(templates=templates[::-1]).fit(images)
    assert_allclose(forwards.text_embeddings_, backwards.text_embeddings_, atol=1e-6)
    single = [
        clone(classifier).set_params(templates=t).fit(images).text_embeddings_
        for t in templates
    ]
    mean = np.mean(single, axis=0)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    assert_allclose(forwards.text_embeddings_, mean, atol=1e-6)


def test_several_names_of_a_class_make_prompts_each(known, classifier):
    images, _ = known
    templates = ["a photo of a {}.", "a sketch of a {}."]
    many = clone(classifier).set_params(
        class_names=[["cat", "cat, asleep"], "dog", ("car",)], templates=templates
    )
    many.fit(images)
    assert many.classes_.tolist() == NAMES
    assert set(KnownFeaturizer.encoded_texts) == {
        t.replace("{}", name)
        for t in templates
        for name in ("cat", "cat, asleep", "dog", "car")
    }
    single = clone(classifier).set_params(templates=templates).fit(images)
    assert_allclose(many.text_embeddings_, single.text_embeddings_, atol=1e-6)
    labelled = clone(many).set_params(class_names={7: ["cat", "dog"], 5: "car"})
    assert labelled.fit(images, [7, 5] * 9).classes_.tolist() == [5, 7]
    with pytest.raises(ValueError, match="'cat' more than once"):
        many.set_params(class_names=[["cat", "dog"], "cat"]).fit(images)
    with pytest.raises(TypeError, match=r"class_names\[1\]\[1\] is 3"):
        many.set_params(class_names=["cat", ["dog", 3]]).fit(images)


def test_templates_by_class(known, classifier):
    images, y = known
    templates = {0: "a {}, asleep", 1: ["a {}", "a dog at play"], 2: "a car"}
    classifier.set_params(templates=templates).fit(images, y)
    assert sorted(KnownFeaturizer.encoded_texts) == sorted(
        ["a cat, asleep", "a dog", "a dog at play", "a car"]
    )
    with pytest.raises(ValueError, match="expected those of all classes.* in 2.*Give"):
        classifier.set_params(templates={0: "a", 1: "b"}).fit(images, y)
    with pytest.raises(ValueError, match=r"templates\[0\] is empty"):
        classifier.set_params(templates={0: [], 1: "b", 2: "c"}).fit(images, y)


@pytest.mark.filterwarnings("ignore:The model gives the same")
def test_each_text_is_encoded_once(known, classifier):
    images, y = known
    cross_val_score(classifier, images, y, cv=2, error_score="raise")
    classifier.set_params(icm__lam=3, class_names=[*NAMES, "dogs"]).fit(images)
    assert sorted(KnownFeaturizer.encoded_texts) == [
        f"a photo of a {name}." for name in ("car", "cat", "dog", "dogs")
    ]


@pytest.mark.parametrize("precomputed", [False, True])
@pytest.mark.parametrize("scoring", ["accuracy", interventional_scorer("accuracy")])
def test_grid_search(known, classifier, scoring, precomputed):
    images, y = known
    X = KnownFeaturizer().intervene(images) if precomputed else images
    search = GridSearchCV(
        classifier,
        {"icm__lam": [0, 10], "icm__method": ["projection", "whitening"]},
        scoring=scoring,
        cv=2,
        error_score="raise",
    ).fit(X, y)
    assert search.best_score_ == 1
    assert search.best_estimator_.score(images, y) == 1
    choice = GridSearchCV(
        classifier, {"icm": [None, ICMTransformer(lam=10)]}, scoring=scoring, cv=2
    ).fit(X, y)
    assert choice.best_params_["icm"] is not None


@pytest.mark.filterwarnings("ignore:The model gives the same")
def test_on_photographs(elpv):
    images, y = elpv.images[::4], elpv.target[::4]
    names = ["intact solar cell", "broken solar cell"]
    classifier = ZeroShotClassifier(
        CLIPFeaturizer("demo", interventions="invert"),
        ICMTransformer(method="whitening"),
        class_names=names,
    ).fit(images, y)
    assert set(classifier.predict(images)) <= {0, 1}
    scored = interventional_scorer("accuracy", "gaussian_blur")(classifier, images, y)
    counterparts = classifier.featurizer_.intervene(images, "gaussian_blur")
    assert scored == classifier.score(counterparts.counterparts[:, 0], y)
    framed = clone(classifier)
    framed.featurizer.set_output(transform="pandas")
    framed.fit(images, y)
    assert_allclose(framed.predict_proba(images), classifier.predict_proba(images))
    assert interventional_scorer()(framed, images, y) == interventional_scorer()(
        classifier, images, y
    )


def test_clone_and_pickle(known, classifier, photographs):
    images, y = known
    assert clone(classifier).get_params()["icm__lam"] == 10
    with pytest.raises(NotFittedError):
        classifier.predict(images)
    icm, featurizer = classifier.icm, classifier.featurizer
    classifier.fit(images, y)
    assert not hasattr(icm, "components_")
    assert classifier.featurizer is featurizer
    loaded = pickle.loads(pickle.dumps(classifier))
    assert_array_equal(loaded.predict_proba(images), classifier.predict_proba(images))
    plain = ZeroShotClassifier(CLIPFeaturizer("demo"), class_names=NAMES)
    assert len(pickle.dumps(plain.fit(photographs))) < 50_000


@pytest.mark.parametrize(
    ("params", "labels", "message"),
    [
        ({"class_names": None}, None, "classes have no names"),
        ({"class_names": []}, None, "class_names is empty"),
        ({"class_names": ["cat", "cat"]}, None, "'cat' more than once"),
        ({"class_names": ["cat", 3]}, None, r"class_names\[1\] is 3"),
        ({"class_names": "cat"}, None, "class_names"),
        ({"class_names": ["cat", "dog"]}, [0, 1, 2], r"y\[6\] is .*2.*unknown class"),
        (
            {"class_names": NAMES},
            ["cat", "dog", "bus"],
            "bus.*names the 3 labels 'cat'",
        ),
        (
            {"class_names": {1: "cat", 2: "dog"}},
            [1, 2, 3],
            "unknown class.*labels 1, 2",
        ),
        ({"templates": "a photo"}, None, r"templates\[0\] is 'a photo', .*no slot"),
        ({"templates": []}, None, "templates is empty"),
        (
            {"templates": ["{}", "{} {name}"]},
            None,
            r"whose \{name\} would .*The slot .* is \{\}",
        ),
        (
            {"class_names": ["a", "b"], "templates": {"a": "a {0}", "b": "b"}},
            None,
            r"'a \{0\}', whose \{0\} would be read as it is",
        ),
        ({"icm": object()}, None, "icm"),
        ({"featurizer__interventions": None}, [0, 1, 2], "no counterparts to learn"),
        ({"icm__pairs": "class"}, [0, 1, 2], "icm asks for labels"),
        ({"icm__center": "domain"}, [0, 1, 2], "icm asks for labels"),
        ({}, [0.5, 1.5, 2.7], "Unknown label type|unknown"),
    ],
)
def test_bad_input(known, classifier, params, labels, message):
    images, y = known
    labels = None if labels is None else np.array(labels)[y]
    with pytest.raises((TypeError, ValueError), match=message):
        classifier.set_params(**params).fit(images, labels)


def test_bad_rows(known, classifier):
    images, y = known
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        classifier.fit(images, y[:-1])
    with pytest.raises(ValueError, match="5 features, but .* expecting 6"):
        classifier.fit(np.ones((4, 5)))
    with pytest.raises(ValueError, match="5 features, but .* expecting 6"):
        classifier.fit(images).predict(np.ones((4, 5)))
    paired = KnownFeaturizer().intervene(images)
    with pytest.raises(ValueError, match="precomputed embeddings are fixed"):
        interventional_scorer("accuracy", "invert")(classifier, paired, y)


def test_invariant_search_on_embeddings_and_on_images(known, classifier):
    images, y = known
    score, fitted = interventional_scorer(), clone(classifier).fit(images, y)
    assert score(FrozenEstimator(fitted), images, y) == score(fitted, images, y)
    for X in (KnownFeaturizer().intervene(images), images):
        search = invariant_search(classifier, {"icm__lam": [0.1, 10]}, cv=2)
        search.fit(X, y)
        assert np.isfinite(search.cv_results_["mean_test_score"]).all()


@pytest.mark.parametrize("y", [[3, 5, 3], [True, False, True]])
def test_numbers_for_names_are_warned_of(y, photographs):
    classifier = ZeroShotClassifier(CLIPFeaturizer("demo"))
    with pytest.warns(UserWarning, match="prompts name the classes by these") as told:
        classifier.fit(photographs[:3], y)
    assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier.fit(photographs[:3], ["cat", "dog", "cat"])
