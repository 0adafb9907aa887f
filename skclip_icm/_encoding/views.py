"""What is rendered of each image: as it is, and after draws of interventions."""

import hashlib
from typing import NamedTuple

from skclip_icm.interventions import (
    intervene,
    intervention_key,
    resolve_interventions,
)


class View(NamedTuple):
    """One rendering of each image.

    Its `key` tells what it makes of an image, in keys of the cache. It is None for a
    function of which nobody knows that: its embeddings are kept by the pixels it makes.
    """

    key: str | None
    intervention: object = None
    random_state: int = 0
    draw: int = 0

    def render(self, image, encoder):
        """Return `image`, of the model's input size, in this view."""
        if self.intervention is None:
            return image
        changed = intervene(
            image, self.intervention, random_state=self.random_state, draw=self.draw
        )
        return encoder.resize(changed)

    def embedding_key(self, fingerprint, content):
        """Key of the embedding, by a model, of the image with the digest `content`."""
        about = f"{fingerprint}\0{self.key}\0".encode()
        return hashlib.sha256(about + content).digest()


AS_IS = View("as is")


def views_of(interventions, n_draws, random_state):
    """List the views that interventions make, draw by draw.

    Parameters
    ----------
    interventions : str, callable, or list or tuple of these
        As in `interventions.resolve_interventions`.
    n_draws : int
        Random draws of each.
    random_state : int
        Seed.

    Returns
    -------
    views : list of View
        One for each intervention and draw.
    """
    many = isinstance(interventions, list | tuple)
    entries = interventions if many else [interventions]
    resolve_interventions(entries)
    views = []
    for entry in entries:
        key = intervention_key(entry)
        for draw in range(n_draws):
            full = None if key is None else f"{key}/{random_state}/{draw}"
            views.append(View(full, entry, random_state, draw))
    return views
