"""scikit-learn's search, with labels that are checked."""

from sklearn.model_selection import GridSearchCV
from sklearn.utils.validation import _num_samples

from skclip_icm._labels import check_target


class InvariantSearch(GridSearchCV):
    """A GridSearchCV whose `fit` names the row of a label that is missing.

    scikit-learn makes a class of NaN among strings.
    """

    def fit(self, X, y=None, **params):
        """Run fit with all candidates, as `sklearn.model_selection.GridSearchCV`."""
        y = check_target(y, self.estimator, _num_samples(X))
        return super().fit(X, y, **params)
