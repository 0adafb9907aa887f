"""Batches of a Ray dataset: columns by name, as numpy arrays."""

import numpy as np


def check_columns(names, needed, added=()):
    """Raise ValueError if a column is absent, or one to add is there already."""
    for name in needed:
        if name not in names:
            raise ValueError(
                f"There is no column {name!r} in the dataset; it has {list(names)}."
            )
    for name in added:
        if name in names:
            raise ValueError(
                f"The dataset has a column {name!r} already: choose another name for "
                "output or counterparts, or drop it first."
            )


def count_rows(batch):
    """Return the number of rows."""
    return len(next(iter(batch.values())))


def floats(values, name):
    """The rows of a column as one array of floats, without NaN and infinity."""
    try:
        if values.dtype == object:  # lists, of equal length if all is well
            values = np.stack([np.asarray(row) for row in values])
    except ValueError as error:
        raise ValueError(
            f"Column {name!r} holds arrays of different shapes: embed all rows with "
            "one model."
        ) from error
    if values.dtype.kind != "f" or values.ndim not in (2, 3):
        raise TypeError(
            f"Column {name!r} holds {values.dtype} of shape {values.shape[1:]} in each "
            "row, expected the floats of an embedding, of shape (d,)."
        )
    bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if bad.any():
        raise ValueError(
            f"Column {name!r} holds NaN or infinity in {bad.sum()} of a batch of "
            f"{len(bad)} rows. Images that could not be read have NaN: drop such rows, "
            f"for instance by dataset.filter(lambda row: np.isfinite(row[{name!r}])."
            "all())."
        )
    return values


def located(error, batch, names):
    """Add to an error where it counts rows: those of a dataset have no number."""
    columns = ", ".join(map(repr, names))
    error.add_note(f"In a batch of {count_rows(batch)}, column {columns}.")
    return error
