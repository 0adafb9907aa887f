"""The section on a grid search over the whole pipeline, on images."""

import shutil
import tempfile

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline

from skclip_icm import ICMTransformer
from skclip_icm._encoding.stores import open_cache

from .encoders import NoCache, featurizer
from .inputs import arrays
from .measure import Aim, take_turns

GRID = {"icm__lam": [0.3, 1, 3, 10], "clf__C": [0.1, 0.3, 1, 3, 10]}
FOLDS = 5
OURS = "GridSearchCV on images"
LEAST = "fit_transform once, then GridSearchCV on its embeddings"
MEMORY = "GridSearchCV on images, Pipeline(memory=...), no cache"


def grid_search(job):
    n = job.sizes["search"]
    images = arrays(n, (224, 224), job.seed)
    y = np.arange(n) % 2
    options = {"interventions": "photometric"}

    def search(cache, memory=None):
        clip = featurizer(job.model, cache=cache, **options)
        return _search(
            [("clip", clip), *_after()],
            memory,
        ).fit(images, y)

    def ours():
        open_cache(None).clear()
        return search(None).best_score_

    def least():
        Z = featurizer(job.model, **options).fit_transform(images)
        return _search(_after()).fit(Z, y).best_score_

    def with_memory():
        folder = tempfile.mkdtemp(dir=job.folder)
        try:
            return search(NoCache(), folder).best_score_
        finally:
            shutil.rmtree(folder)

    contestants = {OURS: ours, LEAST: least, MEMORY: with_memory}
    timed = take_turns(contestants, job.repeats)
    n_candidates = len(GRID["icm__lam"]) * len(GRID["clf__C"])
    seconds = {name: timed[name]["seconds"] for name in timed}
    return {
        "title": f"Grid search on {n} images: {n_candidates} candidates, {FOLDS} folds",
        "notes": [
            f"{OURS} is {seconds[MEMORY] / seconds[OURS]:.1f} times as fast as "
            "with Pipeline(memory=...), which encodes the held-out images again "
            "for every candidate."
        ],
        "contestants": timed,
        "aims": [
            Aim(
                "time over one fit_transform and the classifiers' own",
                seconds[OURS] / seconds[LEAST],
                at_most=1.3,
            )
        ],
    }


def _search(steps, memory=None):
    pipe = Pipeline(steps, memory=memory)
    return GridSearchCV(pipe, GRID, cv=FOLDS, error_score="raise")


def _after():
    icm = ICMTransformer(pairs="interventional")
    return [("icm", icm), ("clf", LogisticRegression(max_iter=1000))]
