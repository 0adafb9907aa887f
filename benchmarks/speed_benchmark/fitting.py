"""Sections on fitting ICM, beside the least that any such fit has to compute."""

import numpy as np
import torch
from sklearn.decomposition import PCA

from skclip_icm import ICMTransformer

from .measure import Aim, take_turns

OURS = "ICMTransformer"
FLOOR = "floor: two products and one eigh, float64"
FLOOR32 = "the same, float32"
COVARIANCE_EIGH = 'PCA(svd_solver="covariance_eigh")'
LEACE = "LEACE (concept-erasure)"
FORMULA = "the paper's formula in torch, float32"


def fit_tall(job):
    return _fit(job, *job.sizes["tall"])


def fit_wide(job):
    return _fit(job, *job.sizes["wide"])


def _fit(job, n, d):
    rng = np.random.default_rng(job.seed)
    Z, Z_do = _draw(rng, n, d)
    exact = [np.asarray(rows, dtype=np.float64) for rows in (Z, Z - Z_do)]
    single = [np.asarray(rows) for rows in (Z, Z - Z_do)]
    tensors = [torch.from_numpy(rows) for rows in (Z, Z_do)]
    contestants = {
        OURS: lambda: _none(ICMTransformer(pairs="interventional").fit(Z, X_do=Z_do)),
        FLOOR: lambda: _floor(*exact),
        FLOOR32: lambda: _floor(*single),
        COVARIANCE_EIGH: lambda: _none(PCA(svd_solver="covariance_eigh").fit(Z)),
        FORMULA: lambda: _formula(*tensors),
    }
    try:
        from concept_erasure import LeaceFitter
    except ImportError as error:
        print(f"{LEACE} is left out: {error}")
    else:
        concepts = torch.from_numpy(np.eye(2, dtype=np.float32)[np.arange(n) % 2])
        contestants[LEACE] = lambda: _none(LeaceFitter.fit(tensors[0], concepts).eraser)
    timed = take_turns(contestants, job.repeats)
    seconds = {name: timed[name]["seconds"] for name in timed}
    return {
        "title": f"Fitting {n:,} x {d:,} float32 embeddings and their counterparts",
        "notes": [
            "The products of the floor are of arrays that are in float64 already."
        ],
        "contestants": timed,
        "aims": [
            Aim(
                "time over the floor in float64",
                seconds[OURS] / seconds[FLOOR],
                at_most=1.25,
            ),
            Aim(
                "speed over PCA",
                seconds[COVARIANCE_EIGH] / seconds[OURS],
                at_least=1,
            ),
        ],
    }


def _draw(rng, n, d):
    """Unit rows of decaying spectrum, and counterparts moved in a few directions."""
    Z = rng.standard_normal((n, d), np.float32) / np.sqrt(np.arange(1, d + 1))
    Z_do = Z + 0.3 * rng.standard_normal((n, 8), np.float32) @ rng.standard_normal(
        (8, d), np.float32
    ) / np.sqrt(d)
    return tuple(
        np.float32(rows / np.linalg.norm(rows, axis=1, keepdims=True))
        for rows in (Z, Z_do)
    )


def _floor(Z, difference):
    np.linalg.eigh(Z.T @ Z - difference.T @ difference)


def _formula(Z, Z_do, lam=1.0):
    centred, difference = Z - Z.mean(0), Z - Z_do
    n = len(Z)
    M = centred.T @ centred / n - lam * difference.T @ difference / n
    torch.linalg.eigh(M)


def _none(fitted):
    """Drop a result that would only take memory."""
