"""Fixtures shared by the tests: photographs, models, a count of forward passes."""

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skclip_icm._encoding.encoder import Encoder, load_encoder
from skclip_icm._encoding.stores import open_cache
from skclip_icm.datasets import fetch_elpv


def pytest_collection_modifyitems(config, items):
    """Leave the zoo out, also of ``-m "not slow"``, unless it is asked for by name."""
    if "zoo" not in config.option.markexpr:
        zoo = [item for item in items if item.get_closest_marker("zoo")]
        items[:] = [item for item in items if not item.get_closest_marker("zoo")]
        config.hook.pytest_deselected(items=zoo)


@pytest.fixture(scope="session", autouse=True)
def models_folder(tmp_path_factory):
    """Converted models of the tests are not the user's."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKCLIP_ICM_MODELS", str(folder))
        yield folder


@pytest.fixture
def import_benchmark(monkeypatch):
    """Return what imports a module of benchmarks/ by its name."""
    folder = Path(__file__).resolve().parents[1] / "benchmarks"
    if not folder.is_dir():
        pytest.skip("the source distribution has no benchmarks")
    monkeypatch.syspath_prepend(str(folder))
    return import_module


@pytest.fixture(scope="session")
def elpv():
    """Forty photographs of solar cells: both modules, both classes."""
    data = fetch_elpv()
    groups = 2 * data.domains + data.target
    rows = np.concatenate([np.flatnonzero(groups == group)[:10] for group in range(4)])
    data.images = [data.images[row] for row in rows]
    data.target, data.domains = data.target[rows], data.domains[rows]
    return data


@pytest.fixture(scope="session")
def photographs():
    """Six small colour images, distinct, as uint8 arrays of equal shape."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (6, 4, 5, 3), np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(c).resize((60, 48), Image.BICUBIC)) for c in coarse]
    )


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """A small vision transformer of random weights, as the name of a model."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}
    text = {"context_length": 12, "vocab_size": 49408, "width": 64, "heads": 2}
    config = {
        "embed_dim": 16,
        "vision_cfg": {**vision, "head_width": 32},
        "text_cfg": {**text, "layers": 1},
    }
    folder = tmp_path_factory.mktemp("small")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    torch.manual_seed(0)
    weights = open_clip.CLIP(**config).state_dict()
    weights = {key: value.contiguous() for key, value in weights.items()}
    save_file(weights, folder / "model.safetensors")
    return f"local-dir:{folder}"


@pytest.fixture
def forward_rows(monkeypatch):
    """Number of images that went through a model in this test, from an empty cache."""
    open_cache(None).clear()
    load_encoder("demo", None)  # which encodes a blank image to learn the width
    counts = []
    encode = Encoder.encode_images

    def counted(self, pixels):
        counts.append(len(pixels))
        return encode(self, pixels)

    monkeypatch.setattr(Encoder, "encode_images", counted)
    return lambda: sum(counts)
