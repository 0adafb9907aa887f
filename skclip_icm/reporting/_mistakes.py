"""The most confident mistakes, with small copies of their images."""

import os

import numpy as np

from skclip_icm._images.decoding import decode
from skclip_icm._images.inputs import ImageError, read_content
from skclip_icm.reporting._html import Markup, Number, images, paragraph, table

_PIXELS = 192


def mistakes(estimator, X, y, domains, scores, found, n_shown):
    """Rows that an estimator is surest of and wrong about.

    Parameters
    ----------
    estimator : estimator
        Fitted classifier.
    X : sequence of length n
        What it predicts from.
    y, domains : ndarray of shape (n,)
        Class and domain of each row.
    scores : Scores
        What it predicts.
    found : Images or None
        The images in `X`; None for embeddings.
    n_shown : int
        How many at most.

    Returns
    -------
    heading : str
        Of the section.
    content : Markup
        The section.
    """
    predicted = next(iter(scores.predictions.values()))
    wrong = np.flatnonzero(predicted != y)
    heading = "Most confident mistakes"
    if not wrong.size or not n_shown:
        said = "There is no mistake." if not wrong.size else "None is shown."
        return heading, paragraph(said)
    confidence, unit = _confidence(estimator, X)
    if confidence is not None:
        wrong = wrong[np.argsort(-confidence[wrong], kind="stable")]
    shown = wrong[:n_shown]
    sure = [
        "" if confidence is None else f"{unit} {confidence[row]:.2f}" for row in shown
    ]
    said = paragraph(
        f"{len(wrong)} of {len(y)} rows are mistaken."
        + (" The surest come first." if confidence is not None else "")
    )
    if found is None:
        rows = [
            [Number(row), str(domains[row]), str(y[row]), str(predicted[row]), words]
            for row, words in zip(shown, sure, strict=True)
        ]
        columns = ["row", "domain", "true class", "predicted", "confidence"]
        return heading, Markup(f"{said}\n{table(heading, columns, rows)}")
    entries = []
    for row, words in zip(shown, sure, strict=True):
        truth, guess = f"true: {y[row]}", f"predicted: {predicted[row]}"
        lines = [truth, guess, words, f"domain: {domains[row]}", _name(found, row)]
        alt = f"Row {row}, {truth}, {guess}"
        entries.append((_thumbnail(found.items[row], row), alt, filter(None, lines)))
    return heading, Markup(f"{said}\n{images(entries)}")


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


def _name(found, row):
    # The folder may say more than should be sent to others.
    return os.path.basename(_path(found.items[row])) or f"row {row}"


def _path(item):
    return os.fsdecode(item) if isinstance(item, str | os.PathLike) else ""
