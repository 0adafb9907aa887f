"""Batches of a Ray dataset: tables of Arrow, whose columns are numpy arrays here.

Ray would make numpy arrays of a whole batch. It has none for null tensors, and a null
among dictionary-encoded values becomes another row's value there.
"""

import numpy as np


def check_columns(names, needed, added=()):
    """Raise ValueError if a column is absent, or one to add is there already."""
    for name in needed:
        if not isinstance(name, str):
            raise TypeError(
                f"A column is given as {type(name).__name__}, expected its name."
            )
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


def values_of(batch, name):
    """Return the values of a column as an array, with None where there is no value."""
    values = batch.column(name)
    if _holds_arrays(values.type) and not values.null_count:
        return _as_ray_does(values)
    result = np.empty(len(values), dtype=object)
    if not _holds_arrays(values.type):
        result[:] = values.to_pylist()
    elif values.null_count < len(values):
        present = _as_ray_does(values.drop_null())
        # Row by row: arrays of one shape would be spread over the rows of the result.
        for row, value in zip(np.flatnonzero(values.is_valid()), present, strict=True):
            result[row] = value
    return result


def add_columns(batch, columns):
    """Return a batch with more columns, from numpy arrays by name."""
    from ray.data.extensions import ArrowTensorArray

    for name, values in columns.items():
        batch = batch.append_column(name, ArrowTensorArray.from_numpy(values))
    return batch


def floats(values, name):
    """The rows of a column as one array of floats, without NaN and infinity."""
    if values.dtype == object:
        missing = sum(row is None for row in values)
        if missing:
            raise ValueError(
                f"Column {name!r} has no value in {missing} of a batch of "
                f"{len(values)} rows: drop such rows, for instance by "
                f"dataset.filter(lambda row: row[{name!r}] is not None)."
            )
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
    error.add_note(f"In a batch of {len(batch)}, column {columns}.")
    return error


def _holds_arrays(kind):
    """Whether values of a type are numbers, arrays of them, or what only Ray knows."""
    import pyarrow as pa

    types = pa.types
    return isinstance(kind, pa.BaseExtensionType) or any(
        is_one(kind)
        for is_one in (
            types.is_primitive,
            types.is_list,
            types.is_large_list,
            types.is_fixed_size_list,
        )
    )


def _as_ray_does(values):
    import pyarrow as pa
    from ray.data.block import BlockAccessor

    return BlockAccessor.for_block(pa.table({"values": values})).to_numpy("values")
