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
from sklearn.utils._array_api import _convert_to_numpy, get_namespace
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import assert_all_finite

from skclip_icm._projection.arrays import float64_chunks, to_wide, wide, zeros
from skclip_icm.pairs import as_floats, check_counterparts


def choose_source(pairs, *, paired=None, y=None, X_do=None, domains=None):
    """Say where the pairs that an estimator asks for come from.

    Parameters
    ----------
    pairs : {"auto", "interventional", "domain", "class"} or tuple
        The source. "auto" is the first for which there is data. (U, V) are given
        pairs; (U, V, weight) are the same beside those that "auto" finds.
    paired : PairedEmbeddings, default=None
        The embeddings as they came, if they carry counterparts.
    y, domains : array-like of shape (n,), default=None
        Class and domain labels.
    X_do : array-like of shape (n, d) or (n, k, d), default=None
        Counterparts given beside the embeddings.

    Returns
    -------
    kind : {"interventional", "domain", "class", "given"}
        The source; "given" if there is none but the given pairs.

    Raises
    ------
    ValueError
        If there is no data to make pairs of.
    """
    if isinstance(pairs, tuple):
        if len(pairs) == 2:
            return "given"
        pairs = "auto"
    if pairs != "auto":
        return pairs
    return _first_available(paired, y, X_do, domains)


def given_pairs(pairs, like):
    """Check a tuple (U, V) or (U, V, weight).

    Parameters
    ----------
    pairs : tuple
        Two arrays of shape (m, d), and a number between 0 and 1.
    like : array of shape (n, d)
        Embeddings, in the array library to use.

    Returns
    -------
    U, V : arrays of shape (m, d)
        The two sides.
    weight : float
        1 if none is given.

    Raises
    ------
    ValueError
        If shapes differ, or the weight is not between 0 and 1.
    """
    if len(pairs) not in (2, 3):
        raise ValueError(
            "pairs must be a tuple of two arrays (U, V), or (U, V, weight); got "
            f"{len(pairs)} entries."
        )
    weight = 1.0
    if len(pairs) == 3:
        weight = pairs[2]
        _check_weight(weight)
    U, V = (as_floats(part, like) for part in pairs[:2])
    for name, part in (("U", U), ("V", V)):
        if part.ndim != 2 or part.shape[1] != like.shape[1] or not part.shape[0]:
            raise ValueError(
                f"{name} in pairs=(U, V) must have shape (m, {like.shape[1]}), as wide "
                f"as X and with m >= 1; got {tuple(part.shape)}."
            )
    if U.shape[0] != V.shape[0]:
        raise ValueError(
            f"U and V in pairs=(U, V) differ in length: {U.shape[0]} and {V.shape[0]} "
            "rows. Give one row of V for each row of U."
        )
    return U, V, weight


def counterparts_of(X, paired, X_do):
    """Return the counterparts of the rows of `X`, shape (n, k, d), and their name.

    Raises
    ------
    ValueError
        If there are none, or their shape does not fit.
    """
    if X_do is not None:
        return check_counterparts(X_do, X, "X_do"), "X_do"
    if paired is not None:
        counterparts = check_counterparts(paired.counterparts, X, "counterparts")
        return counterparts, "counterparts of X"
    raise ValueError(
        'pairs="interventional", but X carries no counterparts'
        f"{_lost_in_pipeline()}. Let ICMTransformer follow CLIPFeaturizer "
        "directly, fit on what CLIPFeaturizer.intervene or PairedEmbeddings "
        "returns, or pass X_do."
    )


def check_labels(kind, X, y, domains):
    """Raise ValueError unless each row of `X` has the labels that `kind` needs."""
    needed = {"y": y} if kind == "class" else {"y": y, "domains": domains}
    for name, labels in needed.items():
        if labels is None:
            raise ValueError(
                f'pairs="{kind}" requires {name} to be passed, but the target {name} '
                "is None: give one label for each row of X."
            )
        assert_all_finite(as_labels(labels), input_name=name)
    check_consistent_length(X, *needed.values())


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
    X : array of shape (n, d)
        Embeddings, in numpy or any other array library.
    y : array-like of shape (n,)
        Class labels.
    domains : array-like of shape (n,), default=None
        Domain labels; if given, only pairs across domains count.

    Returns
    -------
    rows : iterator of float64 arrays of shape (m, d)
        Their outer products add up to the sum over all pairs.
    n_pairs : int
        Number of unordered pairs. 0 if there is none.
    """
    classes, y = np.unique(as_labels(y), return_inverse=True)
    if domains is None:
        groups, group_class = y, np.arange(len(classes))
    else:
        names, a = np.unique(as_labels(domains), return_inverse=True)
        codes, groups = np.unique(y * len(names) + a, return_inverse=True)
        group_class = codes // len(names)
    class_sizes, group_sizes = np.bincount(y), np.bincount(groups)
    partners = class_sizes[group_class] - (1 if domains is None else group_sizes)
    n_pairs = int(group_sizes @ partners) // 2
    weights = class_sizes[group_class] if domains is None else partners

    def rows():
        xp = wide(X)[0]
        sums = _group_sums(X, groups, len(group_sizes))
        totals = _group_sums(sums, group_class, len(classes))
        means = totals / to_wide(class_sizes[:, None], like=X)
        means = xp.take(means, _index(group_class, X), axis=0)
        for start, chunk in float64_chunks(X):
            of = groups[start : start + chunk.shape[0]]
            chunk -= xp.take(means, _index(of, X), axis=0)
            yield chunk * to_wide(np.sqrt(weights[of])[:, None], like=X)
        if domains is not None:
            yield sums - means * to_wide(group_sizes[:, None], like=X)

    return rows(), n_pairs


def as_labels(labels):
    """Labels as a one-dimensional numpy array, wherever they are."""
    if hasattr(labels, "__array_namespace__") or hasattr(labels, "detach"):
        labels = _convert_to_numpy(labels, get_namespace(labels)[0])
    return np.asarray(labels)


def select_rows(X, rows):
    """Rows of `X`, by number, in its array library."""
    return wide(X)[0].take(X, _index(np.asarray(rows), X), axis=0)


def _group_sums(X, groups, n_groups):
    """Sums of the rows of each group, shape (n_groups, d)."""
    sums = zeros((n_groups, X.shape[1]), like=X)
    for start, chunk in float64_chunks(X):
        of = groups[start : start + chunk.shape[0]]
        if isinstance(chunk, np.ndarray):
            indicator = (np.ones(len(of)), (of, np.arange(len(of))))
            sums += csr_array(indicator, shape=(n_groups, len(of))) @ chunk
        else:
            indicator = np.arange(n_groups)[:, None] == of
            sums += to_wide(indicator.astype(float), like=X) @ chunk
    return sums


def _index(indices, like):
    """Integer `indices` in the array library of `like`, on its device."""
    xp, _, device = wide(like)
    if isinstance(like, np.ndarray):
        return indices
    return xp.asarray(indices, dtype=xp.int64, device=device)


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
            stacklevel=8,
        )
    return kind


def _has_classes(y):
    if y is None:
        return False
    kind = type_of_target(as_labels(y), input_name="y", raise_unknown=True)
    return kind in ("binary", "multiclass")


def check_finite(values, name):
    """Raise ValueError that names the first row of `values` with NaN or infinity."""
    xp = wide(values)[0]
    flat = xp.reshape(values, (values.shape[0], -1))
    bad = as_labels(~xp.all(xp.isfinite(flat), axis=1)).nonzero()[0]
    if bad.size:
        raise ValueError(
            f"{name}: NaN or infinity in row {bad[0]} ({len(bad)} such rows). Drop "
            "these rows from X, y and the counterparts first."
        )


def _check_weight(weight):
    if not isinstance(weight, Real) or not 0 < weight < 1:
        raise ValueError(
            f"weight in pairs=(U, V, weight) is {weight!r}, expected a number between "
            "0 and 1, both excluded. For these pairs alone, give pairs=(U, V)."
        )


def _lost_in_pipeline():
    """Say which pipeline step came between the featurizer and the transformer.

    An array does not know where it was made. But a transformer that is fitted inside a
    pipeline finds that pipeline on the call stack, and its steps say who stood between.
    A frame says by its columns that they are the featurizer's.
    """
    frame, lost = sys._getframe(), ""
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, Pipeline):
            return _steps_between(caller) or lost
        names = getattr(caller, "feature_names_in_", ())
        if hasattr(caller, "lam") and any("clipfeaturizer" in name for name in names):
            lost = (
                ": the columns of X are CLIPFeaturizer's, but a polars frame loses "
                "counterparts when rows are selected, a pandas frame when values change"
            )
        frame = frame.f_back
    return lost


def _has_featurizer(step):
    """Say whether a ColumnTransformer or the like holds a featurizer."""
    inner = step.get_params().values() if hasattr(step, "get_params") else ()
    return any(hasattr(estimator, "intervene") for estimator in inner)


def _steps_between(pipeline):
    between, after_featurizer = [], False
    for name, step in pipeline.steps:
        if hasattr(step, "lam") and hasattr(step, "pairs"):
            break
        within = not hasattr(step, "intervene") and _has_featurizer(step)
        if within or (after_featurizer and step not in (None, "passthrough")):
            between.append(f"'{name}' ({type(step).__name__})")
        after_featurizer = after_featurizer or within or hasattr(step, "intervene")
    if not between:
        return ""
    which = "step" if len(between) == 1 else "steps"
    return f": the pipeline's {which} {', '.join(between)} rebuilt the array"
