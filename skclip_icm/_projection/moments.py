r"""Second moments that stream and merge.

Rows arrive in any number of pieces; what stays is a count, a mean and a scatter
matrix about that mean. Two such triples merge into the triple of all their rows:
with ``n = n_a + n_b`` and ``delta = mean_b - mean_a``

.. math::

    \bar z = \bar z_a + \frac{n_b}{n} \delta, \qquad
    C = C_a + C_b + \frac{n_a n_b}{n} \, \delta \delta^\top .

Proof of the second: :math:`\sum (z - \bar z)(z - \bar z)^\top` over the rows of *a*
is :math:`C_a + n_a (\bar z_a - \bar z)(\bar z_a - \bar z)^\top`, since the cross terms
vanish; likewise for *b*. Put in :math:`\bar z_a - \bar z = -\frac{n_b}{n}\delta` and
:math:`\bar z_b - \bar z = \frac{n_a}{n}\delta`: the two outer products add up to
:math:`\frac{n_a n_b^2 + n_b n_a^2}{n^2} \delta\delta^\top`, which is the term above.
No step depends on the order of the rows, so any split gives the same triple up to
rounding (Chan, Golub and LeVeque, 1983, give the same update for the variance).
"""

import math

from skclip_icm._projection.arrays import (
    add_gram,
    add_outer,
    float64_chunks,
    symmetric,
    wide,
    zeros,
)


class Moments:
    """Count, mean and scatter matrix of the rows seen so far, in float64.

    Parameters
    ----------
    like : array of shape (n, n_features)
        Rows of the width to expect, in the array library and on the device to use.
        Their values do not count.

    Attributes
    ----------
    n : int
        Number of rows seen.
    mean : array of shape (n_features,), float64
        Their mean (zeros before the first row).
    scatter : array of shape (n_features, n_features), float64
        Sum of the outer products of the centred rows; symmetric.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip_icm._projection.moments import Moments
    >>> X = np.random.default_rng(0).normal(size=(10, 3))
    >>> parts = Moments(X).update(X[:4]).merge(Moments(X).update(X[4:]))
    >>> np.allclose(parts.second_moment(center=True), np.cov(X.T, bias=True))
    True
    """

    def __init__(self, like):
        d = like.shape[1]
        self.n = 0
        self.mean = zeros(d, like)
        self._total = zeros((d, d), like)

    @property
    def scatter(self):
        """Sum of the outer products of the centred rows."""
        return symmetric(self._total)

    def update(self, X):
        """Add the rows of `X`, shape (n, n_features); return self."""
        for _, chunk in float64_chunks(X):
            self.add(chunk)
        return self

    def add(self, chunk):
        """Add float64 rows, which are overwritten; return self."""
        mean = wide(chunk)[0].mean(chunk, axis=0)
        chunk -= mean
        self._total = add_gram(self._total, chunk)
        self._shift(chunk.shape[0], mean)
        return self

    def merge(self, other):
        """Add the rows that `other` has seen; return self."""
        self._total = self._total + other._total
        self._shift(other.n, other.mean)
        return self

    def is_finite(self):
        """Say whether no NaN, infinity or overflow has come into the sums."""
        mean = float(wide(self.mean)[0].sum(self.mean))
        return math.isfinite(mean) and math.isfinite(_trace(self._total))

    def second_moment(self, *, center):
        """Covariance (divided by n) if `center`, else the mean outer product."""
        moment = self.scatter / self.n
        if not center:
            moment += self.mean[:, None] * self.mean[None, :]
        return moment

    def _shift(self, n, mean):
        """Account for `n` rows whose own scatter is already in the sum."""
        if n == 0:
            return
        total = self.n + n
        delta = mean - self.mean
        self._total = add_outer(self._total, delta, self.n * n / total)
        self.mean = self.mean + delta * (n / total)
        self.n = total


class GramSum:
    """Sum of the outer products of rows, not centred, in float64.

    This is what the differences between paired embeddings need: a shift that all
    pairs share is variation as well, so no mean is taken off.

    Parameters
    ----------
    like : array of shape (n, n_features)
        As for `Moments`.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip_icm._projection.moments import GramSum
    >>> rows = np.array([[1.0, 2.0]])
    >>> GramSum(rows).update(rows).total
    array([[1., 2.],
           [2., 4.]])
    """

    def __init__(self, like):
        self._total = zeros((like.shape[1], like.shape[1]), like)

    @property
    def total(self):
        """The sum, array of shape (n_features, n_features)."""
        return symmetric(self._total)

    def is_finite(self):
        """Say whether no NaN, infinity or overflow has come into the sum."""
        return math.isfinite(_trace(self._total))

    def update(self, rows):
        """Add float64 `rows`, shape (n, n_features); return self."""
        self._total = add_gram(self._total, rows)
        return self

    def merge(self, other):
        """Add the sum of `other`; return self."""
        self._total = self._total + other._total
        return self


def _trace(total):
    return float(wide(total)[0].linalg.trace(total))
