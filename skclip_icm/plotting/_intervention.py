"""What interventions do to images, and to their embeddings."""

import os
import textwrap

import numpy as np

from skclip_icm._containers import entries
from skclip_icm._encoding.views import AS_IS
from skclip_icm._estimators import find_featurizer
from skclip_icm._images.decoding import decode
from skclip_icm._images.inputs import as_items, read_content
from skclip_icm.interventions import resolve_interventions
from skclip_icm.plotting._axes import make_axes, verbatim

_MAX_IMAGES = 32


class InterventionDisplay:
    """Images beside their counterparts, with the cosine of their embeddings.

    It is recommended to use `from_estimator`. One row for each image: the image as the
    model sees it, resized and cropped, then its counterparts, each with the cosine
    between its embedding and that of the image: 1 if the model sees no difference. For
    comparison, the mean cosine between the images themselves stands above them.

    Parameters
    ----------
    originals : ndarray of shape (n, height, width, 3), uint8
        Images as the model sees them.
    counterparts : ndarray of shape (n, k, height, width, 3), uint8
        Their counterparts under each of k interventions.
    cosines : ndarray of shape (n, k)
        Cosines between the embeddings of image and counterpart.
    image_names : list of str of length n
        What to write under the images.
    intervention_names : list of str of length k
        What to write above the counterparts.
    between : float or None, default=None
        Mean cosine between the embeddings of different images.

    Attributes
    ----------
    figure_ : matplotlib Figure
        The figure.
    axes_ : ndarray of shape (n, 1 + k) of matplotlib Axes
        Its panels.

    See Also
    --------
    skclip_icm.CLIPFeaturizer.preview : The same in one call.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip_icm import CLIPFeaturizer
    >>> from skclip_icm.plotting import InterventionDisplay
    >>> images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    >>> display = InterventionDisplay.from_estimator(
    ...     CLIPFeaturizer("demo"), images, interventions=["grayscale", "invert"]
    ... )
    >>> display.cosines.shape
    (2, 2)
    """

    def __init__(
        self,
        *,
        originals,
        counterparts,
        cosines,
        image_names,
        intervention_names,
        between=None,
    ):
        self.originals = originals
        self.counterparts = counterparts
        self.cosines = cosines
        self.image_names = image_names
        self.intervention_names = intervention_names
        self.between = between

    @classmethod
    def from_estimator(
        cls, estimator, X, *, interventions=None, image_names=None, ax=None
    ):
        """Intervene on images, embed both, and draw.

        Parameters
        ----------
        estimator : CLIPFeaturizer, Pipeline or search
            The featurizer, or what holds one. It need not be fitted.
        X : sequence of length n
            Images, at most 32.
        interventions : str, callable, list or None, default=None
            Interventions to use instead of those of the featurizer.
        image_names : list of str of length n or None, default=None
            What to write under the images, such as their domains. None: the names of
            their files.
        ax : matplotlib Axes, array-like of n * (1 + k) Axes or None, default=None
            Where to draw; one is divided. None makes a figure.

        Returns
        -------
        display : InterventionDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If there is no `CLIPFeaturizer`, no intervention, or too many images.
        ImageError
            If an image cannot be read, also with ``on_error="nan"``.
        """
        before, featurizer, _ = find_featurizer(estimator)
        for step in before:
            X = step.transform(X)
        items = as_items(X)
        if len(items) > _MAX_IMAGES:
            raise ValueError(
                f"X has {len(items)} images, at most {_MAX_IMAGES} are drawn: pass a "
                "few, such as X[:8]."
            )
        if interventions is None:
            interventions = featurizer.interventions
        if interventions is None:
            raise ValueError(
                "There is no intervention: set CLIPFeaturizer(interventions=...) or "
                "pass interventions, such as 'photometric'."
            )
        # Made once: with a RandomState as seed, other calls give other counterparts.
        views = [AS_IS, *featurizer._views(interventions)]
        embeddings, *_ = featurizer._embed(items, views)
        rendered = _render(items, views, featurizer._encoder())
        display = cls(
            originals=rendered[:, 0],
            counterparts=rendered[:, 1:],
            cosines=_cosines(embeddings[:, :1], embeddings[:, 1:]),
            image_names=_image_names(items, image_names),
            intervention_names=_intervention_names(
                interventions, featurizer.n_interventions
            ),
            between=_mean_cosine(embeddings[:, 0]),
        )
        return display.plot(ax)

    def plot(self, ax=None):
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, array-like of n * (1 + k) Axes or None, default=None
            Where to draw; one is divided. None makes a figure.

        Returns
        -------
        display : InterventionDisplay
            The display itself.
        """
        n, k = np.shape(self.cosines)
        size = 1.9 * (1 + k), 0.4 + 2.1 * n
        self.figure_, self.axes_ = make_axes(ax, n, 1 + k, size)
        for panel in self.axes_.ravel():
            panel.set(xticks=[], yticks=[])
        title = "as the model sees it"
        if self.between is not None:
            title += f"\ntwo images: cosine {self.between:.2f}"
        self.axes_[0, 0].set_title(title, fontsize=10)
        for name, panel in zip(self.intervention_names, self.axes_[0, 1:], strict=True):
            panel.set_title(verbatim(textwrap.fill(name, 20)), fontsize=10)
        for row, panels in enumerate(self.axes_):
            panels[0].imshow(self.originals[row])
            panels[0].set_xlabel(verbatim(self.image_names[row]))
            for j, panel in enumerate(panels[1:]):
                panel.imshow(self.counterparts[row][j])
                panel.set_xlabel(f"cosine {self.cosines[row][j]:.2f}")
        return self


def _render(items, views, encoder):
    rows = []
    for row, item in enumerate(items):
        image = encoder.resize(decode(read_content(item, row), row, _path(item)))
        rows.append([np.asarray(view.render(image, encoder)) for view in views])
    return np.array(rows)


def _cosines(Z, Z_do):
    norms = np.linalg.norm(Z, axis=-1) * np.linalg.norm(Z_do, axis=-1)
    return np.sum(Z * Z_do, axis=-1) / np.maximum(norms, np.finfo(np.float32).tiny)


def _mean_cosine(Z):
    if len(Z) == 1:
        return None
    first, second = np.triu_indices(len(Z), 1)
    return float(_cosines(Z[first], Z[second]).mean())


def _intervention_names(interventions, n_draws):
    names = [name for name, _ in resolve_interventions(interventions)]
    if n_draws == 1:
        return names
    return [f"{name}, draw {draw + 1}" for name in names for draw in range(n_draws)]


def _image_names(items, names):
    if names is None:
        names = [
            os.path.basename(_path(item)) or f"image {row}"
            for row, item in enumerate(items)
        ]
    names = [str(name) for name in entries(names, "image_names", "a list of names")]
    if len(names) != len(items):
        raise ValueError(
            f"image_names holds {len(names)} names, expected {len(items)}: one for "
            "each image of X."
        )
    return [n if len(n) <= 22 else f"{n[:9]}…{n[-12:]}" for n in names]


def _path(item):
    return os.fsdecode(item) if isinstance(item, str | os.PathLike) else ""
