"""Models of open_clip's families under their real names, but with few layers."""

import json
from contextlib import contextmanager
from pathlib import Path

import open_clip
import torch
from open_clip import factory
from safetensors.torch import save

_TEXT = {"width": 64, "heads": 2, "layers": 1}
_VIT = {"image_size": 64, "width": 64, "head_width": 32, "layers": 2}
_POOLER = {"attn_pooler_heads": 2}
# What stands in place of a built-in configuration's own.
_SMALL = {
    "ViT-B-16": _VIT,
    "ViT-B-32": _VIT,
    "RN50": {"image_size": 64, "width": 16, "layers": [1, 1, 1, 1]},
    "coca_ViT-B-32": {**_VIT, **_POOLER},
    "ViT-B-16-SigLIP": {"image_size": 64, "timm_model_name": "test_vit"},
    "convnext_base": {"image_size": 64, "timm_model_name": "test_convnext"},
    "EVA02-B-16": {"timm_model_name": "eva02_tiny_patch14_224"},
    "MobileCLIP-S1": {"image_size": 64, "timm_model_name": "test_efficientnet"},
}
NAMES = tuple(_SMALL)


def config(name):
    """Return the configuration of a built-in name with few layers."""
    full = factory.get_model_config(name)
    small = {**full, "embed_dim": 32}
    small["vision_cfg"] = {**full["vision_cfg"], **_SMALL[name]}
    small["text_cfg"] = {**full["text_cfg"], **_TEXT}
    if "multimodal_cfg" in full:
        small["multimodal_cfg"] = {**full["multimodal_cfg"], **_TEXT, **_POOLER}
    return small


def write_configs(folder):
    """Write files for `open_clip.add_model_config`, which prefers them to its own."""
    for name in NAMES:
        Path(folder, f"{name}.json").write_text(json.dumps(config(name)))
    return folder


@contextmanager
def registered(folder):
    """Let open_clip make these of the built-in names, inside only."""
    paths, known = list(factory._MODEL_CONFIG_PATHS), dict(factory._MODEL_CONFIGS)
    open_clip.add_model_config(Path(folder))
    try:
        yield
    finally:
        factory._MODEL_CONFIG_PATHS[:] = paths
        factory._MODEL_CONFIGS = known


def random_weights(name, seed=0):
    """Return a file of random weights for a model, with norms that do something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.create_model(name)
        randomise_norms(model)
    # Cloned, as some models have one tensor under two names.
    return save({key: value.clone() for key, value in model.state_dict().items()})


def randomise_norms(model):
    """Let batch norms do something, as after training."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)


def save_folder(folder, name, preprocess, quick_gelu=False):
    """Write what "local-dir:folder" loads: a configuration and random weights."""
    model_cfg = {**config(name), "quick_gelu": quick_gelu}
    text = json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess})
    Path(folder, "open_clip_config.json").write_text(text)
    weights = random_weights(f"local-dir:{folder}")
    Path(folder, "open_clip_model.safetensors").write_bytes(weights)
    return f"local-dir:{folder}"


def tokenizer_files():
    """Return the files of a small tokenizer, as SigLIP's repository has one."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = [(letter, -3.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "</s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": 64,
    }
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(settings).encode(),
    }
