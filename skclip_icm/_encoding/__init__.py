"""Weights, models, the pass from images to embeddings, and where these are kept."""
