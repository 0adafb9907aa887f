"""The differences between pairs, from every source of pairs.

A pair is two embeddings that share the invariant factors and differ in the variant
ones: an image and its counterpart after an intervention, two images of one class from
different domains, any two images of one class, or two given arrays. A projection needs
the sum of the outer products of their differences, so each source becomes rows whose
outer products add up to exactly that.
"""

import sys
import warnings
from numbers import Real

import numpy as np
from scipy.sparse import csr_array
from sklearn.pipeline import Pipeline
from sklearn.utils import check_consistent_length
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import assert_all_finite

from skclip_icm.pairs import check_counterparts

# Rows turned to float64 at a time: enough for BLAS to run at full speed, few enough
# that the float64 copy of a piece stays small beside the float32 data.
CHUNK_ROWS = 2048


def find_differences(pairs, X, *, paired=None, y=None, X_do=None, domains=None):
    """Turn the pairs that an estimator asks for into rows of differences.

    Parameters
    ----------
    pairs : {"auto", "interventional", "domain", "class"} or tuple
        The source. "auto" is the first for which there is data. (U, V) are given
        pairs; (U, V, weight) are the same beside those that "auto" finds.
    X : ndarray of shape (n, d)
        Embeddings, checked.
    paired : PairedEmbeddings, default=None
        `X` as it came, if it carries counterparts.
    y, domains : array-like of shape (n,), default=None
        Class and domain labels.
    X_do : array-like of shape (n, d) or (n, k, d), default=None
        Counterparts given beside `X`.

    Returns
    -------
    kind : str
        The source: "interventional", "domain", "class", "given", or one of the first
        three followed by "+given".
    rows : iterator of float64 ndarrays of shape (m, d)
        Their outer products add up to the sum over all pairs. For two sources they
        are scaled such that this sum divided by `n_pairs` is the weighted mean of the
        two second moments.
    n_pairs : int
        Number of pairs, at least 1.

    Raises
    ------
    ValueError
        If there are no such pairs, or shapes or values do not fit.
    """
    kind, given = pairs, None
    if isinstance(pairs, tuple):
        kind, given = "auto", _given_pairs(pairs, X.shape[1])
        if len(pairs) == 2:
            return "given", *given
    if kind == "auto":
        kind = _first_available(paired, y, X_do, domains)
    if kind == "interventional":
        found = _interventional_pairs(X, paired, X_do)
    else:
        found = _labelled_pairs(kind, X, y, domains)
    if given is None:
        return kind, *found
    return f"{kind}+given", *_weighted(found, given, pairs[2])


def float64_chunks(X):
    """Yield (first row, float64 copy) of successive pieces of the rows of `X`."""
    for start in range(0, len(X), CHUNK_ROWS):
        yield start, np.array(X[start : start + CHUNK_ROWS], np.float64, order="C")


def interventional_differences(X, counterparts):
    """Yield float64 rows ``z - z_do`` of all pairs, in pieces of shape (m, d)."""
    for start, Z in float64_chunks(X):
        for k in range(counterparts.shape[1]):
            yield Z - counterparts[start : start + len(Z), k]


def class_differences(X, y, domains=None):
    r"""Return rows that stand for all pairs of one class, and the number of pairs.

    Let :math:`\tilde z` be the rows less their class mean, :math:`n_c` the size of
    class *c*, :math:`n_{ca}` its rows in domain *a* and :math:`s_{ca}` their sum of
    :math:`\tilde z`. Expanding :math:`\sum (z_i - z_j)(z_i - z_j)^\top` gives, for all
    unordered pairs within the classes,

    .. math:: \sum_c n_c \sum_{i \in c} \tilde z_i \tilde z_i^\top ,

    and for those whose two rows lie in different domains, since the sums
    :math:`s_{ca}` of a class add up to zero,

    .. math::

        \sum_c \Big[ \sum_a (n_c - n_{ca}) \sum_{i \in ca} \tilde z_i \tilde z_i^\top
        + \sum_a s_{ca} s_{ca}^\top \Big] .

    Each row counts with a weight, so one pass over the n rows, O(n d^2), equals
    listing the pairs.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        Embeddings.
    y : array-like of shape (n,)
        Class labels.
    domains : array-like of shape (n,), default=None
        Domain labels; if given, only pairs across domains count.

    Returns
    -------
    rows : iterator of float64 ndarrays of shape (m, d)
        Their outer products add up to the sum over all pairs.
    n_pairs : int
        Number of unordered pairs. 0 if there is none.
    """
    classes, y = np.unique(np.asarray(y), return_inverse=True)
    if domains is None:
        groups, group_class = y, np.arange(len(classes))
    else:
        names, a = np.unique(np.asarray(domains), return_inverse=True)
        codes, groups = np.unique(y * len(names) + a, return_inverse=True)
        group_class = codes // len(names)
    class_sizes, group_sizes = np.bincount(y), np.bincount(groups)
    partners = class_sizes[group_class] - (1 if domains is None else group_sizes)
    n_pairs = int(group_sizes @ partners) // 2
    weights = class_sizes[group_class] if domains is None else partners

    def rows():
        sums = _group_sums(X, groups, len(group_sizes))
        totals = _group_sums(sums, group_class, len(classes))
        means = (totals / class_sizes[:, None])[group_class]
        for start, chunk in float64_chunks(X):
            of = groups[start : start + len(chunk)]
            yield (chunk - means[of]) * np.sqrt(weights[of])[:, None]
        if domains is not None:
            yield sums - means * group_sizes[:, None]

    return rows(), n_pairs


def _group_sums(X, groups, n_groups):
    sums = np.zeros((n_groups, X.shape[1]))
    for start, chunk in float64_chunks(X):
        of = groups[start : start + len(chunk)]
        indicator = (np.ones(len(of)), (of, np.arange(len(of))))
        sums += csr_array(indicator, shape=(n_groups, len(of))) @ chunk
    return sums


def _first_available(paired, y, X_do, domains):
    if X_do is not None or paired is not None:
        return "interventional"
    lost = _lost_in_pipeline()
    if not _has_classes(y):
        raise ValueError(
            f"There are no pairs to learn from{lost}. Fit on images through "
            "CLIPFeaturizer, pass X_do (embeddings of the intervened images), pass "
            "class labels as y, or give pairs=(U, V)."
        )
    kind = "class" if domains is None else "domain"
    if lost:
        warnings.warn(
            f'No counterparts reach ICMTransformer{lost}. pairs="auto" falls back to '
            f'{kind} pairs; set pairs="{kind}" if this is what you want.',
            UserWarning,
            stacklevel=5,
        )
    return kind


def _has_classes(y):
    if y is None:
        return False
    kind = type_of_target(y, input_name="y", raise_unknown=True)
    return kind in ("binary", "multiclass")


def _interventional_pairs(X, paired, X_do):
    if X_do is not None:
        name, counterparts = "X_do", check_counterparts(X_do, X.shape, "X_do")
    elif paired is not None:
        name, counterparts = "counterparts of X", paired.counterparts
    else:
        raise ValueError(
            'pairs="interventional", but X carries no counterparts'
            f"{_lost_in_pipeline()}. Let ICMTransformer follow CLIPFeaturizer "
            "directly, fit on what CLIPFeaturizer.intervene or PairedEmbeddings "
            "returns, or pass X_do."
        )
    _check_finite(counterparts, name)
    n_pairs = counterparts.shape[0] * counterparts.shape[1]
    return interventional_differences(X, counterparts), n_pairs


def _labelled_pairs(kind, X, y, domains):
    needed = {"y": y} if kind == "class" else {"y": y, "domains": domains}
    for name, labels in needed.items():
        if labels is None:
            raise ValueError(
                f'pairs="{kind}" requires {name} to be passed, but the target {name} '
                "is None: give one label for each row of X."
            )
    check_consistent_length(X, *needed.values())
    rows, n_pairs = class_differences(X, **needed)
    if n_pairs == 0:
        none = {
            "class": "every class has a single row",
            "domain": "no class has rows in more than one domain",
        }
        raise ValueError(f'pairs="{kind}" finds no pairs: {none[kind]}.')
    return rows, n_pairs


def _given_pairs(pairs, n_features):
    if len(pairs) not in (2, 3):
        raise ValueError(
            "pairs must be a tuple of two arrays (U, V), or (U, V, weight); got "
            f"{len(pairs)} entries."
        )
    if len(pairs) == 3:
        _check_weight(pairs[2])
    U, V = (np.asarray(part) for part in pairs[:2])
    for name, part in (("U", U), ("V", V)):
        if part.ndim != 2 or part.shape[1] != n_features or not len(part):
            raise ValueError(
                f"{name} in pairs=(U, V) must have shape (m, {n_features}), as wide as "
                f"X and with m >= 1; got {part.shape}."
            )
        _check_finite(part, f"{name} in pairs=(U, V)")
    if len(U) != len(V):
        raise ValueError(
            f"U and V in pairs=(U, V) differ in length: {len(U)} and {len(V)} rows."
        )
    return interventional_differences(U, V[:, None]), len(U)


def _check_weight(weight):
    if not isinstance(weight, Real) or not 0 < weight < 1:
        raise ValueError(
            f"weight in pairs=(U, V, weight) is {weight!r}, expected a number between "
            "0 and 1, both excluded. For these pairs alone, give pairs=(U, V)."
        )


def _weighted(found, given, weight):
    """Join two sources, each as (rows, n_pairs), with a weight for the second."""
    n_pairs = found[1] + given[1]

    def rows():
        for (source, n), share in ((found, 1 - weight), (given, weight)):
            for differences in source:
                yield differences * np.sqrt(share * n_pairs / n)

    return rows(), n_pairs


def _check_finite(values, name):
    flat = values.reshape(len(values), -1)
    try:
        assert_all_finite(flat)
    except ValueError as error:
        bad = np.flatnonzero(~np.isfinite(flat).all(axis=1))
        raise ValueError(
            f"{name}: NaN or infinity in row {bad[0]} ({len(bad)} such rows). Drop "
            "these rows from X, y and the counterparts first."
        ) from error


def _lost_in_pipeline():
    """Say which pipeline step came between the featurizer and the transformer.

    An array does not know where it was made. But a transformer that is fitted inside a
    pipeline finds that pipeline on the call stack, and its steps say who stood between.
    """
    frame = sys._getframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, Pipeline):
            return _steps_between(caller)
        frame = frame.f_back
    return ""


def _steps_between(pipeline):
    between, after_featurizer = [], False
    for name, step in pipeline.steps:
        if hasattr(step, "lam") and hasattr(step, "pairs"):
            break
        if after_featurizer and step not in (None, "passthrough"):
            between.append(f"'{name}' ({type(step).__name__})")
        after_featurizer = after_featurizer or hasattr(step, "intervene")
    if not between:
        return ""
    which = "step" if len(between) == 1 else "steps"
    return f": the pipeline's {which} {', '.join(between)} rebuilt the array"
