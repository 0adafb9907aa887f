"""Which classes are taken for which, in each domain."""

import numpy as np

from skclip_icm._labels import join
from skclip_icm.reporting._html import Markup, Number, paragraph, shaded, table

# A matrix of more classes is wider than a page; its largest entries are listed instead.
_MAX_CLASSES = 12
_MAX_PAIRS = 10


def confusion_by_domain(result, y, domains):
    """Count what the first method predicts for each class, in each domain.

    Parameters
    ----------
    result : Scores
        What methods predict.
    y, domains : ndarray of shape (n,)
        Class and domain of each row.

    Returns
    -------
    classes : ndarray of shape (c,)
        The classes that rows have, or are predicted to have.
    counts : dict of str to ndarray of shape (c, c)
        For each domain, the number of rows of each class, by predicted class.
    """
    predicted = next(iter(result.predictions.values()))
    classes, codes = np.unique(join(y, predicted), return_inverse=True)
    true, guessed, c = codes[: len(y)], codes[len(y) :], len(classes)
    counts = {}
    for domain in np.unique(domains):
        rows = domains == domain
        cells = np.bincount(true[rows] * c + guessed[rows], minlength=c * c)
        counts[str(domain)] = cells.reshape(c, c)
    return classes, counts


def confusion_section(classes, counts):
    """Show what is taken for what.

    Parameters
    ----------
    classes : ndarray of shape (c,)
        What is shown of the classes.
    counts : dict of str to ndarray of shape (c, c)
        As `confusion_by_domain` returns it.

    Returns
    -------
    heading : str
        Of the section.
    content : Markup
        The section.
    """
    few = len(classes) <= _MAX_CLASSES
    said = (
        "Rows are the true classes, columns the predicted ones; the darker a cell, the "
        "larger its share of the true class."
        if few
        else "The most frequent confusions of each domain."
    )
    make = _matrix if few else _most_frequent
    shown = [make(domain, list(classes), cells) for domain, cells in counts.items()]
    return "Confusion by domain", Markup("\n".join([paragraph(said), *shown]))


def _matrix(domain, classes, cells):
    sums = np.maximum(cells.sum(axis=1, keepdims=True), 1)
    rows = [
        [f"true: {name}", *map(shaded, counts, counts / total), Number(counts.sum())]
        for name, counts, total in zip(classes, cells, sums, strict=True)
        if counts.sum()
    ]
    columns = ["class", *(f"predicted: {name}" for name in classes), "rows"]
    return table(f"Domain {domain}", columns, rows)


def _most_frequent(domain, classes, cells):
    wrong = np.where(np.eye(len(classes), dtype=bool), 0, cells)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MAX_PAIRS]
    rows = [
        [
            classes[i],
            classes[j],
            Number(wrong[i, j]),
            Number(f"{wrong[i, j] / cells[i].sum():.3f}"),
        ]
        for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[i, j]
    ]
    columns = ["true class", "predicted", "rows", "share of the class"]
    if not rows:
        return paragraph(f"Domain {domain}: there is no mistake.")
    return table(f"Domain {domain}", columns, rows)
