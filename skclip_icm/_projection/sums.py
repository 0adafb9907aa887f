r"""Sums over rows and over pairs: all that directions depend on.

Rows arrive in any number of pieces; what stays of them is a count, a mean and a scatter
matrix about that mean. Two such triples merge into that of all their rows (Chan, Golub
and LeVeque, 1983): with ``n = n_a + n_b`` and ``delta = mean_b - mean_a``

.. math::

    \bar z = \bar z_a + \frac{n_b}{n} \delta, \qquad
    C = C_a + C_b + \frac{n_a n_b}{n} \, \delta \delta^\top .

The differences of pairs are never centred, so their outer products just add up: a shift
that all pairs share is variation as well.
"""

import math

import numpy as np

from skclip_icm._projection.arrays import (
    add_gram,
    chunk_rows,
    take_rows,
    wide,
    wide_chunks,
    zeros,
)
from skclip_icm._projection.differences import check_finite, pieces
from skclip_icm._projection.groups import DomainMeans, GroupMeans, Groups


class Sums:
    """Count, mean and scatter of rows; number and Gram matrix of pairs; in float64.

    `like` is any array of rows of the width, library and device to expect. `groups`,
    for class and domain pairs, say how many rows of each group all pieces have
    together, so that one matrix is enough. `by_domain` keeps the mean of each domain.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(10, 3))
    >>> parts = Sums(X).add(X[:4].copy()).merge(Sums(X).add(X[4:].copy()))
    >>> np.allclose(parts.second_moment(center=True), np.cov(X.T, bias=True))
    True
    """

    def __init__(self, like, groups=None, by_domain=False):
        d = like.shape[1]
        self.n = self.n_pairs = 0
        self.dtype = like.dtype
        self.mean = zeros(d, like)
        self._scatter, self._gram = zeros((d, d), like), zeros((d, d), like)
        #: By intervention, the sum of the squared differences.
        self.moved = np.zeros(0)
        self.means = None if groups is None else GroupMeans(groups, like)
        self.domains = DomainMeans() if by_domain else None

    @np.errstate(over="ignore", invalid="ignore")
    def update(self, X, source):
        """Add rows and their pairs, or raise if a value is not finite; return self."""
        if self.means is not None:
            source = source.in_groups(self.means.groups)
        steps, start = [], 0
        for rows, differences, n_pairs, moved in pieces(X, source, self.means):
            self.add_pairs(differences, n_pairs, moved)
            if self.domains is not None:
                keys, codes = source.domains
                codes = codes[start : start + rows.shape[0]]
                self.domains.add_rows(rows, codes, keys)
                start += rows.shape[0]
            steps.append(self._add_centred(rows))
        # Together, since a pass over the matrix for each would take as long as a chunk.
        self._scatter = add_gram(self._scatter, wide(X)[0].stack(steps))
        self.dtype = wide(X)[0].result_type(self.dtype, X.dtype)
        check_sizes(self.sizes(), X, source)
        return self

    def add(self, rows):
        """Add float64 rows, which are overwritten; return self."""
        step = self._add_centred(rows)
        self._scatter = add_gram(self._scatter, step[None, :])
        return self

    def add_pairs(self, differences, n_pairs=0, moved=()):
        """Add float64 rows whose outer products belong to the pairs; return self."""
        if differences.shape[0]:
            self._gram = add_gram(self._gram, differences)
        return self._count_pairs(n_pairs, moved)

    def merge(self, other):
        """Add the rows and pairs that `other` has seen; return self."""
        self._scatter = self._scatter + other._scatter
        self._gram = self._gram + other._gram
        step = self._move_mean(other.n, other.mean)
        self._scatter = add_gram(self._scatter, step[None, :])
        if self.means is not None:
            self.add_pairs(self.means.merge(other.means))
        if self.domains is not None:
            self.domains.merge(other.domains)
        self.dtype = wide(self.mean)[0].result_type(self.dtype, other.dtype)
        return self._count_pairs(other.n_pairs, other.moved)

    def close(self):
        """Add the pairs across groups, once all rows are in; return self."""
        if self.means is not None:
            groups = self.means.groups
            between = groups.between(self.means.values, self.domains)
            self.add_pairs(between, groups.n_pairs)
            self.means = None
        return self

    def total(self):
        """Return the sums of all rows so far: these; as `OpenGroups` has it."""
        return self

    def sizes(self):
        """Return a number for rows and one for pairs, finite if all values are."""
        mean = float(wide(self.mean)[0].sum(self.mean))
        return mean + _trace(self._scatter), _trace(self._gram)

    def second_moment(self, *, center):
        """Covariance of the rows (over n) if `center`, else mean outer product.

        With domains, the covariance within them.
        """
        moment = self._scatter / self.n
        if self.domains is not None:
            between = self.domains.between(self.mean)
            moment -= between.T @ between / self.n
        if not center:
            moment += self.mean[:, None] * self.mean[None, :]
        return moment

    def pair_moment(self):
        """Second moment of the differences between pairs."""
        return self._gram / self.n_pairs

    def variance(self):
        """Mean squared distance of the rows to their mean."""
        return _trace(self._scatter) / self.n

    def _count_pairs(self, n_pairs, moved):
        self.n_pairs += n_pairs
        size = max(len(self.moved), len(moved))
        self.moved = _padded(self.moved, size) + _padded(moved, size)
        return self

    def _add_centred(self, rows):
        """Add the scatter of rows about their own mean; return as `_move_mean` does."""
        mean = wide(rows)[0].mean(rows, axis=0)
        rows -= mean
        self._scatter = add_gram(self._scatter, rows)
        return self._move_mean(rows.shape[0], mean)

    def _move_mean(self, n, mean):
        """Count `n` more rows; return what their scatter about `mean` lacks, as a row.

        Its outer product is what the scatter about the mean of all rows has beyond
        those of the two parts about theirs.
        """
        delta, total = mean - self.mean, self.n + n
        share = n / total if total else 0.0
        step = delta * math.sqrt(self.n * share)
        self.mean = self.mean + delta * share
        self.n = total
        return step


class OpenGroups:
    """Sums for class and domain pairs while more rows of any group may come.

    How often a row counts depends on the final size of its class, so each group of
    rows that do not differ in their labels has a scatter matrix of its own.
    """

    def __init__(self, across, by_domain):
        self._across, self._by_domain, self._sums = across, by_domain, {}

    @np.errstate(over="ignore", invalid="ignore")
    def update(self, X, source):
        """Do as `Sums.update` does."""
        for code, key in enumerate(source.keys):
            part = self._sums.setdefault(key, Sums(X))
            its_rows = take_rows(X, np.flatnonzero(source.codes == code))
            for rows in wide_chunks(its_rows, chunk_rows(8 * X.shape[1])):
                part.add(rows)
            part.dtype = wide(X)[0].result_type(part.dtype, X.dtype)
        size = sum(part.sizes()[0] for part in self._sums.values())
        check_sizes((size, 0.0), X, source)
        return self

    def merge(self, other):
        """Do as `Sums.merge` does."""
        for key, part in other._sums.items():
            if key in self._sums:
                self._sums[key].merge(part)
            else:
                self._sums[key] = part
        return self

    def total(self):
        """Return the `Sums` of all rows so far and of their pairs."""
        parts = list(self._sums.values())
        total = Sums(parts[0].mean[None, :])
        total.dtype = parts[0].dtype
        groups = Groups(list(self._sums), [part.n for part in parts], self._across)
        for part, weight in zip(parts, groups.weights, strict=True):
            total.merge(part)
            total._gram = total._gram + part._scatter * float(weight)
        if self._by_domain:
            total.domains = DomainMeans()
            for key, part in self._sums.items():
                total.domains.add(key[1], part.n, part.mean)
        means = wide(total.mean)[0].stack([part.mean for part in parts])
        return total.add_pairs(groups.between(means, total.domains), groups.n_pairs)


def check_sizes(sizes, X, source):
    """Raise unless a sum over the rows and one over their pairs are finite.

    NaN and infinity reach the sums: no pass of its own is needed to find them.
    """
    parts = [("X", X), (source.name, source.counterparts)]
    for size, (name, values) in zip(sizes, parts, strict=True):
        if math.isfinite(size) or values is None:
            continue
        check_finite(values, name)
        raise ValueError(
            f"{name} holds values whose squares overflow float64. Scale the "
            "embeddings, for example to unit norm."
        )


def _padded(values, size):
    return np.pad(values, (0, size - len(values)))


def _trace(total):
    return float(wide(total)[0].linalg.trace(total))
