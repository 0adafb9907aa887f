"""What is compared: each method turns training rows into representations.

A method is a function of `Training` that returns, for each setting of its parameters,
a representation: a function of embeddings (n, d) and their domains (n,). A classifier
is then fitted on what the representation makes of the training rows.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from skclip_icm import ICMTransformer

LAMS = (0.3, 1, 3, 10)
SHRINKAGES = (0.1, 1, 3, "auto")
PCA_COMPONENTS = (16, 64, 256)

PROJECTIONS = {f"lam={lam}": {"lam": lam} for lam in LAMS}
WHITENINGS = {
    f"shrinkage={shrinkage}": {"method": "whitening", "shrinkage": shrinkage}
    for shrinkage in SHRINKAGES
}
ZERO_SHOT_SETTINGS = {f"lam={lam}": {"lam": lam} for lam in (0.1, 0.3)} | {
    f"shrinkage={shrinkage}": {"method": "whitening", "shrinkage": shrinkage}
    for shrinkage in (10, 30, 100)
}


@dataclass(frozen=True, eq=False)
class Training:
    """What a method may learn from."""

    Z: np.ndarray
    X_do: np.ndarray
    y: np.ndarray
    domains: np.ndarray
    target: int  # domain to be predicted
    unlabelled: np.ndarray  # its rows, without labels, for transductive methods
    caption_pairs: tuple | None  # (U, V), of the classes in y
    fitted: dict = field(default_factory=dict)  # ICMTransformers, shared by methods


class Method(NamedTuple):
    fit: object
    zero_shot: bool = False  # classified by prompts, not by a probe
    transductive: bool = False  # sees the target's images, without labels


class UnavailableError(Exception):
    """A method does not exist for these data; the message says why."""


def raw(training):
    return {"": lambda Z, domains: Z}


def centred(training):
    """ICM's centring and scale without its projection: what these alone do."""
    mean = training.Z.mean(axis=0)
    return {"": lambda Z, domains: Z - mean}


def pca(training):
    limit = min(training.Z.shape)
    sizes = [size for size in PCA_COMPONENTS if size < limit] or [limit]
    fitted = PCA(max(sizes), svd_solver="covariance_eigh").fit(training.Z)
    return {
        f"n_components={size}": lambda Z, domains, size=size: fitted.transform(Z)[
            :, :size
        ]
        for size in sizes
    }


def lda(training):
    fitted = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto")
    fitted.fit(training.Z, training.y)
    return {"": lambda Z, domains: fitted.transform(Z)}


def centring(training):
    means = {training.target: training.unlabelled.mean(axis=0)}
    for domain in np.unique(training.domains):
        means[domain] = training.Z[training.domains == domain].mean(axis=0)
    return {"": lambda Z, domains: Z - np.stack([means[d] for d in domains])}


def coral(training):
    """Give the training rows the target's covariance (Sun et al., AAAI 2016)."""
    source_mean, target_mean = training.Z.mean(axis=0), training.unlabelled.mean(axis=0)
    align = _power(training.Z, -0.5) @ _power(training.unlabelled, 0.5)
    align = align.astype(training.Z.dtype)

    def represent(Z, domains):
        ours = np.asarray(domains)[:, None] == training.target
        return np.where(ours, Z - target_mean, (Z - source_mean) @ align)

    return {"": represent}


def leace(training):
    """Erase what predicts the domain linearly (Belrose et al., NeurIPS 2023)."""
    names, codes = np.unique(training.domains, return_inverse=True)
    if len(names) < 2:
        raise UnavailableError("needs two training domains")
    try:
        from concept_erasure import LeaceEraser
    except ImportError as error:
        raise UnavailableError("needs `pip install concept-erasure`") from error
    import torch

    one_hot = torch.eye(len(names))[torch.from_numpy(codes)]
    eraser = LeaceEraser.fit(torch.tensor(training.Z), one_hot)
    return {"": lambda Z, domains: eraser(torch.tensor(Z)).numpy()}


def smallest(training):
    """As many directions as ICM keeps, from the other end of the spectrum."""
    representations = {}
    for lam in (1, 10):
        whole = {"lam": lam, "n_components": None}
        icm = _fit_icm(training, "interventional", whole)
        kept = max((icm.eigenvalues_ > 0).sum(), 1)
        representations[f"lam={lam}"] = (
            lambda Z, domains, mean=icm.mean_, rows=icm.components_[-kept:]: (
                (Z - mean) @ rows.T
            )
        )
    return representations


def icm(pairs, settings):
    def fit(training):
        fits = {label: _fit_icm(training, pairs, p) for label, p in settings.items()}
        return {
            label: lambda Z, domains, icm=icm: icm.transform(Z)
            for label, icm in fits.items()
        }

    return fit


def zero_shot_icm(pairs):
    """Project images and prompts; plain CLIP is among the settings and wins a tie.

    Prompts were never shown the classes of these data, so a hard cut is a larger risk
    than for a probe: most settings damp the moved directions rather than drop them.
    """

    def fit(training):
        settings = ZERO_SHOT_SETTINGS
        fits = {label: _fit_icm(training, pairs, p) for label, p in settings.items()}
        return raw(training) | {
            label: lambda Z, domains, icm=icm: icm.project(Z)
            for label, icm in fits.items()
        }

    return fit


METHODS = {
    "zero-shot": Method(raw, zero_shot=True),
    "zero-shot + ICM, image pairs": Method(zero_shot_icm("interventional"), True),
    "zero-shot + ICM, caption pairs": Method(zero_shot_icm("captions"), True),
    "zero-shot + ICM, image and caption pairs": Method(zero_shot_icm("both"), True),
    "linear probe": Method(raw),
    "linear probe, centred": Method(centred),
    "PCA": Method(pca),
    "LDA": Method(lda),
    "mean-per-domain centring": Method(centring, transductive=True),
    "CORAL": Method(coral, transductive=True),
    "LEACE, domain erased": Method(leace),
    "smallest eigenvalues": Method(smallest),
    "ICM projection, interventional": Method(icm("interventional", PROJECTIONS)),
    "ICM projection, domain pairs": Method(icm("domain", PROJECTIONS)),
    "ICM projection, class pairs": Method(icm("class", PROJECTIONS)),
    "ICM projection, caption pairs": Method(icm("captions", PROJECTIONS)),
    "ICM whitening, interventional": Method(icm("interventional", WHITENINGS)),
}

# What "ICM, chosen" chooses from, the plain one first: it wins a tie.
CANDIDATES = (
    "linear probe",
    "ICM projection, interventional",
    "ICM whitening, interventional",
)


def rescaled(represent, training):
    """Scale a representation so that C means the same for all of them.

    ICMTransformer does so itself: training rows get mean squared norm 1.
    """
    mapped = represent(training.Z, training.domains)
    scale = np.mean(np.sum(mapped**2, axis=1, dtype=float)) ** -0.5
    scale = np.asarray(scale, dtype=mapped.dtype)
    return lambda Z, domains: represent(Z, domains) * scale


def _fit_icm(training, pairs, params):
    key = (pairs, *params.items())
    if key not in training.fitted:
        icm = ICMTransformer(pairs=_pairs(training, pairs), **params)
        used = {"domain": {"domains": training.domains}, "class": {}, "captions": {}}
        used = used.get(pairs, {"X_do": training.X_do})
        training.fitted[key] = icm.fit(training.Z, training.y, **used)
    return training.fitted[key]


def _pairs(training, pairs):
    if pairs == "domain" and len(np.unique(training.domains)) < 2:
        raise UnavailableError("needs two training domains")
    if pairs not in ("captions", "both"):
        return pairs
    if training.caption_pairs is None:
        raise UnavailableError("needs a text tower")
    if pairs == "captions":
        return training.caption_pairs
    # Such that both kinds move the embeddings equally far.
    moved = np.mean((training.Z - training.X_do) ** 2)
    moved_captions = np.mean(np.subtract(*training.caption_pairs) ** 2)
    return *training.caption_pairs, float(moved / (moved + moved_captions))


def _power(Z, exponent):
    """A power of the covariance plus its mean variance, as CORAL adds 1 to z-scores."""
    covariance = np.cov(Z, rowvar=False, dtype=float)
    ridge = np.trace(covariance) / len(covariance)
    eigenvalues, vectors = eigh(covariance)
    powers = (np.maximum(eigenvalues, 0) + ridge) ** exponent
    return (vectors * powers) @ vectors.T
