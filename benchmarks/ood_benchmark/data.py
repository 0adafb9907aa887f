"""Data sets as embeddings, beside those of their interventions."""

import time
from dataclasses import dataclass, replace

import numpy as np

from skclip_icm.datasets import make_causal_embeddings
from skclip_icm.interventions import captions
from skclip_icm.model_selection import VALIDATION_INTERVENTIONS

from .sources import Source, source_of

CAPTION_PAIRS = 32  # per class
TEMPLATE = "a photo of a {}."

# Methods are fitted with "photometric", and settings are chosen under interventions
# that are not in it: a setting that only undoes what it was fitted on is not preferred.
# Hue is not among the latter, since turning it is what happens in the unseen domain of
# coloured MNIST.
FITTED_WITH = "photometric"
VALIDATION = VALIDATION_INTERVENTIONS
VALIDATION_OF_GREY = tuple(name for name in VALIDATION if name != "grayscale")
FITTING = "fitting interventions"


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


def n_encodings(source):
    """How many images the model has to see."""
    n_views = len(VALIDATION_OF_GREY if source.grey else VALIDATION)
    return len(source.images) + (1 + n_views) * trained_rows(source).size


def trained_rows(source):
    """Rows that are trained on when some domain is left out."""
    domains = np.unique(sum((case[0] for case in source.cases), ()))
    return np.flatnonzero(np.isin(source.domains, domains) & ~source.held_out)


def embed(source, featurizer):
    start = time.perf_counter()
    Z = np.asarray(featurizer.transform(source.images))
    trained = trained_rows(source)
    images = [source.images[row] for row in trained]
    view_names = VALIDATION_OF_GREY if source.grey else VALIDATION
    made = featurizer.intervene(images, [FITTED_WITH, *view_names]).counterparts
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
        view_names=view_names,
        prompts=featurizer.encode_text(prompts),
        caption_pairs=np.reshape(pairs, shape),
        encoding_seconds=time.perf_counter() - start,
    )


def causal(n_samples=1000):
    """Embeddings of a known causal model, to try the benchmark in seconds."""
    data = make_causal_embeddings(n_samples, random_state=0)
    counterparts = np.asarray(data.embeddings.counterparts)
    return Task(
        **vars(
            source_of(
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
