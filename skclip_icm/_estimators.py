"""What estimators say of this package: the version that saved them, and its docs."""

import warnings

from sklearn.base import BaseEstimator

from skclip_icm._version import __version__

_KEY = "_skclip_icm_version"


class VersionedEstimator(BaseEstimator):
    """An estimator that records the package's version when saved, and compares it.

    scikit-learn does so for its own estimators only. Attributes may change between
    versions, so a file of another one may load and then fail, or predict otherwise.
    In a notebook, its question mark leads to this package's documentation.
    """

    _doc_link_module = "skclip_icm"
    _doc_link_template = (
        "https://skclip-icm.readthedocs.io/en/latest/api/generated/"
        "skclip_icm.{estimator_name}.html"
    )

    def __getstate__(self):
        return {**super().__getstate__(), _KEY: __version__}

    def __setstate__(self, state):
        state = dict(state)
        version = state.pop(_KEY, "unknown")
        if version != __version__:
            warnings.warn(
                f"This {type(self).__name__} was saved by version {version} of "
                f"skclip-icm; this is version {__version__}. It may not "
                "work, or predict otherwise: use the same version, or fit and save it "
                "again.",
                UserWarning,
                stacklevel=2,
            )
        super().__setstate__(state)
