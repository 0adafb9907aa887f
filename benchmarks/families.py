"""Compare embeddings with open_clip's own pipeline: models at full size, by tags.

Run from the root of the repository: python benchmarks/families.py [--models NAME:TAG]
or, for every architecture and some hours, --all; tests/test_zoo.py asserts the same.

Weights are random, as if they were those of the tag: what is compared is everything
else, from the picture to the embedding. A run replaces the rows of its models in
results/families.json and writes the table anew.
"""

import json
import tempfile
from dataclasses import asdict
from datetime import date
from unittest.mock import patch

import numpy as np
from machine import cpu, installed
from machine.by_model import run, settings

# One of each kind of image tower, activation and preprocessing, of those whose text
# tower needs nothing from the hub.
MODELS = (
    "ViT-B-32:openai",
    "ViT-B-16:openai",
    "ViT-B-32:laion2b_s34b_b79k",
    "ViT-B-16:dfn2b",
    "ViT-B-16-plus-240:laion400m_e32",
    "ViT-B-16-SigLIP:webli",
    "ViT-B-32-SigLIP2-256:webli",
    "RN50:openai",
    "RN101:yfcc15m",
    "convnext_base:laion400m_s13b_b51k",
    "coca_ViT-B-32:laion2b_s13b_b90k",
    "EVA02-B-16:merged2b_s8b_b131k",
    "MobileCLIP-S1:datacompdr",
    "MobileCLIP-B:datacompdr",
    "ViTamin-S:datacomp1b",
    "PE-Core-T-16-384:meta",
)
SEED = 0
PACKAGES = ("torch", "open_clip_torch", "timm", "Pillow")
# With more, weights, models and their conversion do not fit beside each other in 24 GB.
LARGEST = 1_200_000_000
# In place of a text tower that the hub describes, or that makes the model larger than
# that: pictures know nothing of it.
PLAIN_TEXT = {
    "context_length": 77,
    "vocab_size": 49408,
    "width": 64,
    "heads": 2,
    "layers": 1,
}


def main(arguments=None):
    run("families", __doc__, MODELS, compare, markdown, arguments, every_model)


def every_model():
    """Return all architectures, each with its first tag if it has one."""
    import open_clip

    tags = {}
    for name, tag in open_clip.list_pretrained():
        tags.setdefault(name, tag)
    names = open_clip.list_models()
    return [f"{name}:{tags[name]}" if name in tags else name for name in names]


def compare(model, folder):
    """Return a row of the results, or the reason why there is none."""
    name, _, tag = model.partition(":")
    with modest_text(name):
        size = n_parameters(name)
        if size > LARGEST:
            return {"skipped": f"{size / 1e9:.1f} billion parameters for images"}
        return compare_pipelines(name, tag, folder)


def modest_text(name):
    import open_clip

    # Weights may be known under one name and be loaded under the other.
    plain = name.removesuffix("-quickgelu")
    configs = {}
    for variant in {plain, f"{plain}-quickgelu"} & set(open_clip.list_models()):
        configs[variant] = config = open_clip.get_model_config(variant)
        if "hf_model_name" in config["text_cfg"] or n_parameters(variant) > LARGEST:
            config["text_cfg"] = PLAIN_TEXT
    return patch.dict("open_clip.factory._MODEL_CONFIGS", configs)


def n_parameters(name):
    import open_clip
    import torch

    with torch.device("meta"):  # which holds no numbers
        model = open_clip.create_model(name, device="meta")
    return sum(parameter.numel() for parameter in model.parameters())


def compare_pipelines(name, tag, folder):
    import open_clip

    file, images = folder / "open_clip_model.safetensors", pictures()
    write_random_weights(name, file)
    if tag:
        entry = open_clip.get_pretrained_cfg(name, tag)
    else:
        entry = asdict(open_clip.transform.PreprocessCfg())
        config = {"model_cfg": open_clip.get_model_config(name)}
        text = json.dumps({**config, "preprocess_cfg": about(entry)})
        (folder / "open_clip_config.json").write_text(text)
        name, tag = f"local-dir:{folder}", None
    expected = by_open_clip(name, tag, entry, file, images)
    # Of random weights, what tells pictures apart is little beside what they share.
    centred = expected - expected.mean(axis=0)
    row = {"quick_gelu": bool(entry.get("quick_gelu")), **about(entry)}
    for backend in ("torch", "openvino"):
        if backend == "torch" or installed("openvino"):
            found = by_us(name, tag, file, images, backend)
            row[backend] = float((found * expected).sum(axis=1).min())
            error = np.abs(found - expected).max() / np.abs(centred).max()
            row[f"{backend}, error"] = float(error)
    packages = {package: installed(package) for package in PACKAGES}
    measured = {"cpu": cpu(), "seed": SEED, "date": date.today().isoformat()}
    return {**row, "measured": {**packages, **measured}}


def about(entry):
    keys = ("mean", "std", "resize_mode", "interpolation")
    return {key: entry[key] for key in keys}


def write_random_weights(name, file):
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(SEED)
    state = open_clip.create_model(name).state_dict()
    save_file({key: value.clone() for key, value in state.items()}, file)


def pictures():
    """Photographs of a kind: smooth, in colour, of several shapes."""
    from PIL import Image

    rng = np.random.default_rng(SEED)
    coarse = rng.integers(0, 256, (4, 7, 9, 3), np.uint8)
    sizes = [(640, 480), (256, 256), (200, 700), (90, 100)]
    return [Image.fromarray(c).resize(s) for c, s in zip(coarse, sizes, strict=True)]


def by_open_clip(name, tag, entry, file, images):
    import open_clip
    import torch

    # Under this name, open_clip has the activation of the entry.
    name += "-quickgelu" if entry.get("quick_gelu") else ""
    quick = {"force_quick_gelu": True} if entry.get("quick_gelu") else {}
    name = name if name in open_clip.list_models() else name.removesuffix("-quickgelu")
    with patch("open_clip.factory.download_pretrained", lambda *args, **kw: str(file)):
        model, _, preprocess = open_clip.create_model_and_transforms(name, tag, **quick)
    with torch.inference_mode():
        batch = torch.stack([preprocess(image) for image in images])
        return model.eval().encode_image(batch, normalize=True).numpy()


def by_us(name, tag, file, images, backend):
    from skclip_icm import CLIPFeaturizer, EmbeddingCache, unload_models

    options = {"device": "cpu", "dtype": "float32", "backend": backend}
    with (
        patch("skclip_icm._encoding.hub.find_file", lambda *names: str(file)),
        tempfile.TemporaryDirectory() as folder,
    ):
        cache = EmbeddingCache(folder)  # nothing of an earlier run
        clip = CLIPFeaturizer(name, tag, interventions=None, cache=cache, **options)
        found = np.asarray(clip.transform(images))
    unload_models()
    return found


def markdown(rows):
    skipped = {model: row["skipped"] for model, row in rows.items() if "skipped" in row}
    rows = {model: row for model, row in rows.items() if model not in skipped}
    lines = [
        "Embeddings of four pictures in float32 by models at full size, with random",
        "weights under a tag's name, against open_clip's own pipeline:",
        "the smallest cosine, and in brackets the largest difference of an entry, as",
        "part of the largest by which one differs from the mean of the pictures.",
        "",
        f"{settings(rows)}.",
        "",
        "| model: tag | activation | resizing | torch | OpenVINO |",
        "| --- | --- | --- | ---: | ---: |",
    ]
    for model, row in rows.items():
        activation = "QuickGELU" if row["quick_gelu"] else "the architecture's"
        resizing = f"{row['resize_mode']}, {row['interpolation']}"
        cells = [activation, resizing, cell(row, "torch"), cell(row, "openvino")]
        lines.append(f"| {model.replace(':', ': ')} | {' | '.join(cells)} |")
    if skipped:
        named = ", ".join(f"{model} ({why})" for model, why in skipped.items())
        lines += ["", f"Too large for this machine: {named}."]
    return "\n".join(lines) + "\n"


def cell(row, backend):
    if backend not in row:
        return ""
    return f"{row[backend]:.7f} ({row[f'{backend}, error']:.0e})"


if __name__ == "__main__":
    main()
