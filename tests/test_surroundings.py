"""What is set in torch, Pillow, NumPy and the process: no result is another for it."""

import functools
import os
import pickle
import subprocess
import sys
import warnings
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin
from sklearn.base import clone

torch = pytest.importorskip("torch")

from skclip_icm import CLIPFeaturizer, ZeroShotClassifier, unload_models  # noqa: E402
from skclip_icm._encoding.stores import _MemoryStore  # noqa: E402


def _change(read, write, value):
    """Make a context in which something has a value, which must still be there then."""

    @contextmanager
    def changed():
        before = read()
        write(value)
        try:
            yield
            assert read() == value
        finally:
            write(before)

    return changed


def _change_attribute(owner, name, value):
    return _change(partial(getattr, owner, name), partial(setattr, owner, name), value)


def _change_folder():
    return _change(os.getcwd, os.chdir, os.path.realpath("/"))()


@contextmanager
def _strict_numpy():
    with np.errstate(all="raise"), np.printoptions(precision=1, legacy="1.13"):
        yield
        assert set(np.geterr().values()) == {"raise"}
        assert np.get_printoptions()["precision"] == 1


@contextmanager
def _warnings_as_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        yield
        assert list(warnings.filters) == before


@contextmanager
def _environment():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            patch.setenv(name, "1")
        patch.setenv("TZ", "Asia/Tokyo")
        before = dict(os.environ)
        yield
        assert dict(os.environ) == before


@contextmanager
def _no_gradients():
    with torch.inference_mode():
        yield
        assert torch.is_inference_mode_enabled()


def _autocast_on():
    return torch.is_autocast_enabled("cpu")


_FLOAT = torch.get_default_dtype, torch.set_default_dtype
_THREADS = torch.get_num_threads, torch.set_num_threads
_EXACT = (
    torch.are_deterministic_algorithms_enabled,
    torch.use_deterministic_algorithms,
)
_PRECISION = torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
# By kind of operation, since torch 2.9.
_KINDS = [
    _change_attribute(kind, "fp32_precision", "bf16")
    for kind in (getattr(torch.backends.mkldnn, n, None) for n in ("matmul", "conv"))
    if kind is not None
]
SURROUNDINGS = {
    "float64": [_change(*_FLOAT, torch.float64)],
    "bfloat16": [_change(*_FLOAT, torch.bfloat16)],
    "autocast": [lambda: torch.autocast("cpu", dtype=torch.bfloat16)],
    "autocast of the thread": [
        _change(_autocast_on, partial(torch.set_autocast_enabled, "cpu"), True)
    ],
    "device": [lambda: torch.device("meta"), _change(*_THREADS, 1)],
    "inference mode": [_no_gradients, _change(*_THREADS, 7)],
    "torch": [_change(*_EXACT, True), _change(*_PRECISION, "medium")],
    "torch by kind": [*_KINDS, torch.no_grad],
    "Pillow": [
        _change_attribute(PngImagePlugin, "MAX_TEXT_CHUNK", 10),
        _change_attribute(PngImagePlugin, "MAX_TEXT_MEMORY", 10),
        _change_attribute(Image, "OPEN", {}),
        _change_attribute(Image, "MAX_IMAGE_PIXELS", 100),
        _change_attribute(ImageFile, "LOAD_TRUNCATED_IMAGES", True),
    ],
    "process": [_strict_numpy, _warnings_as_errors, _environment, _change_folder],
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Images on disk: one of more pixels than the limit, the last one cut short."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    text = PngImagePlugin.PngInfo()
    text.add_text("made by", "hand", zip=True)
    text.add_text("a workflow", "of steps" * 500_000, zip=True)
    paths = [str(folder / f"{i}.png") for i in range(4)]
    for path, side in zip(paths, (40, 90, 50, 40), strict=True):
        image = Image.fromarray(rng.integers(0, 256, (side, 60, 3), np.uint8))
        image.save(path, pnginfo=text)
    os.truncate(paths[-1], os.path.getsize(paths[-1]) // 2)
    return paths


def embed_all(paths, model, backend):
    """Load a model and do with it what there is to do; return all results as bytes."""
    unload_models()
    featurizer = CLIPFeaturizer(
        model,
        cache=_MemoryStore(),
        interventions="photometric",
        backend=backend,
        dtype="float32",  # in which there is most to lose
        on_error="nan",
        n_jobs=2,
    )
    Z = featurizer.fit_transform(paths)
    results = {"Z": np.asarray(Z), "Z_do": Z.counterparts}
    results["T"] = featurizer.encode_text(["a cat", "a dog"])
    plain = featurizer.set_params(interventions=None)
    classifier = ZeroShotClassifier(plain, class_names=["cat", "dog"]).fit(paths[:3])
    results["P"] = classifier.predict_proba(paths[:3])
    assert np.isnan(results["Z"][3]).all(), "a file that is cut short"
    found = {name: (v.dtype.str, v.tobytes()) for name, v in results.items()}
    return {**found, "fingerprint": featurizer._encoder().fingerprint}


@pytest.fixture(scope="module")
def expected(paths, small_model):
    """What is found where nothing is set, by the backend."""
    yield functools.cache(lambda backend: embed_all(paths, small_model, backend))
    unload_models()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", SURROUNDINGS)
@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_nothing_that_is_set_changes_a_result(
    name, backend, expected, paths, small_model, tmp_path, monkeypatch
):
    wanted = expected(backend)
    # So that the model is converted here, not only read.
    monkeypatch.setenv("SKCLIP_ICM_MODELS", str(tmp_path))
    with ExitStack() as stack:
        for change in SURROUNDINGS[name]:
            stack.enter_context(change())
        found = embed_all(paths, small_model, backend)
    unload_models()
    assert found == wanted


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_an_environment_that_shortens_float32_is_told_and_kept_apart(
    backend, small_model, monkeypatch
):
    """As images for some ARM processors set it; nothing in torch takes it back."""

    def fingerprint(dtype="float32"):
        unload_models()
        featurizer = CLIPFeaturizer(small_model, backend=backend, dtype=dtype)
        return featurizer._encoder().fingerprint

    plain, in_bfloat16 = fingerprint(), fingerprint("bfloat16")
    for name in ("DNNL_DEFAULT_FPMATH_MODE", "ONEDNN_DEFAULT_FPMATH_MODE"):
        monkeypatch.setenv(name, "STRICT")  # the latter counts where both are set
        assert fingerprint() == plain
        monkeypatch.setenv(name, "BF16")
        with pytest.warns(UserWarning, match=f"{name}=BF16.* Unset it before"):
            shortened = fingerprint()
        assert shortened != plain
        assert fingerprint("bfloat16") == in_bfloat16
    unload_models()


def test_relative_paths_are_those_of_the_first_use(
    paths, small_model, tmp_path, monkeypatch, forward_rows
):
    """Whatever lies under the same name in the folder that is changed to."""
    other = tmp_path / "elsewhere"
    other.mkdir()
    start = Path(small_model.removeprefix("local-dir:"))
    monkeypatch.chdir(start.parent)
    featurizer = CLIPFeaturizer(
        f"local-dir:{start.name}", cache="rows", interventions="invert"
    )
    Z = featurizer.fit_transform(paths[:3])
    n_encoded = forward_rows()
    monkeypatch.chdir(other)
    np.testing.assert_array_equal(featurizer.transform(paths[:3]), Z)
    assert forward_rows() == n_encoded, "the cache is where it was"
    assert Z.counterparts.shape == (3, 1, 16)
    assert not any(other.iterdir())
    # A copy for another machine knows nothing of this one's folders.
    assert str(start.parent).encode() not in pickle.dumps(featurizer)
    for copy in (clone(featurizer), pickle.loads(pickle.dumps(featurizer))):
        with pytest.raises(OSError, match=str(other)):
            copy.transform(paths[:3])


@pytest.mark.parametrize("on_error", ["raise", "nan"])
def test_relative_paths_of_images_are_never_those_of_other_images(
    on_error, small_model, tmp_path, monkeypatch
):
    """Counterparts are computed when they are asked for, perhaps in another folder."""
    rng, names = np.random.default_rng(0), ["0.png", "1.png"]
    for folder in ("first", "second", "empty"):
        (tmp_path / folder).mkdir()
    for path in (tmp_path / f / name for f in ("first", "second") for name in names):
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(path)
        os.utime(path, (0, 0))  # long ago, so that digests of files are kept, too
    monkeypatch.chdir(tmp_path / "first")
    featurizer = CLIPFeaturizer(small_model, interventions="invert", on_error=on_error)
    Z = featurizer.set_params(cache=_MemoryStore()).fit_transform(names)
    for folder, message in (("second", "not the one that"), ("empty", "no such file")):
        monkeypatch.chdir(tmp_path / folder)
        if on_error == "raise":
            with pytest.raises(ValueError, match=message):
                Z.counterparts  # noqa: B018
        else:
            assert np.isnan(Z[[0]].counterparts).all()
    if on_error == "raise":
        monkeypatch.chdir(tmp_path / "first")
        assert np.isfinite(Z.counterparts).all()


SECOND = """
import locale, sys
from skclip_icm import CLIPFeaturizer
from skclip_icm._encoding.encoder import Encoder

for name in ("de_DE.UTF-8", "fr_FR.UTF-8", ""):
    try:
        locale.setlocale(locale.LC_ALL, name)
        break
    except locale.Error:
        pass
model, cache, *paths = sys.argv[1:]
featurizer = CLIPFeaturizer(model, cache=cache, dtype="float32")
encode, counts = Encoder.encode_images, []
Encoder.encode_images = lambda self, pixels: counts.append(1) or encode(self, pixels)
featurizer._encoder()
counts.clear()
Z = featurizer.transform(paths)
print(featurizer._encoder().fingerprint, Z.tobytes().hex(), len(counts))
"""


def test_a_second_process_finds_what_the_first_one_kept(paths, small_model, tmp_path):
    featurizer = CLIPFeaturizer(small_model, cache=str(tmp_path), dtype="float32")
    Z = featurizer.transform(paths[:3])
    run = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            SECOND,
            small_model,
            str(tmp_path),
            *paths[:3],
        ],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "LC_ALL": "de_DE.UTF-8",
            "OMP_NUM_THREADS": "1",
            "PYTHONHASHSEED": "7",
        },
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    expected = featurizer._encoder().fingerprint, Z.tobytes().hex(), "0"
    assert tuple(run.stdout.split()) == expected
