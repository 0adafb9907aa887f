"""Linear classifiers, all with the same penalty and solver, along one list of C.

A classifier is a function of `Training` and of the training rows in some representation
that returns, for each setting, coefficients (r, K) and intercepts (K,): rows X have the
logits ``X @ coefficients + intercepts``.
"""

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from skclip_icm.model_selection import CS as READY_CS

# Every classifier that has a penalty is tried with each of these.
CS = (*READY_CS, 1000)

VREX_PENALTIES = (0.1, 1, 10, 100, 1000, 10_000)
DRO_RATES = (0.1, 1, 10, 100, 1000)
GAUSSIAN_SHRINKAGES = (0.03, 0.1, 0.3, 0.6, 0.9)
ZERO_SHOT_SHARES = (0.03, 0.1, 0.25, 0.5, 0.75)
CLIP_SCALE = 100  # of CLIP's cosines, learnt by it and capped at this


def probe(training, X, X_do):
    """Logistic regression."""
    return _along_cs(training, X, training.y, training.weights)


def augmented(training, X, X_do):
    """Logistic regression on the originals and their counterparts, each of half weight.

    So C means what it does without them.
    """
    return _along_cs(
        training,
        np.concatenate([X, X_do]),
        np.tile(training.y, 2),
        np.tile(training.weights, 2) / 2,
    )


def vrex(training, X, X_do):
    """Add the variance of the risks of environments (Krueger et al., ICML 2021)."""
    risks = {("penalty", p): _variance_of_risks(p) for p in VREX_PENALTIES}
    return _with_each_risk(risks, training, X, X_do)


def group_dro(training, X, X_do):
    """Minimise the worst environment's risk, smoothed (Sagawa et al., ICLR 2020)."""
    risks = {("rate", rate): _worst_risk(rate) for rate in DRO_RATES}
    return _with_each_risk(risks, training, X, X_do)


def gaussian(training, X, X_do):
    """Classes as Gaussians of one covariance, shrunk towards its mean variance."""
    shares = np.array(
        [training.weights[training.y == k].sum() for k in range(training.n_classes)]
    )
    means = np.stack([X[training.y == k].mean(axis=0) for k in range(len(shares))])
    within = (X - means[training.y]).astype(float)
    covariance = within.T @ within / len(X)
    ridge = np.trace(covariance) / len(covariance)
    models = {}
    for shrinkage in GAUSSIAN_SHRINKAGES:
        shrunk = (1 - shrinkage) * covariance
        shrunk[np.diag_indices_from(shrunk)] += shrinkage * ridge
        coefficients = cho_solve(cho_factor(shrunk), means.T.astype(float))
        half = np.sum(means.T * coefficients, axis=0) / 2
        intercepts = np.log(shares / shares.sum()) - half
        models["shrinkage", shrinkage] = coefficients, intercepts
    return models


def averaged(training, X, X_do):
    """Mean of the probe's logits and CLIP's (WiSE-FT, Wortsman et al., CVPR 2022)."""
    text = CLIP_SCALE * training.prompts.T
    return {
        ("share of zero-shot", share, *setting): (
            share * text + (1 - share) * coefficients,
            (1 - share) * intercepts,
        )
        for setting, (coefficients, intercepts) in probe(training, X, X_do).items()
        for share in ZERO_SHOT_SHARES
    }


def fit_linear(X, y, weights, C, start=None, environments=None, combine=None):
    """Minimise log loss / n + |coefficients|^2 / (2 n C), n the sum of weights.

    So, with weights of 1, C is that of scikit-learn's LogisticRegression, and with two
    classes there is one vector of coefficients, as there. `environments` (rows,) and
    `combine`, which returns a value and a gradient, put a function of the risks of the
    environments in place of the mean loss.
    """
    n_classes, n, d = int(y.max()) + 1, weights.sum(), X.shape[1]
    columns = 1 if n_classes == 2 else n_classes
    one_hot = np.eye(n_classes, dtype=np.float32)[y]
    if environments is not None:
        totals = np.bincount(environments, weights)

    def objective(flat):
        parameters = flat.reshape(d + 1, columns)
        coefficients = parameters[:-1]
        logits = X @ coefficients.astype(np.float32)
        logits = _with_reference(logits + parameters[-1].astype(np.float32))
        logs = log_softmax(logits, axis=1)
        losses = -np.sum(one_hot * logs, axis=1, dtype=float)
        if environments is None:
            value, of_row = weights @ losses / n, weights / n
        else:
            risks = np.bincount(environments, weights * losses) / totals
            value, slopes = combine(risks)
            of_row = weights * (slopes / totals)[environments]
        errors = (np.exp(logs) - one_hot) * of_row[:, None].astype(np.float32)
        errors = errors[:, -columns:]
        gradient = np.empty_like(parameters)
        gradient[:-1] = X.T @ errors
        gradient[-1] = errors.sum(axis=0)
        value += np.vdot(coefficients, coefficients) / (2 * n * C)
        gradient[:-1] += coefficients / (n * C)
        return value, gradient.ravel()

    start = np.zeros((d + 1, columns)) if start is None else start
    options = {"maxiter": 500, "gtol": 1e-4, "ftol": 1e-9}
    found = minimize(
        objective, start.ravel(), jac=True, method="L-BFGS-B", options=options
    )
    return found.x.reshape(d + 1, columns)


def _along_cs(training, X, y, weights, **options):
    """Fit for each C, from the strongest penalty on, each from the one before."""
    models, parameters = {}, None
    for C in CS:
        parameters = fit_linear(X, y, weights, C, start=parameters, **options)
        whole = _with_reference(parameters)
        models["C", C] = whole[:-1], whole[-1]
    return models


def _with_reference(columns):
    """The logits, or parameters, of both classes where one column tells them apart."""
    if columns.shape[1] > 1:
        return columns
    return np.concatenate([np.zeros_like(columns), columns], axis=1)


def _with_each_risk(risks, training, X, X_do):
    return {
        (*parameter, *setting): model
        for parameter, risk in risks.items()
        for setting, model in _over_environments(training, X, X_do, risk).items()
    }


def _over_environments(training, X, X_do, combine):
    """Environments are the training domains, as they are and under intervention."""
    codes = np.unique(training.domains, return_inverse=True)[1]
    return _along_cs(
        training,
        np.concatenate([X, X_do]),
        np.tile(training.y, 2),
        np.tile(training.weights, 2) / 2,
        environments=np.concatenate([codes, codes + codes.max() + 1]),
        combine=combine,
    )


def _variance_of_risks(penalty):
    def combine(risks):
        apart, n = risks - risks.mean(), len(risks)
        value = risks.mean() + penalty * np.mean(apart**2)
        return value, (1 + 2 * penalty * apart) / n

    return combine


def _worst_risk(rate):
    def combine(risks):
        largest = risks.max()
        total = np.mean(np.exp(rate * (risks - largest)))
        return largest + np.log(total) / rate, softmax(rate * risks)

    return combine
