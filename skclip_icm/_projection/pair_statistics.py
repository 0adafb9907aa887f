r"""What a fit needs of the data, as sums that add up over any split of the rows.

Directions follow from the mean and scatter of the rows and from the second moment of
the differences between pairs. Pairs that lie within a chunk (interventional, given) add
up as they are. A pair of class or domain kind may have its two rows in different
chunks, and how often a row counts depends on the final size of its class; so these
kinds keep a count, a mean and a scatter for each group of rows of one class (and
domain), from which the sum over all pairs follows at the end.
"""

import numpy as np
from sklearn.utils.validation import assert_all_finite

from skclip_icm._projection.arrays import float64_chunks, wide
from skclip_icm._projection.differences import (
    as_labels,
    check_finite,
    check_labels,
    choose_source,
    class_differences,
    counterparts_of,
    given_pairs,
    select_rows,
)
from skclip_icm._projection.moments import GramSum, Moments


class PairStatistics:
    """Moments of the rows of a chunk and of its pairs.

    Parameters
    ----------
    pairs : {"auto", "interventional", "domain", "class"} or tuple
        As in `ICMTransformer`.
    X : array of shape (n, d)
        Embeddings, checked but for finite values.
    paired : PairedEmbeddings, default=None
        The embeddings as they came, if they carry counterparts.
    y, domains : array-like of shape (n,), default=None
        Class and domain labels.
    X_do : array-like of shape (n, d) or (n, k, d), default=None
        Counterparts given beside `X`.
    mergeable : bool, default=True
        Whether other chunks may follow. If not, class and domain pairs need one d x d
        matrix rather than one for each group.
    after : PairStatistics, default=None
        Statistics that this chunk is going to be merged into: given pairs, which they
        hold, are not summed again.

    Attributes
    ----------
    kind : str
        Source of the pairs, as ``pairs_`` of `ICMTransformer`.
    moments : Moments
        Of all rows.
    n_pairs : int
        Number of pairs.
    dtype : dtype
        Of the embeddings.

    Raises
    ------
    ValueError
        If there is no source of pairs, shapes do not fit, or a value is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip_icm._projection.pair_statistics import PairStatistics
    >>> X, y = np.eye(4), [0, 0, 1, 1]
    >>> parts = PairStatistics("class", X[:3], y=y[:3])
    >>> parts.n_pairs
    1
    >>> parts = parts.merge(PairStatistics("class", X[3:], y=y[3:]))
    >>> parts.n_pairs
    2
    >>> np.trace(parts.pair_moment())
    np.float64(2.0)
    """

    # Values that are not finite are reported with their row once the sums show them.
    @np.errstate(over="ignore", invalid="ignore")
    def __init__(
        self,
        pairs,
        X,
        *,
        paired=None,
        y=None,
        X_do=None,
        domains=None,
        mergeable=True,
        after=None,
    ):
        source = choose_source(pairs, paired=paired, y=y, X_do=X_do, domains=domains)
        self.dtype = X.dtype
        self.moments = Moments(X)
        self._given = self._found = None
        if isinstance(pairs, tuple):
            self._given = _given_sum(pairs, X) if after is None else after._given
        if source == "given":
            _add_rows(self.moments, X)
        elif source == "interventional":
            self._found = _interventional_sum(self.moments, X, paired, X_do)
        else:
            check_labels(source, X, y, domains)
            domains = domains if source == "domain" else None
            if mergeable:
                self._found = _GroupMoments(X, y, domains).add_to(self.moments)
                _check_rows(self.moments, X)
            else:
                _add_rows(self.moments, X)
                self._found = _labelled_sum(X, y, domains)
        both = source != "given" and self._given is not None
        self.kind = f"{source}+given" if both else source

    @property
    def n_pairs(self):
        """Number of pairs."""
        return sum(part.n for part in (self._found, self._given) if part is not None)

    def merge(self, other):
        """Add the rows and pairs of `other`; return self.

        Raises
        ------
        ValueError
            If the pairs of `other` are of another kind, or its rows are wider.
        """
        if other.kind != self.kind:
            raise ValueError(
                f"The pairs so far are {self.kind!r}, these are {other.kind!r}: give "
                "every chunk the same kind of data, or set pairs."
            )
        here, there = (part.moments.mean.shape[0] for part in (self, other))
        if here != there:
            raise ValueError(
                f"The rows so far have {here} features, these {there}. Embed all parts "
                "with the same model."
            )
        self.moments.merge(other.moments)
        if self._found is not None:
            self._found.merge(other._found)
        xp = wide(self.moments.mean)[0]
        self.dtype = xp.result_type(self.dtype, other.dtype)
        return self

    def pair_moment(self):
        """Second moment of the differences between pairs, shape (d, d).

        With given pairs beside others it is the weighted mean of the two.
        """
        if self._found is None:
            return self._given.mean()
        if self._given is None:
            return self._found.mean()
        weight = self._given.weight
        return (1 - weight) * self._found.mean() + weight * self._given.mean()


class _PairSum:
    """Sum over `n` pairs of the outer products of their differences."""

    def __init__(self, gram, n, weight=1.0):
        self.gram, self.n, self.weight = gram, n, weight

    def merge(self, other):
        self.gram.merge(other.gram)
        self.n += other.n

    def mean(self):
        return self.gram.total / self.n


class _GroupMoments:
    r"""Moments of the rows of each class, or of each class in each domain.

    With :math:`n_g`, :math:`m_g` and :math:`C_g` the size, mean and scatter of group
    *g*, expanding :math:`\sum (z_i - z_j)(z_i - z_j)^\top` over all pairs within a
    group gives :math:`n_g C_g`. Over all pairs of class *c* with rows in two different
    groups *a* and *b* it gives :math:`n_b C_a + n_a C_b + n_a n_b (m_a - m_b)
    (m_a - m_b)^\top`; summed over the pairs of groups, with the size :math:`n_c` and
    the mean :math:`m_c` of the class,

    .. math:: \sum_a (n_c - n_a) C_a + n_c n_a (m_a - m_c)(m_a - m_c)^\top .
    """

    def __init__(self, X, y, domains=None):
        self._across = domains is not None
        labels = [as_labels(y)] + ([as_labels(domains)] if self._across else [])
        rows_of = {}
        for row, name in enumerate(zip(*(a.tolist() for a in labels), strict=True)):
            rows_of.setdefault(name, []).append(row)
        self._groups = {
            name: Moments(X).update(select_rows(X, rows))
            for name, rows in rows_of.items()
        }

    @property
    def n(self):
        """Number of pairs."""
        sizes = [[group.n for group in groups] for groups in self._by_class()]
        if self._across:
            return sum(sum(n) ** 2 - sum(m * m for m in n) for n in sizes) // 2
        return sum(n * (n - 1) // 2 for (n,) in sizes)

    def add_to(self, moments):
        """Add the rows of all groups to `moments`; return self."""
        for group in self._groups.values():
            moments.merge(group)
        return self

    def merge(self, other):
        """Add the groups of `other`."""
        for name, moments in other._groups.items():
            if name in self._groups:
                self._groups[name].merge(moments)
            else:
                self._groups[name] = moments

    def mean(self):
        """Second moment of the differences between all pairs."""
        total = 0
        for groups in self._by_class():
            size = sum(group.n for group in groups)
            mean = sum(group.mean * (group.n / size) for group in groups)
            for group in groups:
                if not self._across:
                    total = total + group.n * group.scatter
                    continue
                delta = group.mean - mean
                total = total + (size - group.n) * group.scatter
                total = total + size * group.n * delta[:, None] * delta[None, :]
        return total / self.n

    def _by_class(self):
        classes = {}
        for name, group in self._groups.items():
            classes.setdefault(name[0], []).append(group)
        return classes.values()


def _labelled_sum(X, y, domains):
    rows, n_pairs = class_differences(X, y, domains)
    if n_pairs == 0:
        kind, why = (
            ("class", "every class has a single row")
            if domains is None
            else ("domain", "no class has rows in more than one domain")
        )
        raise ValueError(f'pairs="{kind}" finds no pairs: {why}.')
    gram = GramSum(X)
    for piece in rows:
        gram.update(piece)
    return _PairSum(gram, n_pairs)


def _interventional_sum(moments, X, paired, X_do):
    """Add the rows of `X` to `moments`; return the sum over pairs, in one pass."""
    counterparts, name = counterparts_of(X, paired, X_do)
    gram = GramSum(X)
    for (_, Z), (_, Z_do) in zip(
        float64_chunks(X), float64_chunks(counterparts), strict=True
    ):
        Z_do -= Z[:, None, :]
        gram.update(wide(Z_do)[0].reshape(Z_do, (-1, Z.shape[1])))
        moments.add(Z)
    _check_rows(moments, X)
    _check_sum(gram, [(name, counterparts)])
    return _PairSum(gram, counterparts.shape[0] * counterparts.shape[1])


def _given_sum(pairs, X):
    U, V, weight = given_pairs(pairs, X)
    gram = GramSum(X)
    for (_, u), (_, v) in zip(float64_chunks(U), float64_chunks(V), strict=True):
        gram.update(u - v)
    _check_sum(gram, [("U in pairs=(U, V)", U), ("V in pairs=(U, V)", V)])
    return _PairSum(gram, U.shape[0], weight)


def _add_rows(moments, X):
    moments.update(X)
    _check_rows(moments, X)


def _check_rows(moments, X):
    # NaN and infinity reach the sums: no pass of its own is needed to find them.
    if not moments.is_finite():
        assert_all_finite(X, input_name="X", estimator_name="ICMTransformer")
        _too_large("X")


def _check_sum(gram, parts):
    if not gram.is_finite():
        for name, values in parts:
            check_finite(values, name)
        _too_large(parts[-1][0])


def _too_large(name):
    raise ValueError(
        f"{name} holds values whose squares overflow float64. Scale the embeddings, "
        "for example to unit norm."
    )
