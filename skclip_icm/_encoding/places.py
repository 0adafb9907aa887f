"""Relative paths mean what they meant when an estimator first used them.

A process may change its working directory between fit and transform. Where a model and
a cache were found is kept with the estimator, but in no clone or pickle of it.
"""

import copy
import os

from skclip_icm._encoding.weights import find_source
from skclip_icm._estimators import PLACES
from skclip_icm._images.reading import local_path


def model_place(estimator):
    """Return `model_name` and `pretrained` of an estimator, with absolute paths."""
    given = estimator.model_name, estimator.pretrained
    cache_place(estimator)  # so that all is known once it is fitted
    if not isinstance(given[0], str):
        return given
    return _remembered(estimator, given, lambda: find_source(*given)[:2])


def cache_place(estimator):
    """Return the `cache` of an estimator, with an absolute path if it is one."""
    cache = estimator.cache
    if not isinstance(cache, str | os.PathLike) or cache == "memory":
        return cache
    find = lambda: os.path.abspath(local_path(os.fsdecode(cache)))  # noqa: E731
    return _remembered(estimator, ("cache", cache), find)


def copied(estimator):
    """Return a shallow copy of an estimator, for later in this process."""
    result = copy.copy(estimator)
    vars(result)[PLACES] = dict(vars(estimator).get(PLACES, {}))
    return result


def _remembered(estimator, given, find):
    places = vars(estimator).setdefault(PLACES, {})
    if given not in places:
        places[given] = find()
    return places[given]
