"""Emoji as a domain generalisation data set: one concept, drawn by five hands."""

import json
import os
from pathlib import Path

import numpy as np
from sklearn.datasets import get_data_home
from sklearn.utils import Bunch

from skclip_icm.datasets._npm import package_folders

_PACKAGES = (
    "emoji-datasource-google emoji-datasource-twitter openmoji @lobehub/fluent-emoji-3d"
)
_STYLES = ["google", "twitter", "openmoji", "openmoji-black", "fluent-3d"]
# Unicode's groups, without flags, whose names are of countries.
_GROUPS = ["Smileys & Emotion", "People & Body", "Animals & Nature", "Food & Drink"]
_GROUPS += ["Travel & Places", "Activities", "Objects", "Symbols"]
_SIZE = 72  # pixels, the grid on which OpenMoji is drawn

_DESCR = """\
{n_concepts} emoji in five styles each. Target: the Unicode group, 8 classes. Domain:
the style. Skin tone variants, flags, and emoji that some style lacks are left out.
Most pictures have a transparent background.

=============== ======================================== =========================
style           npm package                              licence of the pictures
=============== ======================================== =========================
google          emoji-datasource-google, 64 px           Apache 2.0 (Noto Emoji)
twitter         emoji-datasource-twitter, 64 px          CC BY 4.0 (Twemoji)
openmoji        openmoji (colour), rendered at 72 px     CC BY-SA 4.0
openmoji-black  openmoji (line art), rendered at 72 px   CC BY-SA 4.0
fluent-3d       @lobehub/fluent-emoji-3d, 256 px         MIT (Microsoft Fluent)
=============== ======================================== =========================

Names and keywords are Unicode CLDR's, as given in OpenMoji's table.
"""


def fetch_emoji_styles(node_modules="node_modules", *, data_home=None):
    """Collect emoji pictures in five styles from installed npm packages.

    Nothing is downloaded. OpenMoji ships vector graphics only; they are rendered
    once, with ``resvg-py``, into ``data_home``.

    Parameters
    ----------
    node_modules : str or path, default="node_modules"
        Folder in which npm installed the packages.
    data_home : str or path, default=None
        Where rendered pictures are kept; None is scikit-learn's data folder.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        Fields: ``images``, array of n paths of PNG and WebP files, style by
        style, with the concepts in the same order in every style.
        ``target``, int array (n,), index into ``target_names``.
        ``domains``, int array (n,), index into ``domain_names``.
        ``target_names``, ``domain_names``, lists of str.
        ``names``, ``keywords``, lists of str, per image ("dog face", "animal, pet").
        ``concepts``, str array (n,), code points without variation selectors
        ("1F436"); equal for the same emoji in another style.
        ``DESCR``, str, with the licences.

    Raises
    ------
    FileNotFoundError
        If an npm package is missing.
    ImportError
        If ``resvg-py`` is missing and pictures remain to be rendered.

    Examples
    --------
    >>> from skclip_icm.datasets import fetch_emoji_styles
    >>> data = fetch_emoji_styles("node_modules")  # doctest: +SKIP
    >>> data.domain_names  # doctest: +SKIP
    ['google', 'twitter', 'openmoji', 'openmoji-black', 'fluent-3d']
    """
    google, twitter, openmoji, fluent = package_folders(
        node_modules, *_PACKAGES.split()
    )
    groups = _table(google / "emoji.json", "unified")
    annotations = _table(openmoji / "data" / "openmoji.json", "hexcode")
    color, black = (_by_concept(openmoji / s / "svg") for s in ("color", "black"))
    others = [google / "img/google/64", twitter / "img/twitter/64", fluent / "assets"]
    others = [_by_concept(folder) for folder in others]
    everywhere = set(annotations).intersection(color, black, *others)
    concepts = [
        concept
        for concept, row in groups.items()
        if row["category"] in _GROUPS and concept in everywhere
    ]

    version = json.loads((openmoji / "package.json").read_text())["version"]
    home = Path(get_data_home(data_home)) / f"openmoji-{version}"
    color = _render(color, concepts, home / f"color-{_SIZE}")
    black = _render(black, concepts, home / f"black-{_SIZE}")
    files = [others[0], others[1], color, black, others[2]]  # as in _STYLES

    target = [_GROUPS.index(groups[concept]["category"]) for concept in concepts]
    rows = [annotations[concept] for concept in concepts] * len(_STYLES)
    return Bunch(
        images=np.array(
            [str(found[concept]) for found in files for concept in concepts],
            dtype=object,
        ),
        target=np.tile(target, len(_STYLES)),
        domains=np.repeat(np.arange(len(_STYLES)), len(concepts)),
        target_names=[group.lower().replace("&", "and") for group in _GROUPS],
        domain_names=list(_STYLES),
        names=[row["annotation"] for row in rows],
        keywords=[row["tags"] for row in rows],
        concepts=np.tile(concepts, len(_STYLES)),
        DESCR=_DESCR.format(n_concepts=len(concepts)),
    )


def _concept(code_points):
    # Vendors disagree on whether to write the emoji variation selector.
    return code_points.upper().replace("-FE0F", "")


def _by_concept(folder):
    return {_concept(path.stem): path for path in sorted(folder.iterdir())}


def _table(path, key):
    rows = json.loads(path.read_text(encoding="utf-8"))
    return {_concept(row[key]): row for row in rows}


def _render(vectors, concepts, folder):
    """Render the concepts' SVG files as PNG files in a folder, where missing."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {concept: folder / f"{concept}.png" for concept in concepts}
    for concept, picture in pictures.items():
        if not picture.exists():
            png = _rasterise(vectors[concept])
            # Written whole under another name: other processes may do the same.
            unfinished = picture.with_suffix(f".{os.getpid()}")
            unfinished.write_bytes(png)
            os.replace(unfinished, picture)
    return pictures


def _rasterise(vector):
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise ImportError(
            "OpenMoji's vector graphics are rendered with resvg-py, which is not "
            "installed. Run: pip install resvg-py"
        ) from error
    return svg_to_bytes(
        svg_path=str(vector), width=_SIZE, height=_SIZE, skip_system_fonts=True
    )
