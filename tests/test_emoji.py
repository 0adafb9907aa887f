"""Emoji in five styles, from npm packages: installed ones, or small ones made here."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skclip_icm.datasets import fetch_emoji_styles

SVG = "http://www.w3.org/2000/svg"
NODE_MODULES = Path(os.environ.get("SKCLIP_ICM_NODE_MODULES", "node_modules"))
needs_npm = pytest.mark.skipif(
    not (NODE_MODULES / "openmoji").is_dir(),
    reason=f"no emoji packages in {NODE_MODULES}; set SKCLIP_ICM_NODE_MODULES",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    pytest.importorskip("resvg_py")
    return fetch_emoji_styles(NODE_MODULES, data_home=tmp_path_factory.mktemp("data"))


def test_missing_packages_are_named_with_the_command_that_installs_them(tmp_path):
    (tmp_path / "openmoji").mkdir()
    with pytest.raises(FileNotFoundError) as error:
        fetch_emoji_styles(tmp_path)
    message = str(error.value)
    assert str(tmp_path) in message
    assert "lacks the npm packages emoji-datasource-google, emoji-dat" in message
    assert (
        "npm install emoji-datasource-google emoji-datasource-twitter openmoji "
        "@lobehub/fluent-emoji-3d" in message
    )


@pytest.fixture
def made(tmp_path):
    """Folders like those npm makes: dog, heart, a flag, and a cat that Google lacks."""
    pytest.importorskip("resvg_py")
    groups = {
        "1F436": ("Animals & Nature", "dog face", "animal, pet"),
        "1F408": ("Animals & Nature", "cat", "animal"),
        "2764-FE0F": ("Symbols", "red heart", "love"),
        "1F1E6-1F1F9": ("Flags", "flag: Austria", "country"),
    }
    unified = [{"unified": c, "category": g[0]} for c, g in groups.items()]
    write(tmp_path / "emoji-datasource-google/emoji.json", json.dumps(unified))
    rows = [
        # OpenMoji leaves the variation selector out.
        {"hexcode": c.removesuffix("-FE0F"), "annotation": g[1], "tags": g[2]}
        for c, g in groups.items()
    ]
    write(tmp_path / "openmoji/data/openmoji.json", json.dumps(rows))
    write(tmp_path / "openmoji/package.json", json.dumps({"version": "1.2.3"}))
    google = tmp_path / "emoji-datasource-google/img/google/64"
    twitter = tmp_path / "emoji-datasource-twitter/img/twitter/64"
    fluent = tmp_path / "@lobehub/fluent-emoji-3d/assets"
    for concept in groups:
        for folder, ending in ((google, "png"), (twitter, "png"), (fluent, "webp")):
            if (folder, concept) != (google, "1F408"):
                folder.mkdir(parents=True, exist_ok=True)
                file = folder / f"{concept.lower()}.{ending}"
                Image.new("RGB", (8, 8), "red").save(file)
        for style, colour in (("color", "red"), ("black", "#000")):
            square = f'<path fill="{colour}" d="M0 0H9V9H0Z"/>'
            name = concept.removesuffix("-FE0F")
            path = tmp_path / f"openmoji/{style}/svg/{name}.svg"
            write(path, f'<svg xmlns="{SVG}" viewBox="0 0 9 9">{square}</svg>')
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_emoji_of_every_style_are_listed_style_by_style(made, tmp_path):
    data = fetch_emoji_styles(made, data_home=tmp_path / "home")
    assert data.concepts.tolist() == ["1F436", "2764"] * 5  # no flag, and no cat
    assert data.domains.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert data.names == ["dog face", "red heart"] * 5
    assert data.keywords == ["animal, pet", "love"] * 5
    names = [data.target_names[i] for i in data.target]
    assert names == ["animals and nature", "symbols"] * 5
    assert "2 emoji in five styles" in data.DESCR


def test_vector_graphics_are_rendered_once_in_their_colours(made, tmp_path):
    home = tmp_path / "home"
    data = fetch_emoji_styles(made, data_home=home)
    colours = {"openmoji": (255, 0, 0), "openmoji-black": (0, 0, 0)}
    for style, colour in colours.items():
        row = np.flatnonzero(data.domains == data.domain_names.index(style))[0]
        picture = Image.open(data.images[row]).convert("RGB")
        assert picture.size == (72, 72)
        assert picture.getpixel((36, 36)) == colour
    rendered = {path: path.stat().st_mtime_ns for path in home.rglob("*.png")}
    assert len(rendered) == 4
    again = fetch_emoji_styles(made, data_home=home)
    assert again.images.tolist() == data.images.tolist()
    assert {path: path.stat().st_mtime_ns for path in rendered} == rendered
    assert not [p for p in home.rglob("*") if p.is_file() and p.suffix != ".png"]


def test_without_resvg_the_error_says_what_to_install(made, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ImportError, match="pip install resvg-py"):
        fetch_emoji_styles(made, data_home=tmp_path / "home")


@needs_npm
def test_every_style_holds_the_same_concepts_in_the_same_order(data):
    n = len(data.images)
    assert n > 7000
    assert len(data.names) == len(data.keywords) == len(data.concepts) == n
    concepts = data.concepts.reshape(5, -1)
    assert (concepts == concepts[0]).all()
    assert (data.target.reshape(5, -1) == data.target[: n // 5]).all()
    assert np.bincount(data.domains).tolist() == [n // 5] * 5
    assert len(set(concepts[0])) == n // 5


@needs_npm
def test_rows_are_what_they_say(data):
    rows = np.flatnonzero(data.concepts == "1F436")
    assert [data.domain_names[i] for i in data.domains[rows]] == data.domain_names
    for row in rows:
        assert data.names[row] == "dog face"
        assert data.target_names[data.target[row]] == "animals and nature"
        assert "pet" in data.keywords[row]
        assert "1f436" in data.images[row].lower()
    assert len(data.target_names) == 8
    assert set(data.target) == set(range(8))


@needs_npm
def test_images_open_and_line_art_has_no_colour(data):
    for row in np.flatnonzero(data.concepts == "2764"):  # the red heart
        picture = Image.open(data.images[row]).convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        pixels = np.asarray(Image.alpha_composite(white, picture).convert("RGB"))
        spread = np.ptp(pixels.astype(int), axis=2).max()
        line_art = data.domain_names[data.domains[row]] == "openmoji-black"
        assert (spread == 0) == line_art


@needs_npm
def test_rendered_pictures_are_reused(data):
    ending = os.path.join("black-72", "0023-20E3.png")
    rendered = next(path for path in data.images if path.endswith(ending))
    home = Path(rendered).parents[2]
    written = os.stat(rendered).st_mtime_ns
    again = fetch_emoji_styles(NODE_MODULES, data_home=home)
    assert again.images.tolist() == data.images.tolist()
    assert os.stat(rendered).st_mtime_ns == written


@needs_npm
def test_description_states_the_licences(data):
    for licence in ("Apache 2.0", "CC BY 4.0", "CC BY-SA 4.0", "MIT"):
        assert licence in data.DESCR
