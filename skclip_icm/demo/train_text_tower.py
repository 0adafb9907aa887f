"""Train the demo's text tower against its frozen image tower, on emoji and names.

    python -m skclip_icm.demo.train_text_tower --node-modules DIR --output FILE

Locked-image tuning (Zhai et al., CVPR 2022): pictures are embedded once, and only the
text tower learns, by CLIP's contrastive loss (Radford et al., ICML 2021). A fifth of
the concepts and the whole line-art style are never seen.
"""

import argparse
import hashlib
import json
import os

import numpy as np

from skclip_icm._encoding.folding import fold_batch_norm
from skclip_icm.datasets import fetch_emoji_styles
from skclip_icm.demo import model as demo

HELD_OUT_STYLE = "openmoji-black"

_RECIPE = {
    "seed": 0,
    "steps": 300,
    "batch": 256,
    "learning_rate": 1e-3,
    "weight_decay": 0.1,
}
_TEMPLATES = (
    "{}",
    "a {}",
    "a photo of a {}.",
    "a picture of a {}.",
    "a drawing of a {}.",
    "an emoji of a {}.",
)
_STYLE_WORDS = {
    "google": "flat",
    "twitter": "simple",
    "openmoji": "outlined",
    "fluent-3d": "glossy 3d",
}
_SOURCES = (
    "Noto Emoji (Apache 2.0), Twemoji (CC BY 4.0), OpenMoji (CC BY-SA 4.0), Microsoft "
    "Fluent Emoji (MIT), names from Unicode CLDR"
)


def main(arguments=None):
    """Train, print the zero-shot accuracy of each style, and write the weights."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--node-modules", default="node_modules", metavar="DIR")
    parser.add_argument("--output", default=demo.TEXT_WEIGHTS, metavar="FILE")
    options = parser.parse_args(arguments)

    data = fetch_emoji_styles(options.node_modules)
    torch.manual_seed(_RECIPE["seed"])
    model, tokenize = demo.build_with_image_tower(), demo.demo_tokenizer()
    images = _embed(model, data.images)
    used_tokens = _train(model, tokenize, data, images)
    accuracy = _zero_shot_accuracy(model, tokenize, data, images)
    print("Zero-shot accuracy over 8 categories, on concepts never seen:")
    for style, value in accuracy.items():
        note = " (style never seen)" if style == HELD_OUT_STYLE else ""
        print(f"  {style:15} {value:.3f}{note}")
    _save(model, used_tokens, accuracy, options.output)


def held_out_concepts(concepts):
    """Tell which concepts the demo's text tower has never seen.

    Parameters
    ----------
    concepts : sequence of str
        Code points, as in ``fetch_emoji_styles().concepts``.

    Returns
    -------
    held_out : bool array, shape (n,)
        True for about a fifth: those whose SHA-256 has a first byte below 52.

    Examples
    --------
    >>> from skclip_icm.demo.train_text_tower import held_out_concepts
    >>> held_out_concepts(["1F436", "1F431", "1F354"])
    array([False,  True, False])
    """
    digests = (hashlib.sha256(concept.encode()).digest() for concept in concepts)
    return np.array([digest[0] < 52 for digest in digests])


def _embed(model, paths, batch_size=64):
    """Embed pictures, on white, as rows of unit length."""
    import torch
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from tqdm import tqdm

    prepare = image_transform_v2(
        PreprocessCfg(**model.visual.preprocess_cfg), is_train=False
    )
    tower = model.visual
    fold_batch_norm(tower, torch.zeros(1, 3, 224, 224))
    tower.to(memory_format=torch.channels_last)
    embeddings = []
    # no_grad, since tensors of inference_mode could not take part in training.
    with torch.no_grad():
        for start in tqdm(range(0, len(paths), batch_size), "embedding", unit="batch"):
            batch = [prepare(_on_white(p)) for p in paths[start : start + batch_size]]
            batch = torch.stack(batch).contiguous(memory_format=torch.channels_last)
            embeddings.append(tower(batch))
    return torch.nn.functional.normalize(torch.cat(embeddings))


def _on_white(path):
    from PIL import Image

    with Image.open(path) as file:
        picture = file.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def _train(model, tokenize, data, images):
    """Train the text tower in place; return the tokens of all captions."""
    import torch
    from torch.nn.functional import cross_entropy

    rng = np.random.default_rng(_RECIPE["seed"])
    n_steps, n_batch, rate = (_RECIPE[k] for k in ("steps", "batch", "learning_rate"))
    styles = np.flatnonzero(np.array(data.domain_names) != HELD_OUT_STYLE)
    n_concepts = len(data.concepts) // len(data.domain_names)
    concepts = np.flatnonzero(~held_out_concepts(data.concepts[:n_concepts]))
    parameters = [*model.text.parameters(), model.logit_scale]
    optimizer = torch.optim.AdamW(parameters, weight_decay=_RECIPE["weight_decay"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, n_steps)
    pairs = torch.arange(n_batch)
    used = set()
    for _ in range(n_steps):
        # Distinct concepts, so that no caption in the batch fits another's picture.
        rows = rng.choice(concepts, n_batch, replace=False)
        rows = rows + n_concepts * rng.choice(styles, n_batch)
        captions = [_caption(data, row, rng) for row in rows]
        categories = [rng.choice(_TEMPLATES).format(c) for c in data.target_names]
        tokens = tokenize(captions + categories)
        used.update(tokens.unique().tolist())
        text = model.encode_text(tokens, normalize=True)
        logits = model.logit_scale.exp().clamp(max=100) * images[rows] @ text.T
        named, grouped = logits[:, :n_batch], logits[:, n_batch:]
        loss = (cross_entropy(named, pairs) + cross_entropy(named.T, pairs)) / 2
        loss = loss + cross_entropy(grouped, torch.from_numpy(data.target[rows]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return torch.tensor(sorted(used))


def _caption(data, row, rng):
    """Draw a caption: a picture's name or a keyword, in some template."""
    name = data.names[row]
    if rng.random() < 0.25:
        name = rng.choice(data.keywords[row].split(", "))
    if rng.random() < 0.25:
        style = _STYLE_WORDS[data.domain_names[data.domains[row]]]
        return f"a {style} emoji of a {name}."
    return rng.choice(_TEMPLATES).format(name)


def _zero_shot_accuracy(model, tokenize, data, images):
    """Return {style: accuracy} over the categories, on concepts never seen."""
    import torch

    prompts = tokenize([f"a photo of a {name}." for name in data.target_names])
    with torch.no_grad():
        scores = images @ model.encode_text(prompts, normalize=True).T
    correct = scores.argmax(1).numpy() == data.target
    unseen = held_out_concepts(data.concepts)
    return {
        style: float(correct[unseen & (data.domains == index)].mean())
        for index, style in enumerate(data.domain_names)
    }


def _save(model, used_tokens, accuracy, path):
    import open_clip
    import timm
    import torch
    from safetensors.torch import save_file

    versions = {m.__name__: m.__version__ for m in (np, open_clip, timm, torch)}
    facts = {
        "recipe": _RECIPE | {"held_out_style": HELD_OUT_STYLE},
        "accuracy": accuracy,
        "versions": versions,
        "sources": _SOURCES,
    }
    # One entry, since safetensors writes several in any order.
    metadata = {"training": json.dumps(facts)}
    save_file(demo.text_tower_state(model, used_tokens), path, metadata)
    os.chmod(path, 0o644)  # safetensors makes it readable by its owner only


if __name__ == "__main__":
    main()
