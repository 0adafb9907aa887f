"""Anything to an RGB image, or a clear error."""
