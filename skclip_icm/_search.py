"""scikit-learn's search, with labels that are checked."""

from sklearn.base import is_regressor
from sklearn.model_selection import GridSearchCV
from sklearn.utils.validation import _num_samples

from skclip_icm._labels import check_labels


class InvariantSearch(GridSearchCV):
    """A GridSearchCV whose `fit` names the row of a label that is missing.

    scikit-learn makes a class of NaN among strings.
    """

    def fit(self, X, y=None, **params):
        """Run fit with all candidates, as `sklearn.model_selection.GridSearchCV`."""
        indicators = getattr(y, "ndim", 1) == 2 and y.shape[1] > 1
        if y is not None and not indicators and not is_regressor(self.estimator):
            y = check_labels(y, "y", _num_samples(X))
        return super().fit(X, y, **params)
