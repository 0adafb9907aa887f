"""Data sets with domains, and a causal model whose factors are known."""

from skclip_icm.datasets._causal import make_causal_embeddings

__all__ = ["make_causal_embeddings"]
