"""Which directions an `ICMTransformer` keeps, and how invariant they are."""

import numpy as np

from skclip_icm._estimators import find_fitted_icm
from skclip_icm.plotting._axes import BLUE, VERMILION, line_color, make_axes


class SpectrumDisplay:
    r"""Eigenvalues of an `ICMTransformer`, the cut, and the invariance.

    It is recommended to use `from_estimator`. The upper panel has the eigenvalues of
    :math:`S - \lambda S_{do}` (or the weights of the whitening), in descending order:
    positive ones for directions that vary between images more than :math:`\lambda`
    times what the intervention causes. The lower panel has the invariance of the
    directions that are kept: 1 where the intervention changes nothing, 0 where it
    changes as much as drawing another image does.

    Parameters
    ----------
    eigenvalues : array-like of shape (d,)
        Eigenvalues or whitening weights, descending.
    n_components : int
        Number of directions kept.
    invariance : array-like of shape (n_components,)
        Invariance of these.
    method : {"projection", "whitening"}, default="projection"
        What `eigenvalues` are: eigenvalues, or weights.
    lam : float or None, default=None
        The :math:`\lambda` of the projection, for the label.

    Attributes
    ----------
    figure_ : matplotlib Figure
        The figure.
    axes_ : ndarray of shape (2, 1) of matplotlib Axes
        Its panels.

    See Also
    --------
    skclip_icm.ICMTransformer : Has what is drawn as attributes.

    Examples
    --------
    >>> from skclip_icm import ICMTransformer
    >>> from skclip_icm.datasets import make_causal_embeddings
    >>> from skclip_icm.plotting import SpectrumDisplay
    >>> data = make_causal_embeddings(n_samples=500, random_state=0)
    >>> icm = ICMTransformer(lam=10).fit(data.embeddings[data.domains == 0])
    >>> display = SpectrumDisplay.from_estimator(icm)
    >>> display.n_components, float(display.invariance.min().round(2))
    (16, 1.0)
    """

    def __init__(
        self, *, eigenvalues, n_components, invariance, method="projection", lam=None
    ):
        self.eigenvalues = eigenvalues
        self.n_components = n_components
        self.invariance = invariance
        self.method = method
        self.lam = lam

    @classmethod
    def from_estimator(cls, estimator, *, ax=None):
        """Draw the spectrum of a fitted estimator.

        Parameters
        ----------
        estimator : ICMTransformer, Pipeline or search
            Fitted; of a pipeline, or of the best one of a search, the first
            `ICMTransformer` is drawn.
        ax : matplotlib Axes, array-like of two Axes or None, default=None
            Where to draw; one is divided. None makes a figure.

        Returns
        -------
        display : SpectrumDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If there is no `ICMTransformer`.
        NotFittedError
            If it is not fitted.
        """
        _, icm = find_fitted_icm(estimator)
        display = cls(
            eigenvalues=icm.eigenvalues_,
            n_components=icm.n_components_,
            invariance=icm.invariance_,
            method=icm.method,
            lam=icm.lam,
        )
        return display.plot(ax)

    def plot(self, ax=None):
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, array-like of two Axes or None, default=None
            Where to draw; one is divided. None makes a figure.

        Returns
        -------
        display : SpectrumDisplay
            The display itself.
        """
        self.figure_, self.axes_ = make_axes(ax, 2, 1, (7, 5.5))
        upper, lower = self.axes_.ravel()
        self._draw_eigenvalues(upper)
        self._draw_invariance(lower)
        return self

    def _draw_eigenvalues(self, ax):
        values = np.array(self.eigenvalues, dtype=float)
        d = len(values)
        # Directions without variance have eigenvalues of rounding size, of any sign.
        values[np.abs(values) <= np.abs(values).max() * d * np.finfo(float).eps] = 0
        positive, negative = np.maximum(values, 0), np.minimum(values, 0)
        edges = np.arange(d + 1) + 0.5
        ax.stairs(
            positive,
            edges,
            fill=True,
            color=BLUE,
            label=f"positive ({np.count_nonzero(positive)})",
        )
        if negative.any():
            ax.stairs(
                negative,
                edges,
                fill=True,
                facecolor=ax.get_facecolor(),
                edgecolor=VERMILION,
                hatch="////",
                label=f"negative ({np.count_nonzero(negative)})",
            )
        ax.axhline(0, color=line_color(ax), linewidth=0.8)
        ax.axvline(
            self.n_components + 0.5,
            color=line_color(ax),
            linestyle="--",
            label=f"cut: {self.n_components} of {d} kept",
        )
        ax.set(xlim=(0.5, d + 1), xlabel="direction", ylabel=self._name())
        ax.xaxis.get_major_locator().set_params(integer=True)
        if self.method == "projection":
            # A few directions have most of the variance; the cut is among small ones.
            linear, ticks = _symlog_scale(values)
            ax.set_yscale("symlog", linthresh=linear)
            ax.set_yticks(ticks, _write(ticks))
            ax.minorticks_off()
        # Where a descending curve leaves room.
        ax.legend(loc="upper right", framealpha=1)

    def _draw_invariance(self, ax):
        invariance = np.asarray(self.invariance, dtype=float)
        ax.plot(
            np.arange(1, len(invariance) + 1),
            invariance,
            color=BLUE,
            marker="o" if len(invariance) <= 100 else None,
        )
        ax.set(
            xlim=(0.5, len(invariance) + 0.5),
            ylim=(min(0, invariance.min()) - 0.05, 1.05),
            xlabel="kept direction",
            ylabel="invariance\n(1: pairs do not differ)",
        )
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.axhline(0, color=line_color(ax), linewidth=0.8)

    def _name(self):
        if self.method == "whitening":
            return "whitening weight"
        lam = {None: r"\lambda\,", 1: ""}.get(self.lam, f"{self.lam}\\,")
        return rf"eigenvalue of $S - {lam}S_{{do}}$"


def _symlog_scale(values):
    """Return the size below which the scale is linear, and ticks far enough apart."""
    sizes = np.abs(values[values != 0])
    if not sizes.size:
        return 1.0, [0.0]
    low, high = np.floor(np.log10([np.median(sizes), sizes.max()])).astype(int)
    step = max(1, (high - low) // 2)
    powers = [10.0**power for power in range(high, low, -step)]
    negative = [-power for power in powers if values.min() <= -power]
    positive = [power for power in powers if values.max() >= power]
    return 10.0**low, [*negative, 0.0, *reversed(positive)]


def _write(ticks):
    if all(tick == 0 or 0.01 <= abs(tick) <= 1000 for tick in ticks):
        return [f"${tick:g}$" for tick in ticks]
    signs = {-1: "-", 1: ""}
    return [
        f"${signs[np.sign(t)]}10^{{{np.log10(abs(t)):.0f}}}$" if t else "$0$"
        for t in ticks
    ]
