"""Saved estimators say which version of the package wrote them."""

import warnings

from sklearn.base import BaseEstimator

import skclip_icm

_KEY = "_skclip_icm_version"


class VersionedEstimator(BaseEstimator):
    """An estimator that records the package's version when saved, and compares it.

    scikit-learn does so for its own estimators only. Attributes may change between
    versions, so a file of another one may load and then fail, or predict otherwise.
    """

    def __getstate__(self):
        return {**super().__getstate__(), _KEY: skclip_icm.__version__}

    def __setstate__(self, state):
        state = dict(state)
        version = state.pop(_KEY, "unknown")
        if version != skclip_icm.__version__:
            warnings.warn(
                f"This {type(self).__name__} was saved by version {version} of "
                f"skclip-icm; this is version {skclip_icm.__version__}. It may not "
                "work, or predict otherwise: use the same version, or fit and save it "
                "again.",
                UserWarning,
                stacklevel=2,
            )
        super().__setstate__(state)
