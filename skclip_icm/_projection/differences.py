"""Every source of pairs as rows whose outer products add up to that of its pairs.

A pair is two embeddings that share the invariant factors and differ in the variant
ones: an image and its counterpart after an intervention, two images of one class, two
of one class from different domains, or two given arrays.
"""

from numbers import Real
from typing import NamedTuple

import numpy as np
from sklearn.utils import check_array

from skclip_icm._embeddings import check_same_columns, column_names
from skclip_icm._projection.arrays import (
    chunk_rows,
    floats,
    to_numpy,
    wide,
    wide_chunks,
)
from skclip_icm._projection.groups import domain_rows, group_rows

_MAX_TOLD = 10  # rows named in a message


class Source(NamedTuple):
    """Where the pairs of some rows come from, checked but for values not finite."""

    kind: str  # "interventional", "class", "domain" or "given"
    counterparts: object = None  # (n, k, d)
    name: str = ""  # of the counterparts, for messages
    keys: list = ()  # labels of each group of rows
    codes: np.ndarray | None = None  # the group of each row
    domains: tuple | None = None  # labels, and the number of each row's, for centring

    def in_groups(self, groups):
        """Return the source with each row's number in `groups` as its code."""
        numbers = np.array([groups.index[key] for key in self.keys])
        return self._replace(codes=numbers[self.codes])


def find_source(pairs, center, X, paired, unpaired, y, X_do, domains, columns=None):
    """Return the `Source` that an estimator's parameters ask for, checked.

    `X` is the array of embeddings, `paired` the same with its counterparts if it came
    with any, `unpaired` what may have become of them if not, `columns` the names of its
    columns. ValueError if what is
    needed is absent or does not fit, or what is given is not used.
    """
    if isinstance(pairs, list):
        raise ValueError(
            f"pairs is a list of {len(pairs)} entries, expected a tuple: write "
            "pairs=(U, V), or pairs=(U, V, weight)."
        )
    kind = pairs
    if isinstance(pairs, tuple):
        kind = "given" if len(pairs) == 2 else "interventional"
    by_domain = center == "domain"
    if domains is not None and kind != "domain" and not by_domain:
        raise ValueError(
            f"domains are passed, but pairs={_shown(pairs)} does not use them: set "
            'center="domain" or pairs="domain", or leave domains out.'
        )
    if X_do is not None and kind != "interventional":
        raise ValueError(
            f"X_do is passed, but pairs={_shown(pairs)} does not use it: set "
            'pairs="interventional", or leave X_do out.'
        )
    _check_given(pairs, X, columns)
    centred = domain_rows(X.shape[0], domains) if by_domain else None
    if kind == "given":
        return Source(kind, domains=centred)
    if kind == "interventional":
        if X_do is not None:
            check_same_columns(X_do, columns, "X_do")
            values = check_counterparts(as_floats(X_do, X), X, "X_do")
            return Source(kind, values, "X_do", domains=centred)
        if paired is not None:
            values = check_counterparts(as_floats(paired.counterparts, X), X, "X")
            return Source(kind, values, "counterparts of X", domains=centred)
        raise ValueError(
            f"pairs={_shown(pairs)}, but X carries no counterparts: {unpaired}. Fit on "
            "what CLIPFeaturizer.fit_transform or CLIPFeaturizer.intervene returns, "
            'pass X_do, or set pairs="class", pairs="domain" or pairs=(U, V).'
        )
    keys, codes = group_rows(kind, X.shape[0], y, domains, by_domain)
    return Source(kind, keys=keys, codes=codes, domains=centred)


def check_counterparts(values, embeddings, name):
    """Return `values` in the shape (n, k, d) that fits (n, d) embeddings, or raise."""
    given = tuple(values.shape)
    if len(given) == 2:
        values = values[:, None, :]
    n, d = embeddings.shape
    if len(values.shape) != 3 or values.shape[1] == 0:
        raise ValueError(
            f"{name} must have shape ({n}, {d}) or ({n}, k, {d}) with k >= 1, "
            f"got {given}."
        )
    if values.shape[0] != n:
        raise ValueError(
            f"{name} has {values.shape[0]} rows, expected {n}: one row for each row of "
            "X, in the same order."
        )
    if values.shape[2] != d:
        raise ValueError(
            f"{name} has {values.shape[2]} features, expected {d}, as X: embed both "
            "with the same model."
        )
    return values


def as_floats(values, like=None):
    """`values` as float32 or float64, in the array library and where `like` is."""
    if like is None or isinstance(like, np.ndarray):
        # Frames as they are: their missing values may be no numbers to numpy.
        return check_array(
            values if hasattr(values, "columns") else to_numpy(values),
            dtype=[np.float32, np.float64],
            ensure_all_finite=False,
            ensure_2d=False,
            allow_nd=True,
            ensure_min_samples=0,
            ensure_min_features=0,
        )
    xp, _, device = wide(like)
    values = xp.asarray(values, device=device)
    return values if values.dtype in floats(like) else xp.astype(values, xp.float32)


def given_pairs(pairs, like):
    """Return the differences of given pairs and their weight, or None without any.

    The outer products of the rows returned add up to a mean over the pairs.
    """
    checked = _check_given(pairs, like)
    if checked is None:
        return None
    (U, V), weight = checked
    xp, dtype, _ = wide(like)
    moved = xp.astype(U, dtype, copy=True)
    moved -= xp.astype(V, dtype)
    moved /= U.shape[0] ** 0.5
    return moved, weight


def _check_given(pairs, like, columns=None):
    """Return both sides of given pairs and their weight, or raise ValueError."""
    if not isinstance(pairs, tuple):
        return None
    if len(pairs) not in (2, 3):
        raise ValueError(
            "pairs must be a tuple of two arrays (U, V), or (U, V, weight); got "
            f"{len(pairs)} entries."
        )
    weight = pairs[2] if len(pairs) == 3 else 1.0
    if len(pairs) == 3 and not (isinstance(weight, Real) and 0 < weight < 1):
        raise ValueError(
            f"weight in pairs=(U, V, weight) is {weight!r}, expected a number between "
            "0 and 1, both excluded. For these pairs alone, give pairs=(U, V)."
        )
    first = "X"
    for name, side in zip("UV", pairs, strict=False):
        check_same_columns(side, columns, name, first)
        if columns is None:
            columns, first = column_names(side), name
    sides = [as_floats(side, like) for side in pairs[:2]]
    for name, side in zip("UV", sides, strict=True):
        if len(side.shape) != 2 or side.shape[1] != like.shape[1] or not side.shape[0]:
            raise ValueError(
                f"{name} in pairs=(U, V) must have shape (m, {like.shape[1]}), as wide "
                f"as X and with m >= 1; got {tuple(side.shape)}."
            )
        check_finite(side, f"{name} in pairs=(U, V)")
    if sides[0].shape[0] != sides[1].shape[0]:
        raise ValueError(
            f"U and V in pairs=(U, V) differ in length: {sides[0].shape[0]} and "
            f"{sides[1].shape[0]} rows. Give one row of V for each row of U."
        )
    return sides, weight


def check_finite(values, name):
    """Raise ValueError that names the rows of `values` with NaN or infinity."""
    xp = wide(values)[0]
    flat = xp.reshape(values, (values.shape[0], -1))
    bad = to_numpy(~xp.all(xp.isfinite(flat), axis=1)).nonzero()[0]
    if bad.size:
        shown = ", ".join(map(str, bad[:_MAX_TOLD]))
        more = f" and {len(bad) - _MAX_TOLD} more" if len(bad) > _MAX_TOLD else ""
        rows = "row" if len(bad) == 1 else "rows"
        raise ValueError(
            f"{name}: NaN or infinity in {rows} {shown}{more}, as CLIPFeaturizer gives "
            'for images that cannot be read with on_error="nan". Drop such rows first: '
            "of images by X, y, groups, errors = drop_unreadable(X, y, groups), of "
            "embeddings by a mask, also from y and the counterparts."
        )


def count_rows(source, n):
    """Return how many rows `pieces` gives for the pairs of `n` rows in one piece."""
    if source.kind == "given":
        return 0
    if source.kind == "interventional":
        return n * source.counterparts.shape[1]
    return n + 2 * len(source.keys)


def pieces(X, source, means=None):
    """Yield float64 rows of `X`, by chunks, and the rows that stand for their pairs.

    Yields rows (m, d), differences (p, d), the number of pairs that are complete with
    this chunk, and by intervention the sum of the squared differences. Chunks share
    their memory. `means`, the `GroupMeans` of class and domain pairs, are brought up to
    date; such pairs are complete when all chunks are in.
    """
    d = X.shape[1]
    if source.kind == "given":
        for rows in wide_chunks(X, chunk_rows(8 * d)):
            yield rows, rows[:0], 0, ()
    elif source.kind == "interventional":
        k = source.counterparts.shape[1]
        size = chunk_rows(8 * d * (1 + k))
        chunks = (wide_chunks(part, size) for part in (X, source.counterparts))
        for rows, moved in zip(*chunks, strict=True):
            moved -= rows[:, None, :]
            flat = wide(X)[0].reshape(moved, (-1, d))
            yield rows, flat, flat.shape[0], _squares(moved)
    else:
        size, start = chunk_rows(16 * d), 0
        for rows in wide_chunks(X, size):
            codes = source.codes[start : start + rows.shape[0]]
            yield rows, means.differences(rows, codes), 0, ()
            start += rows.shape[0]


def _squares(moved):
    if isinstance(moved, np.ndarray):
        return np.einsum("nkd,nkd->k", moved, moved)  # without an array of their size
    return to_numpy(wide(moved)[0].sum(moved * moved, axis=(0, 2)))


def _shown(pairs):
    if isinstance(pairs, str):
        return f'"{pairs}"'
    return "(U, V)" if len(pairs) == 2 else "(U, V, weight)"
