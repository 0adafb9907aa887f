"""Data sets with domains, and a causal model whose factors are known."""

from skclip_icm.datasets._causal import make_causal_embeddings
from skclip_icm.datasets._domain_folder import load_domain_folder
from skclip_icm.datasets._elpv import fetch_elpv
from skclip_icm.datasets._emoji import fetch_emoji_styles
from skclip_icm.datasets._mnist import coloured_mnist, rotated_mnist

__all__ = [
    "coloured_mnist",
    "fetch_elpv",
    "fetch_emoji_styles",
    "load_domain_folder",
    "make_causal_embeddings",
    "rotated_mnist",
]
