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

from skclip_icm.datasets._emoji import fetch_emoji_styles
from skclip_icm.demo import model as demo

HELD_OUT_STYLE = "openmoji-black"
SEED = 0
_STEPS = 600
_BATCH = 512
_LEARNING_RATE = 1e-3
_WEIGHT_DECAY = 0.1
_TEMPLATES = (
    "{}",
    "a {}",
    "a photo of a {}.",
    "a picture of a {}.",
    "a drawing of a {}.",
    "an emoji of a {}.",
)
_STYLE_TEMPLATE = "a {style} emoji of a {name}."
_STYLE_WORDS = {
    "google": "flat",
    "twitter": "simple",
    "openmoji": "outlined",
    "fluent-3d": "glossy 3d",
}
_EVALUATION_TEMPLATE = "a photo of a {}."


def held_out_concepts(concepts):
    """Tell which concepts the demo's text tower has never seen.

    Parameters
    ----------
    concepts : sequence of str
        Code points, as in ``fetch_emoji_styles().concepts``.

    Returns
    -------
    held_out : bool array, shape (n,)
        True for about a fifth, by a hash of the concept.

    Examples
    --------
    >>> from skclip_icm.demo.train_text_tower import held_out_concepts
    >>> held_out_concepts(["1F436", "1F431", "1F354"])
    array([False,  True, False])
    """
    digests = (hashlib.sha256(concept.encode()).digest() for concept in concepts)
    return np.array([digest[0] < 0.2 * 256 for digest in digests])


def train(model, tokenize, data, images):
    """Train the text tower in place.

    Parameters
    ----------
    model : open_clip.CustomTextCLIP
        Its image tower is left alone.
    tokenize : callable
        From strings to tokens.
    data : Bunch
        From ``fetch_emoji_styles``.
    images : float32 tensor, shape (n, 1280)
        Normalised image embeddings, row by row those of ``data``.

    Returns
    -------
    used_tokens : int64 tensor, shape (t,)
        Tokens that occurred in any caption.
    """
    import torch

    rng = np.random.default_rng(SEED)
    styles = np.flatnonzero(np.array(data.domain_names) != HELD_OUT_STYLE)
    n_concepts = len(data.concepts) // len(data.domain_names)
    concepts = np.flatnonzero(~held_out_concepts(data.concepts[:n_concepts]))
    parameters = [*model.text.parameters(), model.logit_scale]
    optimizer = torch.optim.AdamW(parameters, lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, _STEPS)
    used = set()
    for _ in range(_STEPS):
        # Distinct concepts, so that no caption in the batch fits another's picture.
        rows = rng.choice(concepts, _BATCH, replace=False)
        rows = rows + n_concepts * rng.choice(styles, _BATCH)
        picture = images[rows]
        names = tokenize([_caption(data, row, rng) for row in rows])
        groups = tokenize(
            [_fill(rng.choice(_TEMPLATES), name) for name in data.target_names]
        )
        used.update(names.unique().tolist(), groups.unique().tolist())
        scale = model.logit_scale.exp().clamp(max=100)
        text = model.encode_text(torch.cat([names, groups]), normalize=True)
        logits = scale * picture @ text.T
        matches = torch.arange(_BATCH)
        to_name = logits[:, :_BATCH]
        loss = (
            torch.nn.functional.cross_entropy(to_name, matches) / 2
            + torch.nn.functional.cross_entropy(to_name.T, matches) / 2
            + torch.nn.functional.cross_entropy(
                logits[:, _BATCH:], torch.from_numpy(data.target[rows])
            )
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return torch.tensor(sorted(used))


def zero_shot_accuracy(model, tokenize, data, images):
    """Measure zero-shot accuracy over the categories, on concepts never seen.

    Parameters
    ----------
    model, tokenize, data, images
        As in :func:`train`.

    Returns
    -------
    accuracy : dict of str to float
        Accuracy for each style.
    """
    import torch

    prompts = [_fill(_EVALUATION_TEMPLATE, name) for name in data.target_names]
    with torch.inference_mode():
        text = model.encode_text(tokenize(prompts), normalize=True)
        predicted = (images @ text.T).argmax(1).numpy()
    unseen = held_out_concepts(data.concepts)
    correct = predicted == data.target
    return {
        style: float(correct[unseen & (data.domains == index)].mean())
        for index, style in enumerate(data.domain_names)
    }


def embed_images(model, paths, batch_size=64):
    """Embed pictures on white ground.

    Parameters
    ----------
    model : open_clip.CustomTextCLIP
        Its image tower is folded in place, to be faster.
    paths : list of str
        n picture files.
    batch_size : int, default=64
        Pictures per forward pass.

    Returns
    -------
    images : float32 tensor, shape (n, 1280)
        Normalised embeddings.
    """
    import torch
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from tqdm import tqdm

    visual = model.visual
    prepare = image_transform_v2(PreprocessCfg(**visual.preprocess_cfg), is_train=False)
    demo.fold_batch_norm(visual, torch.zeros(1, 3, 224, 224))
    visual.to(memory_format=torch.channels_last)
    embeddings = []
    with torch.inference_mode():
        for start in tqdm(range(0, len(paths), batch_size), "embedding", unit="batch"):
            batch = [prepare(_on_white(p)) for p in paths[start : start + batch_size]]
            batch = torch.stack(batch).contiguous(memory_format=torch.channels_last)
            embeddings.append(visual(batch))
    return torch.nn.functional.normalize(torch.cat(embeddings)).clone()


def _on_white(path):
    from PIL import Image

    with Image.open(path) as file:
        picture = file.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def _caption(data, row, rng):
    """Draw a caption: the name or a keyword, bare or in a template."""
    name = data.names[row]
    if rng.random() < 0.25:
        name = rng.choice(data.keywords[row].split(", "))
    if rng.random() < 0.25:
        style = _STYLE_WORDS[data.domain_names[data.domains[row]]]
        return _STYLE_TEMPLATE.format(style=style, name=name)
    return _fill(rng.choice(_TEMPLATES), name)


def _fill(template, name):
    return template.format(name)


def _save(model, used_tokens, accuracy, path):
    import open_clip
    import safetensors
    import timm
    import torch
    from safetensors.torch import save_file

    libraries = (np, open_clip, safetensors, timm, torch)
    recipe = {
        "loss": "CLIP contrastive over names + cross-entropy over category captions",
        "optimizer": "AdamW, one-cycle",
        "steps": _STEPS,
        "batch": _BATCH,
        "learning_rate": _LEARNING_RATE,
        "weight_decay": _WEIGHT_DECAY,
        "held_out_style": HELD_OUT_STYLE,
        "held_out_concepts": "SHA-256 of the code points, first byte below 51.2",
    }
    facts = {
        "recipe": recipe,
        "seed": SEED,
        "accuracy": accuracy,
        "versions": {library.__name__: library.__version__ for library in libraries},
        "sources": "Noto Emoji (Apache 2.0), Twemoji (CC BY 4.0), OpenMoji "
        "(CC BY-SA 4.0), Microsoft Fluent Emoji (MIT); names from Unicode CLDR",
    }
    metadata = {key: json.dumps(value) for key, value in facts.items()}
    save_file(demo.text_tower_state(model, used_tokens), path, metadata)
    os.chmod(path, 0o644)  # safetensors makes it readable by its owner only


def main(arguments=None):
    """Train, print the accuracy of each style, and write the weights."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--node-modules", default="node_modules", metavar="DIR")
    parser.add_argument("--output", default=demo.TEXT_WEIGHTS, metavar="FILE")
    options = parser.parse_args(arguments)

    data = fetch_emoji_styles(options.node_modules)
    torch.manual_seed(SEED)
    model, tokenize = demo.build_with_image_tower(), demo.demo_tokenizer()
    images = embed_images(model, data.images)
    used_tokens = train(model, tokenize, data, images)
    accuracy = zero_shot_accuracy(model, tokenize, data, images)
    print("Zero-shot accuracy, 8 categories, concepts never seen:")
    for style, value in accuracy.items():
        note = " (style never seen)" if style == HELD_OUT_STYLE else ""
        print(f"  {style:15} {value:.3f}{note}")
    _save(model, used_tokens, accuracy, options.output)


if __name__ == "__main__":
    main()
