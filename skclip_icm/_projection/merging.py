"""Whether two transformers are parts of one fit."""

import numpy as np


def check_mergeable(icm, other):
    """Raise unless the rows that `other` has seen can be added to those of `icm`.

    Raises
    ------
    TypeError
        If they are of different types.
    ValueError
        If parameters or features differ, or the sums of one of them are not there.
    """
    if type(other) is not type(icm):
        raise TypeError(
            f"other is of type {type(other).__name__}, expected {type(icm).__name__}."
        )
    _check_same_parameters(icm, other)
    if getattr(other, "_statistics", None) is None:
        raise ValueError(
            "other has no sums to add: it has seen no rows, or was fitted by fit, "
            "which keeps none. Use partial_fit."
        )
    if getattr(icm, "_statistics", None) is not None:
        _check_same_features(icm, other)
    elif hasattr(icm, "components_"):
        raise ValueError(
            "This transformer was fitted by fit, which keeps no sums to add to. Use "
            "partial_fit, or merge into a new transformer."
        )


def _check_same_parameters(icm, other):
    theirs = other.get_params(deep=False)
    for name, value in icm.get_params(deep=False).items():
        if not _equal(value, theirs[name]):
            raise ValueError(
                f"The transformers differ in {name}: {value!r} here, "
                f"{theirs[name]!r} in other. Merge only parts of one fit."
            )


def _equal(a, b):
    if isinstance(a, tuple) and isinstance(b, tuple):
        same_length = len(a) == len(b)
        return same_length and all(map(_equal, a, b))
    return a is b or np.array_equal(a, b)


def _check_same_features(icm, other):
    if icm.n_features_in_ != other.n_features_in_:
        raise ValueError(
            f"other has seen {other.n_features_in_} features, this transformer "
            f"{icm.n_features_in_}. Embed all parts with the same model."
        )
    names = [getattr(part, "feature_names_in_", None) for part in (icm, other)]
    if not np.array_equal(*names):
        raise ValueError(
            "The transformers have seen features of different names: fit all parts on "
            "frames with the same columns, or all on arrays."
        )
