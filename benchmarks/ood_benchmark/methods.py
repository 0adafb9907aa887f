"""What is compared: a representation, and a classifier on it, for each method.

A setting is a flat tuple of names and values, ("lam", 10, "C", 1).
"""

from typing import NamedTuple

import numpy as np

from . import classifiers as heads
from . import representations as maps
from .representations import LAMS_OF_GROUPS, Training, UnavailableError

__all__ = ["METHODS", "Method", "Model", "Training", "UnavailableError"]


class Method(NamedTuple):
    represent: object
    classify: object = heads.probe  # None: the prompts
    transductive: bool = False  # sees the target's images, without labels
    shift_only: bool = False  # not run on new classes


class Model(NamedTuple):
    """One setting of a method, fitted."""

    represent: maps.Affine
    coefficients: object
    intercepts: object

    def logits(self, Z, domains):
        return self.represent.apply(Z, domains, self.coefficients) + self.intercepts


class NearestPrompt(Model):
    """The class whose prompt has the largest cosine, as in ZeroShotClassifier."""

    def logits(self, Z, domains):
        if self.coefficients.shape[1] > 2:  # then only the order counts, not lengths
            return self.represent.apply(Z, domains, self.coefficients)
        return unit(self.represent(Z, domains)) @ self.coefficients


METHODS = {
    "zero-shot": Method(maps.raw, None),
    "zero-shot + ICM, image pairs": Method(maps.zero_shot_icm("interventional"), None),
    "zero-shot + ICM, caption pairs": Method(maps.zero_shot_icm("captions"), None),
    "zero-shot + ICM, image and caption pairs": Method(
        maps.zero_shot_icm("both"), None
    ),
    "zero-shot + ICM, images against captions": Method(
        maps.zero_shot_icm("images and captions"), None
    ),
    "probe": Method(maps.raw),
    "probe, centred": Method(maps.centred),
    "originals + counterparts": Method(maps.centred, heads.augmented),
    "probe + zero-shot": Method(maps.raw, heads.averaged),
    "PCA": Method(maps.pca),
    "LDA": Method(maps.lda),
    "Gaussian discriminant": Method(maps.raw, heads.gaussian),
    "VREx": Method(maps.centred, heads.vrex, shift_only=True),
    "GroupDRO": Method(maps.centred, heads.group_dro, shift_only=True),
    "LEACE, domain erased": Method(maps.leace),
    "script's matrix, smallest": Method(maps.script(largest=False), shift_only=True),
    "script's matrix, largest": Method(maps.script(largest=True), shift_only=True),
    "ICM projection": Method(maps.projection("interventional")),
    "ICM whitening": Method(maps.whitening("interventional")),
    "ICM projection + counterparts": Method(
        maps.projection("interventional"), heads.augmented
    ),
    "ICM whitening + counterparts": Method(
        maps.whitening("interventional"), heads.augmented
    ),
    "ICM projection, domain pairs": Method(maps.projection("domain", LAMS_OF_GROUPS)),
    "ICM projection, class pairs": Method(maps.projection("class", LAMS_OF_GROUPS)),
    "ICM projection, caption pairs": Method(
        maps.projection("captions", LAMS_OF_GROUPS), shift_only=True
    ),
    "ICM projection, images against captions": Method(
        maps.projection("images and captions", LAMS_OF_GROUPS), shift_only=True
    ),
    "CORAL": Method(maps.coral, transductive=True),
    "probe, centred by domain": Method(maps.centring, transductive=True),
    "ICM projection, centred by domain": Method(
        maps.projection("interventional", by_domain=True), transductive=True
    ),
    "ICM whitening, centred by domain": Method(
        maps.whitening("interventional", by_domain=True), transductive=True
    ),
}

#: What others are compared with, image by image.
BASELINE = "probe, centred"
#: What each of these takes the best of, the plain one first: it wins a tie.
CHOSEN = {
    "ICM, chosen": ("probe", "ICM projection", "ICM whitening"),
    "ICM, centred by domain, chosen": (
        "probe, centred by domain",
        "ICM projection, centred by domain",
        "ICM whitening, centred by domain",
    ),
}
ROWS = (*METHODS, *CHOSEN)


def unit(rows):
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(lengths, 1e-12)


def is_transductive(name):
    return METHODS[CHOSEN[name][0] if name in CHOSEN else name].transductive


def fit(name, training):
    """Yield setting and `Model` for each setting of a method."""
    method = METHODS[name]
    if method.classify in (None, heads.averaged) and training.prompts is None:
        raise UnavailableError("needs a text tower")
    for setting, represent in method.represent(training).items():
        # CLIP's own logits are of rows as they are.
        if method.classify not in (None, heads.averaged):
            represent = represent.rescaled(training)
        for of_classifier, model in _classified(name, represent, training).items():
            yield (*setting, *of_classifier), model


def refit(name, model, training, setting):
    """Return a setting's model with a classifier for other classes."""
    classified = _classified(name, model.represent, training)
    [found] = [
        model
        for of_classifier, model in classified.items()
        if setting[len(setting) - len(of_classifier) :] == of_classifier
    ]
    return found


def _classified(name, represent, training):
    classify = METHODS[name].classify
    if classify is None:
        prompts = represent(training.prompts, None)
        return {(): NearestPrompt(represent, unit(prompts).T, 0.0)}
    X = represent(training.Z, training.domains)
    X_do = represent(training.X_do, training.domains)
    return {
        setting: Model(represent, *parameters)
        for setting, parameters in classify(training, X, X_do).items()
    }
