"""Invariant classifiers on CLIP embeddings, as scikit-learn estimators.

The public names are found on first use, so that importing the package costs next to
nothing and brings in neither scikit-learn nor torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from skclip_icm._version import __version__ as __version__

if TYPE_CHECKING:
    from skclip_icm import datasets, distributed, interventions, plotting
    from skclip_icm._encoding.encoder import unload_models
    from skclip_icm._encoding.weights import WeightsNotFoundError
    from skclip_icm._images.inputs import ImageError
    from skclip_icm._images.unreadable import drop_unreadable
    from skclip_icm.adaptation import adapt
    from skclip_icm.cache import EmbeddingCache
    from skclip_icm.featurizer import CLIPFeaturizer
    from skclip_icm.files import EmbeddingFiles, embed_files, fit_files, transform_files
    from skclip_icm.icm import ICMTransformer
    from skclip_icm.model_selection import interventional_scorer, invariant_search
    from skclip_icm.pairs import PairedEmbeddings
    from skclip_icm.reporting import report
    from skclip_icm.zero_shot import ZeroShotClassifier

__all__ = [
    "CLIPFeaturizer",
    "EmbeddingCache",
    "EmbeddingFiles",
    "ICMTransformer",
    "ImageError",
    "PairedEmbeddings",
    "WeightsNotFoundError",
    "ZeroShotClassifier",
    "adapt",
    "datasets",
    "distributed",
    "drop_unreadable",
    "embed_files",
    "fit_files",
    "interventional_scorer",
    "interventions",
    "invariant_search",
    "plotting",
    "report",
    "transform_files",
    "unload_models",
]

_HOME = {
    "CLIPFeaturizer": "featurizer",
    "EmbeddingCache": "cache",
    "EmbeddingFiles": "files",
    "ICMTransformer": "icm",
    "ImageError": "_images.inputs",
    "PairedEmbeddings": "pairs",
    "WeightsNotFoundError": "_encoding.weights",
    "ZeroShotClassifier": "zero_shot",
    "adapt": "adaptation",
    "drop_unreadable": "_images.unreadable",
    "embed_files": "files",
    "fit_files": "files",
    "interventional_scorer": "model_selection",
    "invariant_search": "model_selection",
    "report": "reporting",
    "transform_files": "files",
    "unload_models": "_encoding.encoder",
}


def __getattr__(name):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _HOME:
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    else:
        value = import_module(f"{__name__}.{name}")
    globals()[name] = value  # found directly from now on
    return value


def __dir__():
    return sorted({*globals(), *__all__})
