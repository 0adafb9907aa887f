r"""
Choosing lam without labels of the new domain
=============================================

How large should :math:`\lambda` be? Held-out rows of the training domain cannot tell:
there, whatever goes with the class is right. The same rows after an intervention can.
"""

# %%
# Data
# ----
# Embeddings of a known causal model with much noise. The class moves variant factors
# in the training domain, and the opposite way in the test domain.
from skclip_icm.datasets import make_causal_embeddings

data = make_causal_embeddings(1000, noise=0.3, random_state=2)
train, test = data.domains == 0, data.domains == 1
Z, y = data.embeddings[train], data.target[train]

# %%
# Two ways of validating
# ----------------------
# The same folds and the same candidates, scored once on the held-out rows and once on
# their counterparts. Accuracy in the test domain, which nobody would know in practice,
# is drawn for comparison.
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_validate
from sklearn.pipeline import Pipeline

from skclip_icm import ICMTransformer, interventional_scorer

pipe = Pipeline([("icm", ICMTransformer()), ("clf", LogisticRegression(max_iter=1000))])
lams = [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30]
folds = StratifiedKFold(5, shuffle=True, random_state=0)
scoring = {
    "held-out rows": "accuracy",
    "held-out rows, intervened": interventional_scorer("accuracy"),
}
curves = {name: [] for name in [*scoring, "test domain (unknown)"]}
for lam in lams:
    pipe.set_params(icm__lam=lam)
    result = cross_validate(pipe, Z, y, cv=folds, scoring=scoring)
    for name in scoring:
        curves[name].append(result[f"test_{name}"].mean())
    accuracy = pipe.fit(Z, y).score(data.embeddings[test], data.target[test])
    curves["test domain (unknown)"].append(accuracy)

# %%
# The upper curve is flat and says nothing. The intervened rows tell which
# :math:`\lambda` holds up.
import matplotlib.pyplot as plt

_, ax = plt.subplots(figsize=(7, 4), layout="constrained")
styles = [("#e69f00", "s--"), ("#0072b2", "o-"), ("black", "^:")]
for (name, values), (color, style) in zip(curves.items(), styles, strict=True):
    ax.plot(lams, values, style, color=color, label=name)
ax.set(xscale="log", xlabel=r"$\lambda$", ylabel="accuracy")
ax.legend()

for name in scoring:
    best = int(np.argmax(curves[name]))
    found = curves["test domain (unknown)"][best]
    print(f"by {name}: lam={lams[best]}, accuracy in the test domain {found:.3f}")

# %%
# In a search
# -----------
# ``interventional_scorer`` goes where any ``scoring`` goes. Successive halving tries
# all candidates on a few rows and the better ones on more. Give it enough rows to
# begin with, some hundreds or a multiple of the number of classes: it would start with
# a handful, from which no direction can be estimated.
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import HalvingGridSearchCV

search = HalvingGridSearchCV(
    pipe,
    {"icm__lam": lams, "clf__C": [0.1, 1, 10]},
    scoring=interventional_scorer("accuracy"),
    cv=folds,
    min_resources=200,
    random_state=0,
)
search.fit(Z, y)
for n_candidates, n_rows in zip(search.n_candidates_, search.n_resources_, strict=True):
    print(f"{n_candidates} candidates on {n_rows} rows")
print(search.best_params_)
accuracy = search.score(data.embeddings[test], data.target[test])
print(f"intervened test rows: {accuracy:.3f}")
accuracy = search.best_estimator_.score(data.embeddings[test], data.target[test])
print(f"test rows as they are: {accuracy:.3f}")

# %%
# Note the last lines: ``search.score`` uses the scorer of the search, so it intervenes;
# for plain accuracy, ask ``best_estimator_``.
