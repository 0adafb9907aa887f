"""Displays, as in scikit-learn: what the method did to the data, at a glance.

Each has a ``from_estimator`` that computes and draws, and a ``plot`` that draws again.
matplotlib is imported when something is drawn.
"""

from skclip_icm.plotting._domain_accuracy import DomainAccuracyDisplay
from skclip_icm.plotting._intervention import InterventionDisplay
from skclip_icm.plotting._invariance_map import InvarianceMapDisplay
from skclip_icm.plotting._spectrum import SpectrumDisplay

__all__ = [
    "DomainAccuracyDisplay",
    "InterventionDisplay",
    "InvarianceMapDisplay",
    "SpectrumDisplay",
]
