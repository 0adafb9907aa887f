"""Emoji in five styles, from installed npm packages."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skclip_icm.datasets import fetch_emoji_styles

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
    assert again.images == data.images
    assert os.stat(rendered).st_mtime_ns == written


@needs_npm
def test_description_states_the_licences(data):
    for licence in ("Apache 2.0", "CC BY 4.0", "CC BY-SA 4.0", "MIT"):
        assert licence in data.DESCR
