"""Embeddings in files: made, read, fitted to and transformed part by part."""

from skclip_icm.files._embed import embed_files
from skclip_icm.files._embedding_files import EmbeddingFiles
from skclip_icm.files._fit import fit_files, transform_files

__all__ = ["EmbeddingFiles", "embed_files", "fit_files", "transform_files"]
