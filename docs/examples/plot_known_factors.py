"""
Invariant directions of a known causal model
============================================

Embeddings from a model whose factors are known show what
:class:`~skclip_icm.ICMTransformer` keeps, and what that is worth when the domain
changes.
"""

# %%
# Data
# ----
# Each embedding is a linear mixture of 16 invariant and 16 variant factors. The class
# moves both in the training domain; in the test domain it moves the variant ones the
# opposite way. Each row has a counterpart whose variant factors were moved a little:
# by far less than what sets the domains apart, as with interventions on real images.
from skclip_icm.datasets import make_causal_embeddings

data = make_causal_embeddings(intervention_scale=0.3, random_state=0)
train, test = data.domains == 0, data.domains == 1
print(data.embeddings.shape, data.embeddings.counterparts.shape)

# %%
# A linear probe, augmentation, ICM
# ---------------------------------
# On the raw embeddings, the classifier uses all that helps in training, and fails
# where the variant factors mislead it. Training on the counterparts as well, as
# augmentation does, hardly helps, for they come nowhere near the test domain. ICM asks
# which directions move at all, and with a large ``lam`` drops them, however little.
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from skclip_icm import ICMTransformer

Z, y = data.embeddings[train], data.target[train]
augmented = np.vstack([np.asarray(Z), Z.counterparts[:, 0]])
raw, augmentation = LogisticRegression(), LogisticRegression()
icm = make_pipeline(ICMTransformer(lam=500), LogisticRegression())
classifiers = {
    "raw": raw.fit(Z, y),
    "augmentation": augmentation.fit(augmented, np.tile(y, 2)),
    "ICM": icm.fit(Z, y),
}
for name, classifier in classifiers.items():
    for domain, rows in [("training", train), ("test", test)]:
        accuracy = classifier.score(data.embeddings[rows], data.target[rows])
        print(f"{name}, {domain} domain: accuracy {accuracy:.3f}")

# %%
# The spectrum
# ------------
# Eigenvalues of :math:`S - \lambda S_{do}`: positive along directions that vary
# between images more than :math:`\lambda` times what the intervention causes. There
# are as many of them as invariant factors.
from skclip_icm.plotting import SpectrumDisplay

transformer = icm[0]
display = SpectrumDisplay.from_estimator(transformer)

# %%
# What the kept directions hold
# -----------------------------
# How strongly each kept direction responds to each factor. Of the variant factors,
# hardly anything is left.
import matplotlib.pyplot as plt

responses = np.abs(transformer.components_ @ np.hstack([data.A_inv, data.A_var]))

figure, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
image = ax.imshow(responses, cmap="cividis", vmin=0, vmax=1, aspect="auto")
ax.axvline(data.A_inv.shape[1] - 0.5, color="white")
ax.set(
    xlabel="factor (invariant | variant)",
    ylabel="kept direction",
    title="Response to the true factors",
)
figure.colorbar(image, ax=ax)
plt.show()

left = np.linalg.norm(transformer.components_ @ data.A_var)
print(f"share of the variant factors left: {left / np.linalg.norm(data.A_var):.4f}")
