"""scikit-learn's search, with labels that are checked."""

from sklearn.model_selection import GridSearchCV
from sklearn.utils.validation import _num_samples

from skclip_icm._labels import check_labels, check_target


class InvariantSearch(GridSearchCV):
    """A GridSearchCV whose `fit` names the row of a label, or group, that is missing.

    scikit-learn makes a class of NaN among strings.
    """

    def fit(self, X, y=None, **params):
        """Run fit with all candidates, as `sklearn.model_selection.GridSearchCV`."""
        n = _num_samples(X)
        y = check_target(y, self.estimator, n)
        if params.get("groups") is not None:
            params["groups"] = check_labels(params["groups"], "groups", n)
        return super().fit(X, y, **params)
