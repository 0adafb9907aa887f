"""Axes and colours that the displays have in common."""

import re
from collections import Counter

import numpy as np
from sklearn.base import is_classifier, is_regressor

from skclip_icm._containers import entries, printable
from skclip_icm._labels import check_labels

# The palette of Okabe and Ito, "Color Universal Design" (2008): told apart with any
# colour vision. Ordered so that neighbours also differ in lightness, for print.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY_BLUE, YELLOW, BLACK = "#CC79A7", "#56B4E9", "#F0E442", "#000000"
COLORS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY_BLUE, YELLOW, BLACK)


def line_color(ax):
    """Return the colour of the frame: black, or what a dark style has in its place."""
    return ax.spines["left"].get_edgecolor()


def verbatim(text):
    """Return a name so that matplotlib does not read dollar signs in it as formulas."""
    return printable(text).replace("$", r"\$")


def add_legend(ax, handles, names, **options):
    """Add a legend that shows all names; matplotlib leaves out those like "_raw"."""
    legend = ax.legend(handles, ["name"] * len(names), **options)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(verbatim(name))
    return legend


def short_names(values, length=24):
    """Return names to show: a long one would leave no room for the panels."""
    names, end = [str(value) for value in values], 3 * length // 8
    short = [
        name if len(name) <= length else f"{name[: length - end - 1]}…{name[-end:]}"
        for name in names
    ]
    # Unless another one is then shown alike.
    return [s if short.count(s) == 1 else n for n, s in zip(names, short, strict=True)]


def check_names(labels, names, parameter):
    """Return what is shown of labels: themselves, or the names that they count.

    Parameters
    ----------
    labels : ndarray of shape (n,)
        Labels.
    names : sequence of str or None
        Names of the labels 0, 1, ..., or None.
    parameter : str
        What `names` is called, for messages.

    Returns
    -------
    labels : ndarray of shape (n,)
        The labels, or the name of each.
    """
    if names is None:
        return labels
    names = _distinct([names] if isinstance(names, str) else names, parameter)
    if not len(labels):
        return labels
    counts = labels.dtype.kind in "biu"
    if not counts or labels.min() < 0 or labels.max() >= len(names):
        found = f"{labels.min()} to {labels.max()}" if counts else str(labels[:3])
        named = f"{len(names)} names, of the labels 0 to {len(names) - 1}"
        if len(names) == 1:
            named = "1 name, of the label 0"
        raise ValueError(
            f"{parameter} holds {named}; the labels are {found}. Give a name for each "
            f"number that the labels count from 0, or leave {parameter} out if the "
            "labels are names themselves."
        )
    return names[labels.astype(int)]


def _distinct(names, parameter):
    names = entries(names, parameter, "a list of names")
    names = [str(name) for name in check_labels(names, parameter, len(names))]
    [(name, times)] = Counter(names).most_common(1) or [("", 0)]
    if times > 1:
        raise ValueError(
            f"{parameter} holds {name!r} more than once, so that different labels "
            "would be shown as one. Give each label a name of its own."
        )
    return np.array(names)


def name_metric(scoring, estimator):
    """Return what a measure is called, in words.

    Parameters
    ----------
    scoring : str, callable or None
        As in `sklearn.model_selection.cross_val_score`; None is the estimator's own.
    estimator : estimator
        What is scored.

    Returns
    -------
    name : str
        Such as "accuracy".
    """
    if scoring is None:
        if is_classifier(estimator):
            return "accuracy"
        return "R²" if is_regressor(estimator) else "score"
    made = re.match(r"make_scorer\((\w+?)(_score)?\b", repr(scoring))
    if made and not isinstance(scoring, str):
        name = made[1]
    else:
        name = scoring if isinstance(scoring, str) else None
    return (name or getattr(scoring, "__name__", repr(scoring))).replace("_", " ")


def import_pyplot():
    """Return `matplotlib.pyplot`, or say how to install it."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            'Drawing needs matplotlib: pip install "skclip-icm[plot]".'
        ) from error
    return plt


def make_axes(ax, n_rows, n_cols, figsize):
    """Return a figure and an array of axes, (n_rows, n_cols), to draw on.

    Parameters
    ----------
    ax : matplotlib Axes, array-like of Axes or None
        None makes a figure. One Axes is divided; several are used as they are.
    n_rows, n_cols : int
        Number of panels.
    figsize : (float, float)
        Width and height in inches of a figure that is made.

    Returns
    -------
    figure : matplotlib Figure
        The figure of the axes.
    axes : ndarray of shape (n_rows, n_cols) of Axes
        The panels.
    """
    plt = import_pyplot()
    if ax is None:
        return plt.subplots(
            n_rows, n_cols, figsize=figsize, squeeze=False, layout="constrained"
        )
    given = np.array(ax, dtype=object).reshape(-1)
    for one in given:
        if not isinstance(one, plt.Axes):
            raise TypeError(
                f"ax holds a {type(one).__name__}, expected a matplotlib Axes, an "
                "array of them, or None for a new figure."
            )
    n_panels = n_rows * n_cols
    if len(given) == 1 != n_panels:
        axes = _divide(given[0], n_rows, n_cols)
    elif len(given) == n_panels:
        axes = given
    else:
        raise ValueError(
            f"ax holds {len(given)} axes, expected {n_panels} ({n_rows} x {n_cols}), "
            "one to be divided, or None for a new figure."
        )
    return axes[0].figure, np.reshape(axes, (n_rows, n_cols))


def _divide(ax, n_rows, n_cols):
    if not ax.axison:
        raise ValueError(
            "ax was divided by an earlier plot: pass the panels, ax=display.axes_."
        )
    if ax.get_subplotspec() is None:
        raise ValueError(
            "ax has no place in a grid, so it cannot be divided: make it with "
            f"plt.subplots, or pass {n_rows * n_cols} axes."
        )
    ax.set_axis_off()
    grid = ax.get_subplotspec().subgridspec(n_rows, n_cols)
    return [ax.figure.add_subplot(cell) for cell in grid]
