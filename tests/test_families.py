"""Each family of open_clip's models, and each of its tags, as open_clip has it."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")

from open_clip import factory  # noqa: E402
from PIL import Image  # noqa: E402
from small_models import NAMES, save_folder  # noqa: E402

from skclip_icm import CLIPFeaturizer, unload_models  # noqa: E402
from skclip_icm._encoding import weights  # noqa: E402

PREPROCESS = {
    "mean": [0.4, 0.45, 0.5],
    "std": [0.2, 0.25, 0.3],
    "interpolation": "bilinear",
    "resize_mode": "squash",
}
KEYS = tuple(PREPROCESS)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (4, 7, 9, 3), np.uint8)
    sizes = [(90, 70), (64, 64), (50, 200), (33, 31)]
    return [Image.fromarray(c).resize(s) for c, s in zip(coarse, sizes, strict=True)]


@pytest.mark.parametrize(
    ("name", "quick_gelu"), [*((name, False) for name in NAMES), ("ViT-B-16", True)]
)
def test_a_family_embeds_as_open_clip_does(name, quick_gelu, pictures, tmp_path):
    folder = save_folder(tmp_path, name, PREPROCESS, quick_gelu)
    options = {"device": "cpu", "dtype": "float32", "backend": "torch"}
    ours = CLIPFeaturizer(folder, None, interventions=None, **options)
    found = ours.fit_transform(pictures)
    model, preprocess = open_clip.create_model_from_pretrained(folder)
    with torch.inference_mode():
        batch = torch.stack([preprocess(picture) for picture in pictures])
        expected = model.eval().encode_image(batch, normalize=True).numpy()
    unload_models()
    assert (found * expected).sum(axis=1).min() >= 0.99999
    # Also of what tells these pictures apart, which random weights leave little of.
    spread = np.abs(expected - expected.mean(axis=0)).max()
    assert np.abs(found - expected).max() <= 2e-3 * spread
    if name == "ViT-B-16-SigLIP":
        return  # its tokenizer is in the hub
    texts = ["a cat", "two dogs"]
    with torch.inference_mode():
        tokens = open_clip.get_tokenizer(folder)(texts)
        expected = model.encode_text(tokens, normalize=True).numpy()
    assert (ours.encode_text(texts) * expected).sum(axis=1).min() >= 0.99999


class Stub(torch.nn.Module):
    """What a model class is asked to build, and no weights."""

    def __init__(self, embed_dim, vision_cfg, text_cfg, quick_gelu=False, **others):
        super().__init__()
        self.quick_gelu = quick_gelu
        self.visual = torch.nn.Module()
        self.visual.image_size = vision_cfg["image_size"]


@pytest.fixture
def unbuilt(monkeypatch):
    """Models are stubs, and whatever file is asked for is there."""
    for name in ("CLIP", "CustomTextCLIP", "CoCa"):
        monkeypatch.setattr(factory, name, Stub)
    monkeypatch.setattr(factory, "load_checkpoint", lambda *args, **options: {})
    path = __file__
    monkeypatch.setattr(weights.hub, "find_file", lambda *names: path)
    monkeypatch.setattr(weights.hub, "from_cache_first", lambda find, *file: find())


def test_every_tag_has_the_activation_and_preprocessing_of_its_entry(unbuilt):
    tags = open_clip.list_pretrained()
    assert len(tags) > 150
    for name, tag in tags:
        entry = open_clip.get_pretrained_cfg(name, tag)
        model, _ = weights.create_model(weights.find_source(name, tag))
        found = {key: model.visual.preprocess_cfg[key] for key in KEYS}
        assert found == {key: entry[key] for key in KEYS}, (name, tag)
        assert model.visual.preprocess_cfg["size"] == model.visual.image_size
        stated = factory.get_model_config(name).get("quick_gelu", False)
        # One entry is silent, and its weights are of an architecture that is not.
        expected = entry.get("quick_gelu", stated)
        assert model.quick_gelu == expected, (name, tag)


def test_every_tag_is_asked_for_under_the_names_that_open_clip_asks_for(monkeypatch):
    asked = {}

    def refuse(repo_id, filename, **options):
        asked.setdefault(repo_id, []).append(filename)
        raise OSError("no network")

    def note(repository, *names):
        asked[repository] = list(names)
        raise OSError("no network")

    found = []
    for patched, attribute, stand_in in (
        (open_clip.pretrained, "hf_hub_download", refuse),
        (weights.hub, "find_file", note),
    ):
        monkeypatch.setattr(patched, attribute, stand_in)
        asked.clear()
        for name, tag in open_clip.list_pretrained():
            entry = open_clip.get_pretrained_cfg(name, tag)
            with pytest.raises(OSError, match="no network"):
                if patched is weights.hub:
                    weights.create_model(weights.find_source(name, tag))
                else:
                    asked.pop(entry["hf_hub"].rpartition("/")[0], None)
                    open_clip.download_pretrained(entry)
        found.append(dict(asked))
    assert found[0] == found[1]
