"""
Choosing parameters with Optuna
===============================

Any tool that maximises a number can choose parameters under intervention: the number
is a cross-validated score by :func:`~skclip_icm.interventional_scorer`. Here the tool
is Optuna, which is not a dependency of this package: ``pip install optuna``.
"""

# %%
# Data
# ----
# Embeddings of a known causal model; those of images work the same way, see the end.
from skclip_icm.datasets import make_causal_embeddings

data = make_causal_embeddings(1000, noise=0.3, random_state=2)
train, test = data.domains == 0, data.domains == 1
Z, y = data.embeddings[train], data.target[train]

# %%
# The objective
# -------------
# A trial draws a method and its parameters. The folds are the same in every trial, so
# that trials differ by their parameters only.
import optuna
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import Pipeline

from skclip_icm import ICMTransformer, interventional_scorer

folds = StratifiedKFold(5, shuffle=True, random_state=0)
scorer = interventional_scorer("accuracy", aggregate="worst")


def pipeline(params):
    icm = ICMTransformer(method=params["method"])
    if params["method"] == "projection":
        icm.set_params(lam=params["lam"])
    else:
        icm.set_params(shrinkage=params["shrinkage"])
    classifier = LogisticRegression(C=params["C"], max_iter=1000)
    return Pipeline([("icm", icm), ("clf", classifier)])


def objective(trial):
    params = {
        "method": trial.suggest_categorical("method", ["projection", "whitening"]),
        "C": trial.suggest_float("C", 0.01, 100, log=True),
    }
    if params["method"] == "projection":
        params["lam"] = trial.suggest_float("lam", 0.03, 30, log=True)
    else:
        params["shrinkage"] = trial.suggest_float("shrinkage", 0.01, 10, log=True)
    return cross_val_score(pipeline(params), Z, y, cv=folds, scoring=scorer).mean()


# %%
# The search
# ----------
optuna.logging.set_verbosity(optuna.logging.WARNING)
sampler = optuna.samplers.TPESampler(seed=0)
study = optuna.create_study(direction="maximize", sampler=sampler)
study.optimize(objective, n_trials=40)
print(f"accuracy under intervention: {study.best_value:.3f}")
print(study.best_params)

best = pipeline(study.best_params).fit(Z, y)
accuracy = best.score(data.embeddings[test], data.target[test])
print(f"accuracy in the test domain: {accuracy:.3f}")

# %%
# What was tried
# --------------
import matplotlib.pyplot as plt

trials = [trial for trial in study.trials if "lam" in trial.params]
_, ax = plt.subplots(figsize=(7, 4), layout="constrained")
points = ax.scatter(
    [trial.params["lam"] for trial in trials],
    [trial.value for trial in trials],
    c=[trial.number for trial in trials],
    cmap="cividis",
    edgecolors="black",
)
ax.set(xscale="log", xlabel=r"$\lambda$", ylabel="accuracy under intervention")
ax.set_title("Trials with method='projection'")
ax.figure.colorbar(points, label="trial")
plt.show()

# %%
# On images
# ---------
# Embed once, with all the interventions that shall count in validation, and run the
# study on the embeddings::
#
#     Z = CLIPFeaturizer(interventions=["hue", "gaussian_blur", "equalize"]).intervene(
#         image_paths
#     )
#
# ``Z`` takes the place of the embeddings above.
