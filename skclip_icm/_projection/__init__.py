"""Sums over rows and pairs, directions, array libraries; no images, no models."""
