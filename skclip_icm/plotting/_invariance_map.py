"""What is close to what, before and after the invariant projection."""

import numpy as np
from sklearn.decomposition import PCA
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils.validation import _num_samples

from skclip_icm._estimators import find_fitted_icm
from skclip_icm._labels import check_labels
from skclip_icm.plotting._axes import (
    COLORS,
    add_legend,
    check_names,
    line_color,
    make_axes,
    short_names,
)

# A colour and a marker of its own for each group; more groups than this in one panel
# cannot be told apart.
_COLORS = (*COLORS, "#999999", "#FFFFFF")
_MARKERS = "o^sDvPX<>*"


class InvarianceMapDisplay:
    """Two-dimensional views of embeddings before and after an `ICMTransformer`.

    It is recommended to use `from_estimator`. Each view is a principal component
    analysis of its own, with the share of the variance on the axes. The upper row tells
    classes apart, the lower row domains: where ICM does its work, classes stay apart
    and domains mix.

    Parameters
    ----------
    before, after : ndarray of shape (n, 2)
        Coordinates of the same rows.
    y : array-like of shape (n,)
        Classes.
    domains : array-like of shape (n,) or None, default=None
        Domains. None leaves the lower row out.
    explained : array-like of shape (2, 2) or None, default=None
        Share of the variance along each axis of `before` and of `after`, for the
        labels.

    Attributes
    ----------
    figure_ : matplotlib Figure
        The figure.
    axes_ : ndarray of shape (2, 2), or (1, 2) without domains, of matplotlib Axes
        Its panels.

    See Also
    --------
    sklearn.decomposition.PCA : Makes the coordinates.

    Notes
    -----
    Two dimensions show little of a thousand: groups that overlap here may still be
    linearly separable. Beyond ten groups, the nine largest have colours of their own
    and the rest is light grey.

    Examples
    --------
    >>> from skclip_icm import ICMTransformer
    >>> from skclip_icm.datasets import make_causal_embeddings
    >>> from skclip_icm.plotting import InvarianceMapDisplay
    >>> data = make_causal_embeddings(n_samples=500, random_state=0)
    >>> icm = ICMTransformer(lam=10).fit(data.embeddings[data.domains == 0])
    >>> display = InvarianceMapDisplay.from_estimator(
    ...     icm, data.embeddings, data.target, data.domains
    ... )
    >>> display.after.shape
    (1000, 2)
    """

    def __init__(self, *, before, after, y, domains=None, explained=None):
        self.before = before
        self.after = after
        self.y = y
        self.domains = domains
        self.explained = explained

    @classmethod
    def from_estimator(
        cls,
        estimator,
        X,
        y,
        domains=None,
        *,
        target_names=None,
        domain_names=None,
        max_samples=2000,
        random_state=0,
        ax=None,
    ):
        """Transform rows by a fitted estimator, and draw.

        Parameters
        ----------
        estimator : ICMTransformer, Pipeline or search
            Fitted. Of a pipeline, the steps up to its first `ICMTransformer` are
            applied.
        X : sequence of length n
            What the estimator takes: images, or embeddings.
        y : array-like of shape (n,)
            Classes.
        domains : array-like of shape (n,) or None, default=None
            Domain of each row. None leaves the lower row out.
        target_names, domain_names : list of str or None, default=None
            Names of the classes and domains where `y` and `domains` count them from 0.
        max_samples : int, default=2000
            If there are more rows, that many are drawn at random.
        random_state : int, RandomState instance or None, default=0
            Determines which.
        ax : matplotlib Axes, array-like of Axes or None, default=None
            Where to draw: one, which is divided, or one for each panel. None makes a
            figure.

        Returns
        -------
        display : InvarianceMapDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If there is no `ICMTransformer`, the lengths differ, or `max_samples` is
            below 1.
        NotFittedError
            If it is not fitted.
        """
        if max_samples < 1:
            raise ValueError(
                f"max_samples is {max_samples}, expected one row at least."
            )
        steps, icm = find_fitted_icm(estimator)
        y = check_labels(y, "y", _num_samples(X))
        y = check_names(y, target_names, "target_names")
        if domains is not None:
            domains = check_labels(domains, "domains", _num_samples(X))
            domains = check_names(domains, domain_names, "domain_names")
        if _num_samples(X) > max_samples:
            rng = check_random_state(random_state)
            rows = np.sort(rng.choice(_num_samples(X), max_samples, replace=False))
            X, y = _safe_indexing(X, rows), y[rows]
            domains = None if domains is None else domains[rows]
        for step in steps:
            X = step.transform(X)
        (before, explained_before), (after, explained_after) = map(
            _two_dimensions, (X, icm.transform(X))
        )
        display = cls(
            before=before,
            after=after,
            y=y,
            domains=domains,
            explained=[explained_before, explained_after],
        )
        return display.plot(ax)

    def plot(self, ax=None):
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, array-like of Axes or None, default=None
            Where to draw: one, which is divided, or one for each panel. None makes a
            figure.

        Returns
        -------
        display : InvarianceMapDisplay
            The display itself.
        """
        n = len(self.before)
        rows = [("class", check_labels(self.y, "y", n))]
        if self.domains is not None:
            rows.append(("domain", check_labels(self.domains, "domains", n)))
        size = 9.5, 0.5 + 3.8 * len(rows)
        self.figure_, self.axes_ = make_axes(ax, len(rows), 2, size)
        for (title, labels), panels in zip(rows, self.axes_, strict=True):
            groups = _groups(labels)
            for i, points in enumerate((self.before, self.after)):
                handles = _scatter(panels[i], np.asarray(points), groups)
                self._label(panels[i], i)
            names = [name for name, _, _ in groups]
            where = {"loc": "upper left", "bbox_to_anchor": (1.02, 1)}
            legend = add_legend(panels[1], handles, names, title=title, **where)
            for handle in legend.legend_handles:
                handle.set(alpha=1, sizes=[40])
        for panel, title in zip(
            self.axes_[0], ("before ICM", "after ICM"), strict=True
        ):
            panel.set_title(title)
        return self

    def _label(self, panel, i):
        names = ["PC 1", "PC 2"]
        if self.explained is not None:
            shares = [f"{share:.0%}" for share in self.explained[i]]
            names = [f"PC 1 ({shares[0]} of variance)", f"PC 2 ({shares[1]})"]
        panel.set(xlabel=names[0], ylabel=names[1], xticks=[], yticks=[])


def _two_dimensions(Z):
    Z = np.asarray(Z)
    n_components = min(2, *Z.shape)
    if (Z == Z[0]).all():  # one row, or all alike: no variance to take shares of
        return np.zeros((len(Z), 2)), np.zeros(2)
    pca = PCA(n_components, random_state=0)
    points = pca.fit_transform(Z)
    missing = 2 - n_components
    return (
        np.pad(points, [(0, 0), (0, missing)]),
        np.pad(pca.explained_variance_ratio_, (0, missing)),
    )


def _groups(labels):
    """Return (name, rows, style) of each group to draw, the rest beneath the others."""
    values, counts = np.unique(labels, return_counts=True)
    shown = values
    if len(values) > len(_COLORS):
        largest = np.argsort(-counts, kind="stable")[: len(_COLORS) - 1]
        shown = values[np.sort(largest)]
    groups = [
        (entry, labels == value, {"color": color, "marker": marker})
        for entry, value, color, marker in zip(
            short_names(shown), shown, _COLORS, _MARKERS, strict=False
        )
    ]
    rest = ~np.isin(labels, shown)
    if rest.any():
        name = f"{len(values) - len(shown)} smaller ones"
        style = {"color": "#DDDDDD", "marker": ".", "zorder": 0}
        groups.append((name, rest, style))
    return groups


def _scatter(panel, points, groups):
    edges = [line_color(panel)]
    alike = {"s": 18, "alpha": 0.6, "edgecolors": edges, "linewidths": 0.3}
    return [
        panel.scatter(*points[rows].T, **alike, **style) for _, rows, style in groups
    ]
