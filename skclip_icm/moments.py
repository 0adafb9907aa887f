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

import numpy as np
from scipy.linalg.blas import dsyrk

from skclip_icm.differences import float64_chunks


class Moments:
    """Count, mean and scatter matrix of the rows seen so far, in float64.

    Parameters
    ----------
    n_features : int
        Width of the rows.

    Attributes
    ----------
    n : int
        Number of rows seen.
    mean : ndarray of shape (n_features,), float64
        Their mean (zeros before the first row).
    scatter : ndarray of shape (n_features, n_features), float64
        Sum of the outer products of the centred rows; symmetric.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip_icm.moments import Moments
    >>> X = np.random.default_rng(0).normal(size=(10, 3))
    >>> parts = Moments(3).update(X[:4]).merge(Moments(3).update(X[4:]))
    >>> np.allclose(parts.second_moment(center=True), np.cov(X.T, bias=True))
    True
    """

    def __init__(self, n_features):
        self.n = 0
        self.mean = np.zeros(n_features)
        self._upper = np.zeros((n_features, n_features), order="F")

    @property
    def scatter(self):
        """Sum of the outer products of the centred rows."""
        return _symmetric(self._upper)

    def update(self, X):
        """Add the rows of `X`, shape (n, n_features); return self."""
        for _, chunk in float64_chunks(X):
            self._add(chunk)
        return self

    def merge(self, other):
        """Add the rows that `other` has seen; return self."""
        self._upper += other._upper
        self._shift(other.n, other.mean)
        return self

    def second_moment(self, *, center):
        """Covariance (divided by n) if `center`, else the mean outer product."""
        moment = self.scatter / self.n
        if not center:
            moment += np.outer(self.mean, self.mean)
        return moment

    def _add(self, chunk):
        mean = chunk.mean(axis=0)
        chunk -= mean
        self._upper = _add_gram(self._upper, chunk)
        self._shift(len(chunk), mean)

    def _shift(self, n, mean):
        """Account for `n` rows whose own scatter is already in the sum."""
        if n == 0:
            return
        total = self.n + n
        delta = mean - self.mean
        self._upper += np.outer(delta, delta * (self.n * n / total))
        self.mean = self.mean + delta * (n / total)
        self.n = total


class GramSum:
    """Sum of the outer products of rows, not centred, in float64.

    This is what the differences between paired embeddings need: a shift that all
    pairs share is variation as well, so no mean is taken off.

    Parameters
    ----------
    n_features : int
        Width of the rows.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip_icm.moments import GramSum
    >>> GramSum(2).update(np.array([[1.0, 2.0]])).total
    array([[1., 2.],
           [2., 4.]])
    """

    def __init__(self, n_features):
        self._upper = np.zeros((n_features, n_features), order="F")

    @property
    def total(self):
        """The sum, ndarray of shape (n_features, n_features)."""
        return _symmetric(self._upper)

    def update(self, rows):
        """Add float64 `rows`, shape (n, n_features); return self."""
        self._upper = _add_gram(self._upper, rows)
        return self

    def merge(self, other):
        """Add the sum of `other`; return self."""
        self._upper += other._upper
        return self


def _add_gram(upper, rows):
    """Return ``upper + rows.T @ rows``, of which only the upper half is valid.

    The symmetric rank-k update does half the work of a general product, and adds in
    place when `upper` is in Fortran order.
    """
    # A C-ordered block is, transposed, in the Fortran order that BLAS wants: no copy.
    return dsyrk(1.0, rows.T, beta=1.0, c=upper, overwrite_c=True)


def _symmetric(upper):
    half = np.triu(upper)
    return half + np.triu(half, 1).T
