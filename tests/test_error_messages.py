"""Every error and warning of the package says what, where, and what to do."""

import ast
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline

import skclip_icm
from skclip_icm import (
    CLIPFeaturizer,
    ICMTransformer,
    PairedEmbeddings,
    ZeroShotClassifier,
    invariant_search,
)
from skclip_icm.datasets import make_causal_embeddings

PACKAGE = Path(skclip_icm.__file__).parent
VALUE = "<value>"  # stands for a formatted value in the text of a message
# Raised for code of this package, which catches them.
INTERNAL = {"DatabaseError", "_UnknownError"}
COMMAND = re.compile(r"(Run[^.]*: |: pip install |: npm install )[^.]*")


def calls_of(tree):
    """Yield (line, name, call) of whatever is raised, warned of or logged."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            yield node.lineno, ast.unparse(node.exc.func).split(".")[-1], node.exc
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Name):
            if node.exc.id[0].isupper():
                yield node.lineno, node.exc.id, ast.parse("f()").body[0].value
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in ("warnings.warn", "logger.warning", "logger.error"):
                yield node.lineno, name, node


def text_of(node):
    """Return the text of a message, with a mark for each formatted value."""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    return VALUE


MESSAGES = []
NAMES = set(skclip_icm.__all__)
for path in sorted(PACKAGE.rglob("*.py")):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    NAMES |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    MESSAGES += [
        pytest.param(call, id=f"{path.relative_to(PACKAGE)}:{line}")
        for line, name, call in calls_of(tree)
        if name not in {*INTERNAL, "AttributeError"}
    ]


def test_the_list_is_complete():
    assert len(MESSAGES) > 150


@pytest.mark.parametrize("call", MESSAGES)
def test_message_is_whole_and_names_what_it_is_about(call):
    arguments = [text_of(argument) for argument in call.args]
    assert arguments, "an exception without a message"
    if ast.unparse(call.func) == "row_error":
        # Makes "row 3: 'cat.jpg': no such file. Check the path." of its parts.
        _, where, found, fix = arguments
        assert where
        assert not found.endswith(".")
        assert fix.endswith((".", VALUE))
        return
    if ast.unparse(call.func).startswith("logger"):
        message = arguments[0].replace("%s", VALUE)
    else:
        message = arguments[0]
    end = message.rstrip("\"'` ")
    assert end.endswith((".", VALUE)) or COMMAND.search(message), (
        f"{message!r} does not end with a full stop, or with a command to run"
    )
    named = NAMES & set(re.findall(r"\w+", message))
    assert VALUE in message or named, f"{message!r} names no parameter and no value"
    assert len(message.split()) >= 4 or VALUE in message, message


@pytest.mark.parametrize("call", MESSAGES)
def test_message_reads_as_text(call):
    text = " ".join(text_of(argument) for argument in call.args)
    assert "  " not in text.replace(VALUE + " ", VALUE)
    assert "!" not in text.replace("!=", "")
    for unhelpful in ("invalid", "illegal", "bad ", "something went wrong", "please"):
        assert unhelpful not in text.lower()


# What people do wrong, and what they are told


DATA = make_causal_embeddings(n_samples=6, random_state=0)
Z, y, n = np.asarray(DATA.embeddings), DATA.target, len(DATA.target)
IMAGES = [np.zeros((4, 4, 3), np.uint8)] * 2


def fit_domain_pairs(domains):
    return lambda: ICMTransformer(pairs="domain").fit(Z, y, domains=domains)


def fit_class_pairs(y):
    return lambda: ICMTransformer(pairs="class").fit(Z, y)


def embed(X):
    return lambda: CLIPFeaturizer("demo").transform(X)


def name_classes(y):
    classifier = ZeroShotClassifier(CLIPFeaturizer("demo"), class_names=["cat", "dog"])
    return lambda: classifier.fit(IMAGES, y)


FEATURIZER_FIRST = "make_pipeline(CLIPFeaturizer(), ICMTransformer())"
SLIPS = {
    "domains too short": (fit_domain_pairs([0, 1]), ["has 2 entries", f"expected {n}"]),
    "domains in two columns": (fit_domain_pairs(np.c_[y, y]), ["domains[:, 0]"]),
    "domains of lists": (fit_domain_pairs([[0, 1], [0]]), ["one for each row of X"]),
    "domains with None": (
        fit_domain_pairs([None, *["photo", "sketch"] * n][:n]),
        ["domains[0] is None", "Drop such rows from X, y"],
    ),
    "domains with NaN": (
        fit_domain_pairs(np.r_[0.0, np.nan, np.ones(n - 2)]),
        ["domains[1] is nan"],
    ),
    "y of numbers": (fit_class_pairs(y + 0.5), ["class labels", "numpy.digitize"]),
    "y of several labels": (fit_class_pairs(np.c_[y, 1 - y]), ["y.argmax(axis=1)"]),
    "zero-shot, y of several": (name_classes([[0, 1], [1, 0]]), ["y.argmax(axis=1)"]),
    "zero-shot, unknown label": (name_classes([0, 5]), ["y[1] is 5,", "give a dict"]),
    "ICM on paths": (
        lambda: ICMTransformer().fit(["cat.jpg", "dog.jpg"]),
        ["X holds images", FEATURIZER_FIRST],
    ),
    "ICM on pixels": (
        lambda: ICMTransformer().fit(np.zeros((2, 4, 4, 3), np.uint8)),
        [FEATURIZER_FIRST],
    ),
    "ICM on a list of pixels": (
        lambda: ICMTransformer().fit(DATA.embeddings).transform(IMAGES),
        [FEATURIZER_FIRST],
    ),
    "ICM before the featurizer": (
        lambda: make_pipeline(ICMTransformer(), CLIPFeaturizer("demo")).fit(IMAGES),
        [FEATURIZER_FIRST],
    ),
    "counterparts that are images": (
        lambda: ICMTransformer().fit(Z, X_do=np.array(["cat.jpg"] * n)[:, None]),
        ["X_do holds images", FEATURIZER_FIRST],
    ),
    "pairs of images": (
        lambda: ICMTransformer(pairs=(["cat.jpg"], ["dog.jpg"])).fit(Z),
        ["U holds images", FEATURIZER_FIRST],
    ),
    "PairedEmbeddings of images": (
        lambda: PairedEmbeddings(["cat.jpg"], ["dog.jpg"]),
        ["embeddings holds images", FEATURIZER_FIRST],
    ),
    "a folder": (embed(str(PACKAGE)), [str(PACKAGE), "load_domain_folder"]),
    "a Path of a folder": (embed(PACKAGE), ["load_domain_folder"]),
    "a list of folders": (embed([PACKAGE]), ["row 0", "load_domain_folder"]),
    "pairs as a list": (
        lambda: ICMTransformer(pairs=[Z, Z]).fit(Z),
        ["pairs is a list of 2", "pairs=(U, V)"],
    ),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_slip_is_told_with_what_to_do(slip):
    do, expected = SLIPS[slip]
    with pytest.raises((TypeError, ValueError)) as raised:
        do()
    for text in expected:
        assert text in str(raised.value)
    assert "np." not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("openai/clip-vit-base-patch16", '"ViT-B-16", "openai"'),
        ("hf-hub:openai/clip-vit-large-patch14-336", '"ViT-L-14-336", "openai"'),
        ("https://huggingface.co/openai/clip-vit-base-patch32", '"ViT-B-32", "openai"'),
        ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "'hf-hub:laion/CLIP-ViT-B-32"),
        ("hf-hub:laion/CLIP@v1", "'hf-hub:laion/CLIP'? Of another revision"),
        ("hf-hub: laion/CLIP/", "'hf-hub:laion/CLIP'?"),
        ("hf://laion/CLIP", "'hf-hub:laion/CLIP'?"),
        (" Local_Dir:some/folder", "'local-dir:some/folder'?"),
        (str(PACKAGE), f"'local-dir:{PACKAGE}'"),
        ("vit-b-16", "Did you mean ['ViT-B-16'"),
    ],
)
def test_names_of_elsewhere_are_told_with_what_to_write(name, meant):
    with pytest.raises(ValueError, match=re.escape(meant)):
        CLIPFeaturizer(name).transform(IMAGES)


def test_log_shows_paths_of_an_array_as_text(caplog):
    featurizer = CLIPFeaturizer("demo", on_error="nan")
    with caplog.at_level(logging.WARNING, logger="skclip_icm"):
        featurizer.transform(list(np.array(["nowhere.jpg", __file__])))
    assert "row 0: 'nowhere.jpg': no such file" in caplog.text
    assert "np.str_" not in caplog.text


def test_search_of_a_regressor_has_folds_without_classes():
    pipe = make_pipeline(ICMTransformer(), Ridge())
    search = invariant_search(pipe, {"ridge__alpha": [0.1, 1]}, scoring="r2")
    search.fit(DATA.embeddings, DATA.target + 0.1)
    assert search.predict(Z).shape == (n,)
