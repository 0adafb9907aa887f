"""Photographs of solar cells by electroluminescence, of two kinds of module."""

import importlib.util
from pathlib import Path

import numpy as np
from sklearn.utils import Bunch

DESCR = """\
ELPV: solar cells by electroluminescence
----------------------------------------
2,624 greyscale photographs, 300 x 300 pixels, of functional and defective cells from
44 solar modules. Experts rated each cell's probability of a defect as 0, 1/3, 2/3 or 1;
the target is 1 where it is at least 0.5. Domains: monocrystalline and polycrystalline
modules, which look different whatever their state.

Source: the Python package elpv-dataset (CC BY-NC-SA 4.0), from Buerhop-Lutz et al.,
"A Benchmark for Visual Identification of Defective Solar Cells in Electroluminescence
Imagery", EU PVSEC 2018, and Deitsch et al., Solar Energy 185, 2019.
"""


def fetch_elpv():
    """Load the ELPV photographs of solar cells from their Python package.

    Returns
    -------
    data : Bunch
        ``images``: array of 2,624 paths of PNG files; ``target``: int array, 1 for a
        defective cell; ``domains``: int array, 0 for monocrystalline and 1 for
        polycrystalline modules; ``probability``: float array, the rated probability of
        a defect; ``target_names``, ``domain_names``: lists of str; ``DESCR``: str.

    Raises
    ------
    ImportError
        If the package ``elpv-dataset`` (extra ``demo``) is not installed.

    Examples
    --------
    >>> from skclip_icm.datasets import fetch_elpv
    >>> data = fetch_elpv()
    >>> len(data.images), data.domain_names
    (2624, ['mono', 'poly'])
    """
    # The package's own loader decodes all images at once; the paths are enough.
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None:
        raise ImportError(
            "fetch_elpv needs the package elpv-dataset: run "
            "pip install 'skclip-icm[demo]'."
        )
    folder = Path(spec.origin).parent / "data"
    table = np.genfromtxt(
        folder / "labels.csv", dtype=None, names=["path", "probability", "module"]
    )
    domain_names = ["mono", "poly"]
    return Bunch(
        images=np.array([str(folder / path) for path in table["path"]], dtype=object),
        target=(table["probability"] >= 0.5).astype(int),
        domains=np.array([domain_names.index(name) for name in table["module"]]),
        probability=table["probability"],
        target_names=["functional", "defective"],
        domain_names=domain_names,
        DESCR=DESCR,
    )
