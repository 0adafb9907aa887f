"""
Images beside numbers
=====================

A table with a column of images and columns of numbers:
:class:`sklearn.compose.ColumnTransformer` sends the images through the featurizer and
ICM, and the rest through the usual preprocessing.
"""

# %%
# Data
# ----
# Each row is a form: a handwritten digit in red or blue ink, the same digit as a clerk
# typed it, with errors, and the length of the form's text. The question is whether the
# digit is at least 5. At the office where the forms for training come from, large
# digits happen to be written in blue; at the new office, in red.
import numpy as np
import pandas as pd
from PIL import Image
from sklearn.datasets import load_digits

digits = load_digits()
rng = np.random.default_rng(0)


def forms(rows, blue_if_large):
    table = []
    for row in rows:
        digit, large = digits.target[row], digits.target[row] >= 5
        blue = large == (rng.random() < blue_if_large)
        paper = (255 - 15 * digits.images[row]).astype(np.uint8)
        image = np.repeat(paper[..., None], 3, axis=2)
        image[..., 2 if blue else 0] = 255
        table.append(
            {
                "scan": Image.fromarray(image).resize((96, 96), Image.BICUBIC),
                "typed": digit + rng.normal(scale=2.5),
                "length": rng.integers(20, 200),
                "large": large,
            }
        )
    return pd.DataFrame(table)


rows = rng.permutation(len(digits.target))
train = forms(rows[:200], blue_if_large=0.9)
new_office = forms(rows[200:350], blue_if_large=0.1)
train.drop(columns="scan").head()

# %%
import matplotlib.pyplot as plt

figure, panels = plt.subplots(2, 6, figsize=(7, 2.8), layout="constrained")
for panel_row, table in zip(panels, (train, new_office), strict=True):
    for panel, (_, form) in zip(panel_row, table[:6].iterrows(), strict=True):
        panel.imshow(form["scan"])
        panel.set(xticks=[], yticks=[], xlabel="large" if form["large"] else "small")
panels[0, 0].set_ylabel("training")
panels[1, 0].set_ylabel("new office")
plt.show()

# %%
# The pipeline
# ------------
# One branch takes the column of images, the other the columns of numbers. The
# intervention ``"hue"`` changes the colour of the ink alone. Inside the branch, the
# counterparts go from the featurizer to ICM by themselves.
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from skclip_icm import CLIPFeaturizer, ICMTransformer

clip = CLIPFeaturizer("demo", interventions="hue")
invariant = Pipeline([("clip", clip), ("icm", ICMTransformer(lam=10))])
numbers = ("numbers", StandardScaler(), ["typed", "length"])
branches = {
    "numbers": [numbers],
    "raw images": [("image", clip, "scan")],
    "ICM images": [("image", invariant, "scan")],
    "raw images and numbers": [("image", clip, "scan"), numbers],
    "ICM images and numbers": [("image", invariant, "scan"), numbers],
}
scores, models = {}, {}
for name, columns in branches.items():
    model = Pipeline(
        [
            ("columns", ColumnTransformer(columns)),
            # The output of ICM has mean squared norm 1, as each number has.
            ("clf", LogisticRegression(C=10, max_iter=1000)),
        ]
    )
    models[name] = model.fit(train, train["large"])
    scores[name] = {"new office": model.score(new_office, new_office["large"])}

# %%
# Neither part is enough: the numbers hold errors, and the raw embeddings follow the
# ink.
from skclip_icm.plotting import DomainAccuracyDisplay

display = DomainAccuracyDisplay.from_scores(scores)
display.ax_.axhline(0.5, color="black", linestyle="--", linewidth=1)

# %%
# Names of the columns
# --------------------
# Frames come out if asked for before fitting, with a name for each column.
from sklearn.base import clone

columns = clone(models["ICM images and numbers"][0]).set_output(transform="pandas")
columns.fit(train)
columns.transform(new_office.head(3)).iloc[:, [0, 1, 2, -2, -1]].round(2)
