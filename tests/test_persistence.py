"""A fitted pipeline on its way to production: saved, loaded elsewhere, and serving."""

import io
import json
import os
import pickle
import re
import subprocess
import sys
import textwrap
import warnings
import zipfile
from pathlib import Path

import joblib
import numpy as np
import pytest
import skops.io
from numpy.testing import assert_array_equal
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from skops.io.exceptions import UntrustedTypesFoundException

from skclip_icm import (
    CLIPFeaturizer,
    EmbeddingCache,
    ICMTransformer,
    PairedEmbeddings,
    ZeroShotClassifier,
)

ROOT = Path(__file__).parents[1]
LIMIT = 5_000_000  # bytes; the demo encoder's weights have 18 million
TRUSTED = [
    "skclip_icm.featurizer.CLIPFeaturizer",
    "skclip_icm.icm.ICMTransformer",
    "skclip_icm.zero_shot.ZeroShotClassifier",
]


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (12, 40, 40, 3), np.uint8)


@pytest.fixture(scope="module")
def fitted(images):
    """Estimators by name."""
    steps = [
        ("clip", CLIPFeaturizer("demo")),
        ("icm", ICMTransformer()),
        ("clf", LogisticRegression(max_iter=1000)),
    ]
    zero_shot = ZeroShotClassifier(
        CLIPFeaturizer("demo"),
        ICMTransformer(),
        class_names=["cat", "dog", "car"],
    )
    return {
        "pipeline": Pipeline(steps).fit(images, np.arange(12) % 2),
        "zero-shot": zero_shot.fit(images),
    }


def run(code, *args):
    """Run code in a new process and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_saved_estimators_predict_the_same_in_a_new_process(fitted, images, tmp_path):
    for name, estimator in fitted.items():
        joblib.dump(estimator, tmp_path / f"{name}.joblib")
        skops.io.dump(estimator, tmp_path / f"{name}.skops")
    np.save(tmp_path / "images.npy", images)
    code = """
        import sys, warnings
        import joblib, numpy as np, skops.io
        folder, *trusted = sys.argv[1:]
        warnings.simplefilter("error")  # on loading
        loaded = {
            f"{name}.{kind}": load(f"{folder}/{name}.{kind}")
            for name in ("pipeline", "zero-shot")
            for kind, load in (
                ("joblib", joblib.load),
                ("skops", lambda file: skops.io.load(file, trusted=trusted)),
            )
        }
        from skclip_icm._encoding import encoder
        assert not encoder._encoders, "loading needs the model"
        warnings.simplefilter("default")
        images = np.load(f"{folder}/images.npy")
        for file, estimator in loaded.items():
            np.save(f"{folder}/{file}.npy", estimator.predict_proba(images))
    """
    run(code, tmp_path, *TRUSTED)
    for name, estimator in fitted.items():
        expected = estimator.predict_proba(images)
        for kind in ("joblib", "skops"):
            file = tmp_path / f"{name}.{kind}"
            assert file.stat().st_size < LIMIT
            assert_array_equal(np.load(f"{file}.npy"), expected)


def test_the_trusted_list_is_complete_and_short(fitted):
    found = {
        kind
        for estimator in fitted.values()
        for kind in skops.io.get_untrusted_types(data=skops.io.dumps(estimator))
    }
    assert sorted(found) == TRUSTED


def test_saving_does_not_warn(fitted):
    """As numpy does of the token by which pairs tell their counterparts apart."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for estimator in fitted.values():
            skops.io.dumps(estimator)


def test_a_transformer_that_still_learns_can_be_saved():
    rng = np.random.default_rng(0)
    Z, Z_do = rng.normal(size=(2, 60, 5))
    Z_do = Z + 0.3 * Z_do
    halfway = ICMTransformer().partial_fit(Z[:30], X_do=Z_do[:30])
    data = skops.io.dumps(halfway)
    trusted = skops.io.get_untrusted_types(data=data)
    assert all(kind.startswith(("skclip_icm.", "numpy.")) for kind in trusted)
    whole = ICMTransformer().partial_fit(Z, X_do=Z_do)
    for copy in (
        pickle.loads(pickle.dumps(halfway)),
        skops.io.loads(data, trusted=trusted),
    ):
        copy.partial_fit(Z[30:], X_do=Z_do[30:])
        np.testing.assert_allclose(copy.components_, whole.components_, atol=1e-10)


def test_settings_survive(tmp_path):
    featurizer = CLIPFeaturizer(
        "ViT-B-32",
        None,
        interventions=["invert", "equalize"],
        cache=EmbeddingCache(tmp_path / "cache", max_bytes=2**30),
        dtype="float32",
    )
    data = skops.io.dumps(featurizer)
    trusted = [*TRUSTED, "skclip_icm.cache.EmbeddingCache"]
    for copy in (
        skops.io.loads(data, trusted=trusted),
        pickle.loads(pickle.dumps(featurizer)),
    ):
        assert repr(copy) == repr(featurizer)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("method", ["pickle", "skops"])
def test_a_file_of_another_version_says_so(fitted, method, monkeypatch):
    steps = dict(fitted["pipeline"].steps)
    for estimator in (steps["clip"], steps["icm"], fitted["zero-shot"]):
        name = type(estimator).__name__
        monkeypatch.setattr("skclip_icm._estimators.__version__", "0.0.7")
        old = skops.io.dumps(estimator), pickle.dumps(estimator)
        monkeypatch.undo()
        with pytest.warns(UserWarning, match=rf"{name}.*0\.0\.7.*skclip-icm"):
            if method == "skops":
                loaded = skops.io.loads(old[0], trusted=TRUSTED)
            else:
                loaded = pickle.loads(old[1])
        kept = vars(estimator).keys() - {"_places"}  # is of this process
        assert vars(loaded).keys() == kept


# Files of strangers


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_hostile_pickle_is_run_by_joblib_and_not_by_skops(tmp_path):
    mark, file = tmp_path / "was here", tmp_path / "model.skops"
    file.write_bytes(pickle.dumps(Hostile(mark)))
    for trusted in (TRUSTED, None):
        with pytest.raises(zipfile.BadZipFile):
            skops.io.load(file, trusted=trusted)
    with pytest.raises(zipfile.BadZipFile):
        skops.io.get_untrusted_types(file=file)
    assert not mark.exists()
    joblib.load(file)
    assert mark.exists()  # so the file was as dangerous as it looked


@pytest.mark.parametrize(
    "hostile",
    [
        FunctionTransformer(os.mkdir),
        CLIPFeaturizer(interventions=os.mkdir),
        ICMTransformer(pairs=(os.mkdir, 1)),
        CLIPFeaturizer(cache=subprocess.Popen.__init__),
    ],
    ids=["step", "intervention", "pairs", "cache"],
)
def test_a_stranger_cannot_bring_functions_along(hostile):
    data = skops.io.dumps(Pipeline([("clip", hostile)]))
    with pytest.raises(UntrustedTypesFoundException):
        skops.io.loads(data, trusted=TRUSTED)


def test_a_tampered_file_is_refused_and_not_run(fitted, tmp_path):
    """The file says that one of our types is a function of the system."""
    mark = tmp_path / "was here"
    source = zipfile.ZipFile(io.BytesIO(skops.io.dumps(fitted["pipeline"])))
    text = source.read("schema.json").decode()
    for kind in TRUSTED[:2]:
        module, _, name = kind.rpartition(".")
        schema = json.loads(text)
        changed = json.dumps(schema).replace(f'"{name}"', '"mkdir"')
        changed = changed.replace(f'"{module}"', '"os"')
        assert '"mkdir"' in changed
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as target:
            for entry in source.namelist():
                content = source.read(entry)
                target.writestr(entry, changed if entry == "schema.json" else content)
        with pytest.raises(UntrustedTypesFoundException, match="mkdir"):
            skops.io.loads(buffer.getvalue(), trusted=TRUSTED)
    assert not mark.exists()


def test_estimators_do_not_run_what_they_were_trusted_with():
    """Loading our types sets attributes, nothing more."""
    for kind in TRUSTED:
        module, _, name = kind.rpartition(".")
        cls = getattr(__import__(module, fromlist=[name]), name)
        assert cls.__reduce__ is object.__reduce__


def test_pickled_pairs_hold_their_counterparts():
    Z = np.eye(3, dtype=np.float32)
    data = pickle.dumps(PairedEmbeddings(Z, 2 * Z))
    loaded = pickle.loads(data)
    assert_array_equal(loaded.counterparts[:, 0], 2 * Z)


def test_the_page_on_saving_and_serving_runs(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "saving_and_serving.md").read_text(encoding="utf-8")
    names = {"images": images, "y": np.arange(12) % 2}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
    encoded = io.BytesIO()
    from PIL import Image

    Image.fromarray(images[0]).save(encoded, "PNG")
    answers = names["answer"]([encoded.getvalue(), b"no image", encoded.getvalue()])
    expected = names["pipe"].predict(images[:1])[0]
    assert answers == [expected, None, expected]
    assert all(kind in page for kind in TRUSTED)
