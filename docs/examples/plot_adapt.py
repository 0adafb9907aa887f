"""
Centring on the new domain
==========================

Often all embeddings of a new domain are shifted alike: another camera, another light.
A few images of it without labels tell the shift. :func:`skclip_icm.adapt` takes it off;
nothing is trained again. This is not from the paper of CLIP-ICM.
"""

# %%
# Data
# ----
# Photographs of solar cells, two kinds of module. A defect detector is trained on one
# kind and used on the other, each way round.
import numpy as np

from skclip_icm import CLIPFeaturizer
from skclip_icm.datasets import fetch_elpv

data = fetch_elpv()
y, kinds = data.target[::4], data.domains[::4]
Z = CLIPFeaturizer("demo").intervene(data.images[::4])

# %%
# Accuracy against the number of images
# -------------------------------------
# The threshold of a classifier suffers most from a shift, so the score is balanced
# accuracy. Images to adapt to are drawn at random from the new kind, ten times; the
# score is that on the rest of it. With more than one training domain,
# ``ICMTransformer(center="domain")`` would centre each in training as well.
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline

from skclip_icm import ICMTransformer, adapt


def probe():
    return LogisticRegression(class_weight="balanced", max_iter=1000)


models = {}
for unseen in (0, 1):
    train = kinds != unseen
    rows = Z[train]
    models["ICM", unseen] = make_pipeline(ICMTransformer(), probe()).fit(rows, y[train])
    models["probe", unseen] = probe().fit(np.asarray(rows), y[train])


def score(method, unseen, n_images, rng, share_defective=None):
    """Balanced accuracy on the new kind, centred on some images of it."""
    pool = rng.permutation(np.flatnonzero(kinds == unseen))
    if share_defective is not None:
        defective = round(n_images * share_defective)
        pool = np.r_[pool[y[pool] == 1][:defective], pool[y[pool] == 0], pool]
        pool = pool[np.sort(np.unique(pool, return_index=True)[1])]
    some, rest = pool[:n_images], pool[n_images:]
    model, images = models[method, unseen], np.asarray(Z)
    if n_images:
        known = {} if method == "ICM" else {"X_train": images[kinds != unseen]}
        model = adapt(model, images[some], **known)
    return balanced_accuracy_score(y[rest], model.predict(images[rest]))


def mean_score(method, n_images, **options):
    return np.mean(
        [
            score(method, unseen, n_images, np.random.default_rng(seed), **options)
            for unseen in (0, 1)
            for seed in range(10)
        ]
    )


numbers = [0, 1, 3, 10, 30, 100]
curves = {
    method: [mean_score(method, n) for n in numbers] for method in ("ICM", "probe")
}

# %%
import matplotlib.pyplot as plt

figure, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
for method, curve in curves.items():
    ax.plot(range(len(numbers)), curve, "o-", label=method)
ax.set_xticks(range(len(numbers)), numbers)
ax.set(
    xlabel="images of the new kind, without labels",
    ylabel="balanced accuracy there",
    title="A few images move the mean",
)
ax.axhline(0.5, color="black", linestyle="--", linewidth=1, label="chance")
ax.legend()
plt.show()

# %%
# When the shares of the classes differ
# -------------------------------------
# The mean of a batch also moves with the shares of the classes in it, and what
# separates the classes is then taken for a shift. Here that does little, since sound
# and defective cells look much alike. With classes as far apart as dogs and houses, a
# batch of one class is worse than none, see :doc:`/several_domains`. Adapt to images
# that resemble what will come. ``prior_weight`` limits how far small batches can move
# the mean.
shares = [0, 0.25, 0.5, 0.75, 1]
print(f"Share of defective cells in training: {y.mean():.2f}")
for share in shares:
    found = mean_score("ICM", 60, share_defective=share)
    print(f"share {share:4.2f} among 60 images: balanced accuracy {found:.3f}")
