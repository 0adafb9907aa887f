"""A small CLIP model that installs with pip: ImageNet features, emoji captions."""
