"""Embeddings in files: read, fitted to and transformed chunk by chunk."""

from skclip_icm.files._embedding_files import EmbeddingFiles
from skclip_icm.files._fit import fit_files, transform_files

__all__ = ["EmbeddingFiles", "fit_files", "transform_files"]
