"""Interventions, do(.), on images and on captions."""

from skclip_icm.interventions._captions import LEXICON, TEMPLATES, captions
from skclip_icm.interventions._intervene import (
    IMAGE_INTERVENTIONS,
    intervene,
    intervention_key,
    resolve_interventions,
)
from skclip_icm.interventions._recipes import PHOTOMETRIC, RANGES

__all__ = [
    "IMAGE_INTERVENTIONS",
    "LEXICON",
    "PHOTOMETRIC",
    "RANGES",
    "TEMPLATES",
    "captions",
    "intervene",
    "intervention_key",
    "resolve_interventions",
]
