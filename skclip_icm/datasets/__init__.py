"""Data sets with domains, and a causal model whose factors are known."""

from skclip_icm.datasets._causal import make_causal_embeddings
from skclip_icm.datasets._elpv import fetch_elpv
from skclip_icm.datasets._emoji import fetch_emoji_styles

__all__ = ["fetch_elpv", "fetch_emoji_styles", "make_causal_embeddings"]
