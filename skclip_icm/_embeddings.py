"""Arrays and frames of embeddings: none is anything else, and columns are the same."""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import issparse

from skclip_icm._containers import no_sequence, only_column, refuse_tables, shorten

_EMBEDDINGS = "an array or frame of embeddings"


def check_embeddings(values, name):
    """Raise an error if `values` are no array or frame of embeddings, a row for each.

    Whether the values are numbers, and how many there are, is left to `check_array`.
    """
    refuse_tables(values, name, _EMBEDDINGS)
    _refuse_images(values, name)
    if issparse(values):
        raise TypeError(
            f"Sparse data was passed for {name}, but dense data is required. Call its "
            "toarray() first."
        )
    arrays = hasattr(values, "__array__") or hasattr(values, "__array_namespace__")
    if not arrays and not isinstance(values, Sequence):
        raise no_sequence(values, name, _EMBEDDINGS)
    if np.ma.is_masked(values):
        row = int(np.ma.getmaskarray(values).reshape(len(values), -1).any(1).argmax())
        raise ValueError(
            f"{name} has masked values, the first in row {row}: drop such rows first, "
            "also from y and the counterparts."
        )
    if str(getattr(values, "dtype", "")) == "torch.bfloat16":
        raise TypeError(
            f"{name} is a tensor of bfloat16, which NumPy lacks: pass {name}.float()."
        )
    if _holds_arrays(values):
        of_arrow = hasattr(values, "to_pylist")
        made = "array(column.to_pylist())" if of_arrow else "stack(list(column))"
        raise ValueError(
            f"{name} is a column with an array in each row, expected {_EMBEDDINGS} of "
            f"shape (n, d). Make one of the column first: numpy.{made}."
        )


def check_same_columns(values, columns, name, like="X"):
    """Raise an error if `values` are no embeddings, or of other columns than `like`.

    As scikit-learn does it for X itself: a frame has the same columns in the same
    order, and names count where they are strings.
    """
    check_embeddings(values, name)
    kinds = sorted({type(c).__name__ for c in getattr(values, "columns", ())})
    if "str" in kinds and len(kinds) > 1:
        raise TypeError(
            f"{name} has columns named by {' and '.join(kinds)}, expected strings "
            f"alone: {name}.columns = {name}.columns.astype(str) makes them."
        )
    found, expected = column_names(values), None if columns is None else list(columns)
    if found is not None and expected is not None and found != expected:
        at = next(i for i, c in enumerate([*found, None]) if [c] != expected[i : i + 1])
        raise ValueError(
            f"{name} has the columns {shorten(found[at:])} from column {at} on, "
            f"expected {shorten(expected[at:])}, those of {like} in the same order. "
            f"Put them into that order: {name}[list({like}.columns)]."
        )


def column_names(values):
    """Return the names of the columns of a frame, None if they are no strings."""
    names = list(getattr(values, "columns", ()))
    return names if names and all(isinstance(name, str) for name in names) else None


def _holds_arrays(values):
    """Say whether each row of a column has an array of its own."""
    if hasattr(values, "columns") and values.shape[1] == 1:
        values = only_column(values, "", "")
    of_library = hasattr(values, "to_pylist") or hasattr(values, "column_name")
    if not of_library and len(getattr(values, "shape", ())) != 1:
        return False
    first = next(iter(values), None)
    return bool(first.shape) if hasattr(first, "shape") else hasattr(first, "__len__")


def _refuse_images(values, name):
    """Raise ValueError if `values` are images where embeddings are expected."""
    kind = getattr(getattr(values, "dtype", None), "kind", "f")
    if getattr(values, "ndim", 0) == 2 and kind not in "OUT":
        return
    # Not at the top: embeddings alone need no Pillow.
    from skclip_icm._images.inputs import holds_images

    if holds_images(values):
        raise ValueError(
            f"{name} holds images, expected embeddings of shape (n, d): put "
            "CLIPFeaturizer before this step, as in make_pipeline(CLIPFeaturizer(), "
            "ICMTransformer()), or pass what it makes of them."
        )
