"""What a user relies on when making pairs of captions."""

import random

import numpy as np
import pytest

from skclip_icm import CLIPFeaturizer, ICMTransformer
from skclip_icm.interventions import captions
from skclip_icm.interventions._captions import LEXICON, TEMPLATES

NAMES = ["dog", "oak tree", "fire engine", "teapot"]


def test_templates_keep_the_content_and_change_the_style():
    originals, edited = captions(NAMES, n_interventions=5)
    assert len(originals) == len(edited) == 20
    for i, (one, other) in enumerate(zip(originals, edited, strict=True)):
        name = NAMES[i // 5]
        assert one != other
        assert {one, other} <= {t.replace("{}", name) for t in TEMPLATES}
    assert len({one for one in originals if "dog" in one}) > 1


@pytest.mark.parametrize(
    "by", ["templates", "lexicon", lambda text, rng: f"{text} {rng.random()}"]
)
def test_a_pair_depends_on_seed_and_content_alone(by):
    forwards = captions(NAMES, by, n_interventions=2)
    backwards = captions(NAMES[::-1], by, n_interventions=2)
    assert sorted(zip(*forwards, strict=True)) == sorted(zip(*backwards, strict=True))
    one = captions(NAMES[1:2], by)
    assert (forwards[0][2], forwards[1][2]) == (one[0][0], one[1][0])
    assert captions(NAMES, by, random_state=1) != captions(NAMES, by)


def test_braces_in_templates_and_names_mean_nothing():
    by = ["{x} of {}", "{0} of {}"]
    pair = captions(["a {} {y}"], by)
    assert {pair[0][0], pair[1][0]} == {"{x} of a {} {y}", "{0} of a {} {y}"}


@pytest.mark.parametrize(
    ("caption", "group", "edit"),
    [
        ("a red car", ["red", "blue"], "a blue car"),
        ("a red car", ["red", "orange"], "an orange car"),
        ("An orange car", ["red", "orange"], "A red car"),
        ("Red cars", ["red", "blue"], "Blue cars"),
        ("a RED, reduced car", ["red", "blue"], "a Blue, reduced car"),
        ("an oil painting", ["painting", "oil painting"], "a painting"),
        ("cat in the rain.", ["in the rain", "at home"], "cat at home."),
        ("a teapot", ["red", "in the rain"], "a teapot, in the rain"),
        ("a teapot. ", ["red", "in the rain"], "a teapot, in the rain."),
    ],
)
def test_lexicon_edits(caption, group, edit):
    assert captions([caption], {"group": group}) == ([caption], [edit])


def test_lexicon_swaps_within_the_group_only():
    text = "a sunny photo of a red door at night"
    _, edited = captions([text], "lexicon", n_interventions=60)
    expected = {
        text.replace(word, other)
        for word, group in [
            ("sunny", "weather"),
            ("photo", "medium"),
            ("red", "colour"),
            ("at night", "time"),
        ]
        for other in LEXICON[group]
        if other != word
    }
    assert set(edited) <= expected
    for word in ("sunny", "photo", "red", "at night"):
        assert any(word not in edit for edit in edited)


def test_callables_without_a_generator_are_reproducible():
    def reword(caption):
        return f"{caption} {random.random()} {np.random.random()}"

    state = random.getstate()
    assert captions(NAMES, reword) == captions(NAMES, reword)
    assert random.getstate() == state
    assert len({edit.split()[-1] for edit in captions(NAMES, reword)[1]}) == 4


def test_caption_pairs_fit_the_projection_of_image_embeddings(photographs):
    featurizer = CLIPFeaturizer("demo")
    U, V = map(featurizer.encode_text, captions(NAMES, n_interventions=3))
    Z = featurizer.transform(photographs)
    icm = ICMTransformer(pairs=(U, V)).fit(Z)
    assert icm.pairs_ == "given"
    assert icm.n_pairs_seen_ == 12
    both = ICMTransformer(pairs=(U, V, 0.5)).fit(featurizer.fit_transform(photographs))
    assert both.pairs_ == "interventional+given"
    assert both.n_pairs_seen_ == 18


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([],), ValueError, "contents is empty"),
        (("dog",), TypeError, "contents is the string 'dog', expected a list"),
        ((["dog", 3],), TypeError, r"contents\[1\] is 3 of type int"),
        ((["dog", " "],), ValueError, r"contents\[1\] is blank"),
        ((["dog"], "lexikon"), ValueError, "'by' parameter of captions"),
        (
            (["dog"], ["a {}", "a photo"]),
            ValueError,
            r"by\[1\] is 'a photo', .*no slot",
        ),
        ((["dog"], ["a {}", "a {}"]), ValueError, "the template 'a {}' only"),
        ((["dog"], []), ValueError, "by is empty"),
        ((["dog"], {}), ValueError, "by is empty"),
        ((["dog"], {"colour": ["red", "Red"]}), ValueError, r"by\['colour'\] holds"),
        ((["dog"], {"colour": "red"}), TypeError, r"by\['colour'\] is the string"),
        (
            (["a red dog", "dog"], {"colour": ["red", "blue"]}),
            ValueError,
            r"contents\[1\], 'dog', holds no word of the lexicon",
        ),
        ((["dog"], lambda text: None), TypeError, r"None .*for contents\[0\], 'dog'"),
        ((["dog"], lambda text: text), ValueError, "every caption unchanged"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        captions(*arguments)


def test_errors_of_a_callable_say_which_caption():
    with pytest.raises(ZeroDivisionError) as caught:
        captions(["dog", "cat"], lambda text: str(1 / (text == "dog")))
    assert "contents[1], 'cat'" in caught.value.__notes__[0]


def test_texts_that_are_cut_are_told_where_they_come_from():
    featurizer = CLIPFeaturizer("demo")
    with pytest.warns(UserWarning, match="were cut, the first texts.1., 'cat ") as told:
        featurizer.encode_text(["a cat", "cat " * 99])
    assert told[0].filename == __file__
