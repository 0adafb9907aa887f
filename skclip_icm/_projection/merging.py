"""What two transformers have seen, added up, if they are parts of one fit."""

import copy

import numpy as np


def merged(icm, other):
    """Return attributes of `icm`, by name, once it has seen the rows of `other`."""
    check_mergeable(icm, other)
    if getattr(icm, "_sums", None) is not None:
        return {"_sums": copy.deepcopy(icm._sums).merge(copy.deepcopy(other._sums))}
    seen = {"_kind", "n_features_in_", "feature_names_in_"}
    state = {name: value for name, value in vars(other).items() if name in seen}
    return {**state, "_sums": copy.deepcopy(other._sums)}


def check_mergeable(icm, other):
    """Raise unless the rows that `other` has seen can be added to those of `icm`."""
    if type(other) is not type(icm):
        raise TypeError(
            f"other is of type {type(other).__name__}, expected {type(icm).__name__}."
        )
    theirs = other.get_params(deep=False)
    for name, value in icm.get_params(deep=False).items():
        if not _equal(value, theirs[name]):
            raise ValueError(
                f"The transformers differ in {name}: {value!r} here, "
                f"{theirs[name]!r} in other. Merge only parts of one fit."
            )
    if getattr(other, "_sums", None) is None:
        raise ValueError(
            "other has no sums to add: it has seen no rows, or was fitted by fit, "
            "which keeps none. Use partial_fit."
        )
    if getattr(icm, "_sums", None) is None:
        if hasattr(icm, "components_"):
            raise ValueError(
                "This transformer was fitted by fit, which keeps no sums to add to. "
                "Use partial_fit, or merge into a new transformer."
            )
        return
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


def _equal(a, b):
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a is b or np.array_equal(a, b)
