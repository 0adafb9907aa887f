"""Time and memory of fits to embeddings in files.

    python -m scale_benchmark.fits METHOD Z.npy Z_do.npy

Seconds are from the files to the fitted estimator, reading included.
"""

import json
import sys
import time

import numpy as np
from scipy.linalg.blas import dsyrk
from sklearn.decomposition import PCA, IncrementalPCA

from scale_benchmark.process import peak_mib
from skclip_icm import ICMTransformer
from skclip_icm.files._fit import fit_files

BLAS_ROWS = 8192
PCA_COMPONENTS = 128


def blas(Z, Z_do):
    """The products alone: nothing that computes both matrices can do less."""
    Z, Z_do = _mapped(Z), _mapped(Z_do)
    d = Z.shape[1]
    S, S_do = (np.zeros((d, d), order="F") for _ in range(2))
    for start in range(0, len(Z), BLAS_ROWS):
        rows = np.array(Z[start : start + BLAS_ROWS], np.float64)
        moved = rows - Z_do[start : start + BLAS_ROWS]
        S = dsyrk(1.0, rows.T, beta=1.0, c=S, overwrite_c=True)
        S_do = dsyrk(1.0, moved.T, beta=1.0, c=S_do, overwrite_c=True)


def icm_mapped(Z, Z_do):
    """Fit to memory maps."""
    ICMTransformer().fit(_mapped(Z), X_do=_mapped(Z_do))


def icm_files(Z, Z_do):
    """Fit to files, chunk by chunk."""
    fit_files(Z, ICMTransformer(), X_do=Z_do)


def icm_partial(Z, Z_do):
    """Ten calls of partial_fit, each of which finds the directions anew."""
    Z, Z_do = _mapped(Z), _mapped(Z_do)
    icm, step = ICMTransformer(), -(-len(Z) // 10)
    for start in range(0, len(Z), step):
        rows = slice(start, start + step)
        icm.partial_fit(Z[rows], X_do=Z_do[rows])


def icm_loaded(Z, Z_do):
    """Fit to arrays in memory."""
    ICMTransformer().fit(np.load(Z), X_do=np.load(Z_do))


def incremental_pca(Z, Z_do):
    """What scikit-learn has for data beyond memory; it sees no pairs."""
    Z = _mapped(Z)
    IncrementalPCA(min(PCA_COMPONENTS, Z.shape[1])).fit(Z)


def pca_loaded(Z, Z_do):
    """All components from the covariance of an array in memory; it sees no pairs."""
    PCA(svd_solver="covariance_eigh").fit(np.load(Z))


METHODS = {
    "BLAS products alone": blas,
    "ICM, memory map": icm_mapped,
    "ICM, fit_files": icm_files,
    "ICM, partial_fit": icm_partial,
    "ICM, array": icm_loaded,
    "IncrementalPCA": incremental_pca,
    "PCA, array": pca_loaded,
}


def write_pairs(folder, n, d, seed):
    """Write random unit embeddings and counterparts; return the paths."""
    rng = np.random.default_rng(seed)
    paths = folder / "Z.npy", folder / "Z_do.npy"
    files = [
        np.lib.format.open_memmap(path, "w+", np.float32, (n, d)) for path in paths
    ]
    for start in range(0, n, BLAS_ROWS):
        m = min(BLAS_ROWS, n - start)
        Z = rng.standard_normal((m, d), np.float32)
        # Half of the directions are moved much more than the other half.
        noise = rng.standard_normal((m, d), np.float32)
        noise[:, : d // 2] *= 0.1
        for file, rows in zip(files, (Z, Z + noise), strict=True):
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            file[start : start + m] = rows
    for file in files:
        file.flush()
    return paths


def _mapped(path):
    return np.load(path, mmap_mode="r")


def main(name, Z, Z_do):
    before = peak_mib()
    start = time.perf_counter()
    METHODS[name](Z, Z_do)
    seconds = time.perf_counter() - start
    print(
        json.dumps({"seconds": seconds, "peak_mib": peak_mib(), "before_mib": before})
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
