"""Emoji as a domain generalisation data set: one concept, drawn by five hands."""

import json
import os
from pathlib import Path

import numpy as np
from sklearn.datasets import get_data_home
from sklearn.utils import Bunch

_PACKAGES = (
    "emoji-datasource-google",
    "emoji-datasource-twitter",
    "openmoji",
    "@lobehub/fluent-emoji-3d",
)
# Unicode's groups without flags, whose names are of countries.
_CLASSES = {
    "Smileys & Emotion": "smileys and emotion",
    "People & Body": "people and body",
    "Animals & Nature": "animals and nature",
    "Food & Drink": "food and drink",
    "Travel & Places": "travel and places",
    "Activities": "activities",
    "Objects": "objects",
    "Symbols": "symbols",
}
_DOMAINS = ("google", "twitter", "openmoji", "openmoji-black", "fluent-3d")
_SIZE = 72  # pixels, the grid on which OpenMoji is drawn

_DESCR = """\
Emoji styles
============
{n_concepts} emoji, each in five styles. Target: the Unicode group, {n_classes}
classes. Domain: the style. Skin tone variants, flags and emoji that some style lacks
are left out. Most pictures have a transparent background.

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
        images : list of str, n paths of PNG and WebP files, style by style, with
        the concepts in the same order in every style.
        target : int array (n,), index into ``target_names``.
        domains : int array (n,), index into ``domain_names``.
        target_names, domain_names : list of str.
        names : list of str, one per image ("dog face").
        keywords : list of str, one per image ("animal, dog, pet").
        concepts : str array (n,), code points without variation selectors
        ("1F436"); equal for the same emoji in another style.
        DESCR : str, with the licences.

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
    root = _check_packages(Path(node_modules))
    google, twitter, openmoji, fluent = (root / name for name in _PACKAGES)
    rendered = Path(get_data_home(data_home)) / f"openmoji-{_version(openmoji)}"
    folders = [
        google / "img" / "google" / "64",
        twitter / "img" / "twitter" / "64",
        openmoji / "color" / "svg",
        openmoji / "black" / "svg",
        fluent / "assets",
    ]
    files = [_by_concept(folder) for folder in folders]
    groups = {
        _concept(row["unified"]): row["category"]
        for row in _read_json(google / "emoji.json")
    }
    table = {
        _concept(row["hexcode"]): row
        for row in _read_json(openmoji / "data" / "openmoji.json")
    }
    concepts = [
        concept
        for concept, group in groups.items()
        if group in _CLASSES and all(concept in found for found in [table, *files])
    ]
    for index, style in ((2, "color"), (3, "black")):
        vectors = {concept: files[index][concept] for concept in concepts}
        files[index] = _render(vectors, rendered / f"{style}-{_SIZE}")

    classes = list(_CLASSES)
    n_domains = len(_DOMAINS)
    target = np.array([classes.index(groups[concept]) for concept in concepts])
    return Bunch(
        images=[str(found[concept]) for found in files for concept in concepts],
        target=np.tile(target, n_domains),
        domains=np.repeat(np.arange(n_domains), len(concepts)),
        target_names=list(_CLASSES.values()),
        domain_names=list(_DOMAINS),
        names=[table[concept]["annotation"] for concept in concepts] * n_domains,
        keywords=[table[concept]["tags"] for concept in concepts] * n_domains,
        concepts=np.tile(concepts, n_domains),
        DESCR=_DESCR.format(n_concepts=len(concepts), n_classes=len(classes)),
    )


def _check_packages(root):
    missing = [name for name in _PACKAGES if not (root / name).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"{root.absolute()} lacks the npm packages {', '.join(missing)}. Run in "
            f"{root.absolute().parent}: npm install {' '.join(_PACKAGES)}"
        )
    return root.absolute()


def _concept(code_points):
    # Vendors disagree on whether to write the emoji variation selector.
    return code_points.upper().replace("-FE0F", "")


def _by_concept(folder):
    return {_concept(path.stem): path for path in sorted(folder.iterdir())}


def _read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def _version(package):
    return _read_json(package / "package.json")["version"]


def _render(vectors, folder):
    """Render SVG files, {concept: path}, as PNG files into a folder, where missing."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {concept: folder / f"{concept}.png" for concept in vectors}
    for concept, picture in pictures.items():
        if not picture.exists():
            _render_one(vectors[concept], picture)
    return pictures


def _render_one(vector, picture):
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise ImportError(
            "OpenMoji's vector graphics are rendered with resvg-py, which is not "
            "installed. Run: pip install resvg-py"
        ) from error
    png = svg_to_bytes(
        svg_path=str(vector), width=_SIZE, height=_SIZE, skip_system_fonts=True
    )
    # Written whole under another name first: several processes may do the same.
    unfinished = picture.with_suffix(f".{os.getpid()}")
    unfinished.write_bytes(png)
    os.replace(unfinished, picture)
