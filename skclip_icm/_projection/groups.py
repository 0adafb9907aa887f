r"""Labels as groups of rows whose pairs need not be listed.

Let groups be the classes or, for domain pairs, the classes in each domain, and
:math:`n_g, m_g, C_g` the size, mean and scatter of group *g*. Expanding
:math:`\sum (z_i - z_j)(z_i - z_j)^\top` gives, for all pairs within the group,
:math:`n_g C_g`, and for all pairs of class *c* whose two rows lie in different groups,
with the size :math:`n_c` and the mean :math:`m_c` of the class,

.. math:: \sum_{g \in c} (n_c - n_g) C_g + n_c n_g (m_g - m_c)(m_g - m_c)^\top .

So a row counts with the weight of its group, whatever its partners are.
"""

import numpy as np

from skclip_icm._labels import check_labels, distinguishable, python_values
from skclip_icm._projection.arrays import (
    sums_by_group,
    take_rows,
    to_wide,
    wide,
    zeros,
)


def group_keys(y, domains=None):
    """List the distinct labels of rows, and the number in that list of each row's."""
    classes, codes = np.unique(y, return_inverse=True)
    classes = python_values(classes)
    if domains is None:
        return [(label,) for label in classes], codes
    names, a = np.unique(domains, return_inverse=True)
    names = python_values(names)
    both, codes = np.unique(codes * len(names) + a, return_inverse=True)
    return [(classes[b // len(names)], names[b % len(names)]) for b in both], codes


def domain_rows(n, domains):
    """Return the distinct domains of `n` rows, and the number of each row's."""
    if domains is None:
        raise ValueError(
            'center="domain" needs domains: pass one label for each row of X.'
        )
    keys, codes = group_keys(check_labels(domains, "domains", n))
    return [key[0] for key in keys], codes


def group_rows(pairs, n, y, domains, by_domain=False):
    """Return keys and codes of `group_keys` for class and domain pairs of `n` rows.

    `by_domain` tells apart the domains of class pairs, too, for centring.
    """
    labels = {"y": y}
    if by_domain or pairs == "domain":
        labels["domains"] = domains
    for name, values in labels.items():
        if values is None:
            raise ValueError(
                f'pairs="{pairs}" requires {name} to be passed, but the target {name} '
                "is None: give one label for each row of X."
            )
        labels[name] = check_labels(values, name, n)
    return group_keys(*labels.values())


def count_groups(pairs, n, y=None, domains=None, by_domain=False):
    """Return the `Groups` of `n` rows for class and domain pairs, else None."""
    if pairs not in ("class", "domain"):
        return None
    keys, codes = group_rows(pairs, n, y, domains, by_domain)
    return Groups(keys, np.bincount(codes), across=pairs == "domain")


def no_pairs(kind):
    """Say that labels leave no pairs."""
    why = {
        "class": "every class has a single row. Give several rows of a class",
        "domain": "no class has rows in more than one domain. Give rows of several "
        "domains: of two, a fold that leaves one out has one",
    }
    return f'pairs="{kind}" finds no pairs: {why.get(kind, "there are no rows")}.'


class Groups:
    """Groups of rows that pair: their classes (and domains), and their final sizes.

    `across` tells whether rows pair with those of other groups only.
    """

    def __init__(self, keys, sizes, across):
        parts = [dict.fromkeys(labels) for labels in zip(*keys, strict=True)]
        for labels, name in zip(parts, ("classes", "domains"), strict=False):
            distinguishable(labels, name)
        classes = parts[0]
        numbers = {label: number for number, label in enumerate(classes)}
        self.index = {key: code for code, key in enumerate(keys)}
        self.class_of = np.array([numbers[key[0]] for key in keys])
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self._by_domain = len(keys[0]) == 2
        self.class_sizes = np.bincount(self.class_of, self.sizes).astype(np.int64)
        in_class = self.class_sizes[self.class_of]
        self.weights = in_class - self.sizes if across else in_class
        partners = self.weights if across else in_class - 1
        self.n_pairs = int(self.sizes @ partners) // 2

    def between(self, means, domains=None):
        """Rows for what pairs across groups have beyond the scatter of the groups.

        The means of `domains`, if given, are taken off first.
        """
        if not self._by_domain:
            return means[:0, :]
        if domains is not None:
            own = [domains.means[domain] for _, domain in self.index]
            means = means - wide(means)[0].stack(own)
        sizes, class_sizes = (to_wide(s, means) for s in (self.sizes, self.class_sizes))
        n_classes = len(self.class_sizes)
        sums = sums_by_group(means * sizes[:, None], self.class_of, n_classes)
        centred = means - take_rows(sums / class_sizes[:, None], self.class_of)
        weights = self.sizes * self.class_sizes[self.class_of]
        return centred * to_wide(np.sqrt(weights), means)[:, None]


class DomainMeans:
    """Numbers and means of the rows of each domain so far."""

    def __init__(self):
        self.sizes, self.means = {}, {}

    def add_rows(self, rows, codes, keys):
        """Add float64 `rows`, the domain of each being ``keys[code]``."""
        at, local, sizes = np.unique(codes, return_inverse=True, return_counts=True)
        sums = sums_by_group(rows, local, len(at))
        for i, code in enumerate(at.tolist()):
            self.add(keys[code], int(sizes[i]), sums[i, :] / float(sizes[i]))

    def add(self, key, size, mean):
        """Add rows of one domain by their number and mean."""
        total = self.sizes.get(key, 0) + size
        before = self.means.get(key, mean)
        self.sizes[key] = total
        self.means[key] = before + (mean - before) * (size / total)

    def merge(self, other):
        """Add the rows that `other` has seen."""
        for key, size in other.sizes.items():
            self.add(key, size, other.means[key])

    def between(self, mean):
        """Rows whose outer products are the scatter of the domains about `mean`."""
        xp = wide(mean)[0]
        return xp.stack(
            [(self.means[k] - mean) * size**0.5 for k, size in self.sizes.items()]
        )


class GroupMeans:
    """Means of the rows of each group so far.

    Scatter about the mean of a piece becomes scatter about the mean of all pieces by a
    row for each group, as in `Sums`; so pieces need no matrix of their own.
    """

    def __init__(self, groups, like):
        self.groups = groups
        self.seen = np.zeros(len(groups.sizes), dtype=np.int64)
        self.values = zeros((len(groups.sizes), like.shape[1]), like)

    def differences(self, rows, codes):
        """Rows whose outer products belong to the pairs, for float64 `rows`."""
        at, local, sizes = np.unique(codes, return_inverse=True, return_counts=True)
        means = sums_by_group(rows, local, len(at)) / to_wide(sizes, rows)[:, None]
        roots = to_wide(np.sqrt(self.groups.weights[codes]), rows)
        centred = (rows - take_rows(means, local)) * roots[:, None]
        return wide(rows)[0].concat([centred, self._move(at, sizes, means)], axis=0)

    def merge(self, other):
        """Take in the rows that `other` has seen; return rows as `differences` does."""
        at = np.flatnonzero(other.seen)
        return self._move(at, other.seen[at], take_rows(other.values, at))

    def _move(self, at, sizes, means):
        before = self.seen[at]
        delta = means - take_rows(self.values, at)
        step = delta * to_wide(sizes / (before + sizes), means)[:, None]
        if isinstance(step, np.ndarray):
            self.values[at] += step
        else:
            self.values = self.values + sums_by_group(step, at, len(self.seen))
        self.seen[at] += sizes
        weights = self.groups.weights[at] * before * sizes / (before + sizes)
        return delta * to_wide(np.sqrt(weights), means)[:, None]
