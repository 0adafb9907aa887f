"""Learning from rows that arrive in pieces, or that others have seen."""

import copy
import warnings
from collections.abc import Callable

from sklearn.base import _fit_context

from skclip_icm._projection.differences import given_pairs
from skclip_icm._projection.directions import solve
from skclip_icm._projection.groups import no_pairs
from skclip_icm._projection.merging import merged
from skclip_icm._projection.sums import OpenGroups, Sums


def check_transformer(icm):
    """Raise TypeError unless `icm` is a transformer that learns chunk by chunk."""
    if not isinstance(icm, PartialFitMixin):
        raise TypeError(
            f"icm is of type {type(icm).__name__}, expected an ICMTransformer; of a "
            "pipeline, that step alone."
        )


class PartialFitMixin:
    """The part of `ICMTransformer` that keeps the sums over the rows so far."""

    # Of the transformer.
    pairs: object
    _kind: str
    get_params: Callable
    _check: Callable
    _set: Callable

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y=None, *, X_do=None, domains=None):
        """Learn from one more chunk of rows.

        Any split of the rows gives what `fit` gives on all of them, up to rounding.
        The sums that this needs stay with the transformer: two d x d matrices, or one
        for each class (and domain) with class and domain pairs. `fit` starts anew and
        keeps none. A chunk that raises changes nothing.

        Parameters
        ----------
        X : array-like of shape (n, d)
            Embeddings, at least one row.
        y : array-like of shape (n,), default=None
            Class labels, as for `fit`.
        X_do : array-like of shape (n, d) or (n, k, d), default=None
            Embeddings of the intervened images, as for `fit`.
        domains : array-like of shape (n,), default=None
            Domain labels, as for `fit`.

        Returns
        -------
        self : ICMTransformer
            The transformer, fitted once there are pairs.

        Raises
        ------
        ValueError
            If the chunk does not fit the earlier ones, which stay, or as for `fit`.

        Examples
        --------
        >>> from skclip_icm import ICMTransformer
        >>> from skclip_icm.datasets import make_causal_embeddings
        >>> Z = make_causal_embeddings(n_samples=500, random_state=0).embeddings
        >>> icm = ICMTransformer(lam=10).partial_fit(Z[:200]).partial_fit(Z[200:500])
        >>> icm.merge(ICMTransformer(lam=10).partial_fit(Z[500:])).n_samples_seen_
        1000
        """
        after = copy.copy(self)
        after._sums = copy.deepcopy(getattr(self, "_sums", None))
        if hasattr(self, "components_") and after._sums is None:
            warnings.warn(
                "fit keeps no sums, so partial_fit starts anew: use it for all rows.",
                stacklevel=2,
            )
        after._add_rows(X, y, X_do, domains)
        after._solve(after._sums.total())
        self.__dict__ = vars(after)
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def merge(self, other):
        """Add the rows that another transformer has seen.

        Parameters
        ----------
        other : ICMTransformer
            One with the same parameters that has seen others; it stays as it is.

        Returns
        -------
        self : ICMTransformer
            The transformer, fitted to the rows of both.

        Raises
        ------
        ValueError
            If parameters, features or pairs differ, or one was fitted by `fit`.
        """
        after = copy.copy(self)
        after.__dict__.update(merged(self, other))
        after._solve(after._sums.total())
        self.__dict__ = vars(after)
        return self

    def _add_rows(self, X, y=None, X_do=None, domains=None, groups=None):
        """Add a chunk of rows; `groups` have the sizes of all chunks together."""
        so_far, kind = getattr(self, "_sums", None), getattr(self, "_kind", None)
        X, source = self._check(X, y, X_do, domains, reset=so_far is None)
        if so_far is None:
            by_domain, across = source.domains is not None, source.kind == "domain"
            opened = source.keys and groups is None
            self._sums = (
                OpenGroups(across, by_domain) if opened else Sums(X, groups, by_domain)
            )
        elif kind != source.kind:
            raise ValueError(
                f"The pairs so far are {kind!r}, these are {source.kind!r}: give every "
                "chunk the same kind of pairs, or fit anew."
            )
        self._sums.update(X, source)

    def _finish(self):
        """Find the directions once all chunks are in."""
        sums = self._sums
        if sums.means is not None:  # of these rows only, so not kept
            sums, self._sums = sums.close(), None
        if not self._solve(sums):
            raise ValueError(no_pairs(self._kind))
        return self

    def _solve(self, sums):
        """Set the fitted attributes, if there are pairs; say whether there are."""
        given = given_pairs(self.pairs, sums.mean[None, :])
        if not sums.n_pairs and self._kind != "given":
            return False
        self._set(solve(sums, given, self.get_params(deep=False)))
        return True
