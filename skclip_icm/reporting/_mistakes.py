"""The rows that are predicted wrongly, the surest first, with their images."""

import os
from typing import NamedTuple

import numpy as np

from skclip_icm._images.decoding import decode
from skclip_icm._images.inputs import ImageError, read_content
from skclip_icm.reporting._html import (
    Markup,
    Number,
    details,
    images,
    paragraph,
    table,
)

_PIXELS = 192
_MAX_LISTED = 500
_HEADING = "Most confident mistakes"


class Mistakes(NamedTuple):
    """The rows that an estimator is wrong about, the surest first."""

    rows: np.ndarray
    domains: np.ndarray
    true: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray | None  # None where the estimator does not say
    unit: str  # what the confidence is
    paths: list | None  # as they were given; None where images are no paths

    def columns(self):
        """Return the columns of a frame, by name, without the paths."""
        columns = {
            "domain": self.domains,
            "true": self.true,
            "predicted": self.predicted,
        }
        if self.confidence is not None:
            columns["confidence"] = self.confidence
        return columns


def find_mistakes(estimator, X, y, domains, names, scores, found):
    """Find the rows that an estimator predicts wrongly.

    Parameters
    ----------
    estimator : estimator
        Fitted classifier.
    X : sequence of length n
        What it predicts from.
    y, domains : ndarray of shape (n,)
        Class and domain of each row.
    names : callable
        Turns an array of classes into what is shown of them.
    scores : Scores
        What it predicts.
    found : Images or None
        The images in `X`; None for embeddings.

    Returns
    -------
    mistakes : Mistakes
        All of them.
    """
    predicted = next(iter(scores.predictions.values()))
    rows = np.flatnonzero(predicted != y)
    # Also where nothing is mistaken, so that the frame always has the same columns.
    confidence, unit = _confidence(estimator, X)
    if confidence is not None:
        rows = rows[np.argsort(-confidence[rows], kind="stable")]
        confidence = confidence[rows]
    paths = None
    if found is not None and all(map(_path, found.items)):
        paths = [_path(found.items[row]) for row in rows]
    true, guessed = names(y[rows]), names(predicted[rows])
    return Mistakes(rows, domains[rows], true, guessed, confidence, unit, paths)


def mistakes_section(mistakes, n_rows, found, n_shown):
    """Show the surest mistakes, and list all of them.

    Parameters
    ----------
    mistakes : Mistakes
        What to show.
    n_rows : int
        Rows in all, right and wrong.
    found : Images or None
        The images in `X`; None for embeddings.
    n_shown : int
        How many to show as images.

    Returns
    -------
    heading : str
        Of the section.
    content : Markup
        The section.
    """
    n = len(mistakes.rows)
    if not n:
        return _HEADING, paragraph("There is no mistake.")
    sure = "" if mistakes.confidence is None else " The surest come first."
    content = [paragraph(f"{n} of {n_rows} rows are mistaken.{sure}")]
    if found is not None and n_shown:
        content.append(images(_entries(mistakes, found, n_shown)))
    if found is None and n_shown:
        content.append(_table(_HEADING, mistakes, n_shown))
    if found is not None or n > n_shown:
        listed = min(n, _MAX_LISTED)
        many = f"All {n} mistakes" if listed == n else f"{listed} of {n} mistakes"
        content.append(details(f"{many} as a table", _table(many, mistakes, listed)))
    return _HEADING, Markup("\n".join(content))


def _entries(mistakes, found, n_shown):
    for i, row in enumerate(mistakes.rows[:n_shown]):
        truth = f"true: {mistakes.true[i]}"
        guess = f"predicted: {mistakes.predicted[i]}"
        sure = "" if mistakes.confidence is None else _sure(mistakes, i)
        name = f"row {row}" if mistakes.paths is None else mistakes.paths[i]
        lines = [truth, guess, sure, f"domain: {mistakes.domains[i]}", name]
        alt = f"Row {row}, {truth}, {guess}"
        yield _thumbnail(found.items[row], row), alt, filter(None, lines)


def _table(caption, mistakes, n_shown):
    columns = ["row", "domain", "true class", "predicted"]
    if mistakes.confidence is not None:
        columns.append(mistakes.unit)
    if mistakes.paths is not None:
        columns.append("path")
    rows = []
    for i, row in enumerate(mistakes.rows[:n_shown]):
        cells = [mistakes.domains[i], mistakes.true[i], mistakes.predicted[i]]
        if mistakes.confidence is not None:
            cells.append(Number(f"{mistakes.confidence[i]:.3f}"))
        if mistakes.paths is not None:
            cells.append(mistakes.paths[i])
        rows.append([Number(row), *cells])
    return table(caption, columns, rows)


def _sure(mistakes, i):
    return f"{mistakes.unit} {mistakes.confidence[i]:.3f}"


def _confidence(estimator, X):
    """How sure it is of its prediction for each row, and what that number is."""
    if hasattr(estimator, "predict_proba"):
        return np.asarray(estimator.predict_proba(X)).max(axis=1), "probability"
    if hasattr(estimator, "decision_function"):
        decisions = np.asarray(estimator.decision_function(X))
        if decisions.ndim == 1:
            return np.abs(decisions), "distance"
        first, second = -np.sort(-decisions, axis=1)[:, :2].T
        return first - second, "margin"
    return None, ""


def _thumbnail(item, row):
    try:
        image = decode(read_content(item, row), row, _path(item))
    except ImageError:  # on_error="nan"
        return None
    image.thumbnail((_PIXELS, _PIXELS))
    return image


def _path(item):
    return os.fsdecode(item) if isinstance(item, str | os.PathLike) else ""
