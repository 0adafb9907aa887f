"""What a user relies on when turning images into embeddings."""

import io
import logging
import pickle
import tracemalloc
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from sklearn.base import clone
from sklearn.utils import check_array
from sklearn.utils.estimator_checks import parametrize_with_checks

from skclip_icm import CLIPFeaturizer, ICMTransformer
from skclip_icm._encoding.encoder import WeightsNotFoundError
from skclip_icm._images.inputs import ImageError
from skclip_icm.pairs import find_paired


@pytest.fixture
def demo():
    return CLIPFeaturizer("demo")


@pytest.fixture
def folder(tmp_path, photographs):
    paths = []
    for i, pixels in enumerate(photographs):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


class OnNumbers(CLIPFeaturizer):
    """Lets scikit-learn's checks, which feed tables of numbers, reach the featurizer.

    Each row of numbers is drawn as a small image; everything else is inherited.
    """

    def fit(self, X, y=None):
        return super().fit(self._draw(X))

    def transform(self, X):
        return super().transform(self._draw(X))

    def fit_transform(self, X, y=None):
        return super().fit_transform(self._draw(X))

    def _draw(self, X):
        if getattr(X, "ndim", 2) == 4:  # fit_transform passes on what it drew
            return X
        X = check_array(X)
        pixels = 255 / (1 + np.exp(-X.astype(float)))
        return np.tile(pixels.astype(np.uint8)[:, None, :, None], (1, 2, 2, 1))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags


NOT_FOR_IMAGES = {
    "check_n_features_in": "images have no number of features",
    "check_n_features_in_after_fitting": "images have no number of features",
}


@parametrize_with_checks(
    [OnNumbers("demo", batch_size=8)], expected_failed_checks=lambda _: NOT_FOR_IMAGES
)
def test_sklearn_contract(estimator, check):
    check(estimator)


def test_every_form_of_an_image_gives_the_same_embedding(demo, folder, photographs):
    Z = demo.transform(folder)
    assert Z.dtype == np.float32
    assert Z.shape == (6, 1280)
    assert type(Z) is np.ndarray
    assert_allclose(np.linalg.norm(Z, axis=1), 1, rtol=1e-5)
    forms = {
        "str": [str(path) for path in folder],
        "object array": np.array(folder, dtype=object),
        "bytes": [path.read_bytes() for path in folder],
        "PIL": [Image.open(path) for path in folder],
        "array": photographs,
        "list of arrays": list(photographs),
        "tensor": torch.from_numpy(photographs).permute(0, 3, 1, 2),
        "series": pd.Series([str(path) for path in folder]),
        "frame": pd.DataFrame({"image": [str(path) for path in folder]}),
        "polars": pl.Series([str(path) for path in folder]),
        "float": photographs / 255,
    }
    for form, X in forms.items():
        assert_allclose(demo.transform(X), Z, atol=1e-5, err_msg=form)


def test_same_embeddings_whatever_the_batches_threads_and_order(photographs, folder):
    Z = CLIPFeaturizer("demo", cache=_NoCache()).fit_transform(folder)
    order = [3, 1, 5, 0, 2, 4]
    for params in ({"batch_size": 1}, {"batch_size": 4, "n_jobs": 1}, {"n_jobs": 3}):
        other = CLIPFeaturizer("demo", cache=_NoCache(), **params)
        Z_other = other.fit_transform([folder[i] for i in order])
        assert_allclose(Z_other, Z[order], atol=1e-5)
        assert_allclose(Z_other.counterparts, Z.counterparts[order], atol=1e-5)


class _NoCache:
    def get_many(self, keys):
        return [None] * len(keys)

    def put_many(self, keys, rows):
        pass


def test_fit_transform_carries_counterparts_and_encodes_them_on_demand(
    demo, photographs, forward_rows
):
    Z = demo.fit_transform(photographs)
    assert_array_equal(Z, demo.transform(photographs))
    assert forward_rows() == 6
    assert Z[:2].counterparts.shape == (2, 1, 1280)
    assert forward_rows() == 8
    cosine = np.sum(np.asarray(Z)[:, None] * Z.counterparts, axis=-1)
    assert forward_rows() == 12
    assert 0 < cosine.min() < cosine.max() < 0.999


def test_repeated_images_are_encoded_once(demo, photographs, forward_rows):
    Z = demo.transform(photographs[[0, 1, 0, 0]])
    assert forward_rows() == 2
    assert_array_equal(Z[0], Z[3])


def test_several_interventions_and_draws(photographs, forward_rows):
    featurizer = CLIPFeaturizer(
        "demo", interventions=["invert", _rotate, "color_jitter"], n_interventions=2
    )
    Z = featurizer.intervene(photographs)
    assert Z.counterparts.shape == (6, 6, 1280)
    invert, rotate, jitter = Z.counterparts.reshape(6, 3, 2, -1).swapaxes(0, 1)
    assert_array_equal(invert[:, 0], invert[:, 1])  # nothing to draw
    assert np.abs(jitter[:, 0] - jitter[:, 1]).max() > 0.01
    turned = [_rotate(Image.fromarray(pixels)) for pixels in photographs]
    Z_turned = featurizer.transform(turned)
    cosine = np.sum(rotate[:, 0] * Z_turned, axis=1)
    assert cosine.min() > 0.9  # turning before or after the crop differs a little


def _rotate(image):
    return image.transpose(Image.Transpose.ROTATE_90)


def test_callable_sees_the_model_input(photographs):
    seen = []

    def remember(image):
        seen.append(image.size)
        return image

    Z = CLIPFeaturizer("demo", interventions=remember).intervene(photographs)
    assert_allclose(Z.counterparts[:, 0], np.asarray(Z), atol=1e-6)
    assert set(seen) == {(224, 224)}


def test_random_state_decides_the_counterparts(photographs):
    def counterparts(**params):
        return CLIPFeaturizer("demo", **params).intervene(photographs).counterparts

    assert_array_equal(counterparts(random_state=1), counterparts(random_state=1))
    assert np.abs(counterparts(random_state=1) - counterparts()).max() > 0.01
    fixed = np.random.RandomState
    assert_array_equal(
        counterparts(random_state=fixed(0)), counterparts(random_state=fixed(0))
    )


def test_interventions_given_to_intervene_replace_those_of_the_estimator(photographs):
    Z = CLIPFeaturizer("demo", interventions=None).fit_transform(photographs)
    assert find_paired(Z) is None
    with pytest.raises(ValueError, match="no intervention"):
        CLIPFeaturizer("demo", interventions=None).intervene(photographs)
    paired = CLIPFeaturizer("demo", interventions=None).intervene(photographs, "invert")
    assert paired.counterparts.shape == (6, 1, 1280)


def test_text_and_images_share_a_space(demo, photographs):
    T = demo.encode_text(["a photo of food.", "a photo of an animal."])
    assert T.shape == (2, demo.transform(photographs).shape[1])
    assert T.dtype == np.float32
    assert_allclose(np.linalg.norm(T, axis=1), 1, rtol=1e-5)


def test_normalize_off_keeps_the_length_the_model_gives(photographs):
    Z = CLIPFeaturizer("demo", normalize=False).transform(photographs)
    unit = CLIPFeaturizer("demo").transform(photographs)
    norms = np.linalg.norm(Z, axis=1, keepdims=True)
    assert np.abs(norms - 1).max() > 0.1
    assert_allclose(Z / norms, unit, atol=1e-6)


def test_pickle_and_clone_leave_the_model_out(demo, photographs, tmp_path):
    demo.fit(photographs)
    joblib.dump(demo, tmp_path / "demo.joblib")
    assert (tmp_path / "demo.joblib").stat().st_size < 2000
    loaded = joblib.load(tmp_path / "demo.joblib")
    assert_array_equal(loaded.transform(photographs), demo.transform(photographs))
    assert loaded._encoder() is clone(demo)._encoder() is demo._encoder()


def test_pandas_output_keeps_names_index_and_counterparts(demo, photographs, folder):
    images = pd.Series([str(path) for path in folder], index=list("abcdef"))
    demo.set_output(transform="pandas")
    frame = demo.fit_transform(images)
    assert list(frame.index) == list("abcdef")
    assert list(frame.columns) == list(demo.get_feature_names_out())
    assert frame.columns[0] == "clipfeaturizer0"
    icm = ICMTransformer(pairs="interventional").fit(frame.loc[["a", "c", "e"]])
    assert icm.n_pairs_seen_ == 3
    assert list(demo.transform(images).columns) == list(frame.columns)
    assert find_paired(demo.intervene(images)).counterparts.shape == (6, 1, 1280)


def test_polars_output(demo, photographs):
    frame = demo.set_output(transform="polars").fit_transform(photographs)
    assert isinstance(frame, pl.DataFrame)
    assert frame.shape == (6, 1280)


def test_verbose_shows_progress(photographs, capsys):
    CLIPFeaturizer("demo", verbose=True, cache=_NoCache()).transform(photographs)
    assert "6/6" in capsys.readouterr().err
    CLIPFeaturizer("demo", cache=_NoCache()).transform(photographs)
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""


def bad_files(tmp_path, good):
    truncated = tmp_path / "truncated.png"
    truncated.write_bytes(good.read_bytes()[:200])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not an image")
    Image.new("RGB", (1, 1)).save(tmp_path / "pixel.png")
    names = ["missing.png", "empty.jpg", "truncated.png", "text.jpg", "pixel.png", ""]
    return [tmp_path / name for name in names]


def test_an_image_that_cannot_be_read_names_its_row(demo, folder, tmp_path):
    for bad in bad_files(tmp_path, folder[0]):
        with pytest.raises(ImageError, match="row 2") as caught:
            demo.transform([*folder[:2], bad, folder[2]])
        assert caught.value.row == 2
        assert bad.name in str(caught.value)


@pytest.mark.parametrize("bad", [None, float("nan"), pd.NA])
def test_missing_values_name_their_row(demo, folder, bad):
    with pytest.raises(ImageError, match="row 1.*missing"):
        demo.transform([folder[0], bad])


def test_on_error_nan_leaves_the_other_rows_untouched(demo, folder, tmp_path, caplog):
    bad = bad_files(tmp_path, folder[0])
    X = [folder[0], *bad, folder[1], None, folder[2], bad[2]]
    lenient = CLIPFeaturizer("demo", on_error="nan")
    with caplog.at_level(logging.WARNING, logger="skclip_icm"):
        Z = lenient.fit_transform(X)
    failed = [1, 2, 3, 4, 5, 6, 8, 10]
    good = [0, 7, 9]
    assert lenient.failed_ == failed
    assert np.isnan(np.asarray(Z)[failed]).all()
    assert_array_equal(np.asarray(Z)[good], demo.transform(folder[:3]))
    assert np.isnan(Z.counterparts[failed]).all()
    assert np.isfinite(Z.counterparts[good]).all()
    assert "row 3" in caplog.text
    with pytest.raises(ValueError, match="NaN"):
        ICMTransformer().fit(Z)
    assert ICMTransformer().fit(Z[good]).n_pairs_seen_ == 3
    lenient.transform(folder)
    assert lenient.failed_ == []
    assert np.isnan(lenient.transform([bad[0]])).all()


def test_the_log_stays_short_when_many_images_are_bad(folder, caplog):
    lenient = CLIPFeaturizer("demo", on_error="nan")
    good = Path(folder[0]).read_bytes()
    with caplog.at_level(logging.WARNING, logger="skclip_icm"):
        lenient.transform([b"no image %02d" % i for i in range(50)] + [good])
    assert len(caplog.records) == 11
    assert "row 0: 11 bytes" in caplog.records[0].getMessage()
    assert "50 of 51 images have embeddings of NaN" in caplog.records[-1].getMessage()


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        (None, TypeError, "X"),
        ([], ValueError, "no images"),
        ("photo.jpg", TypeError, "list"),
        (np.zeros((3, 1280), np.float32), ValueError, "embeddings"),
        (np.full((2, 8, 8, 3), 1.5), ValueError, r"\[0, 1\]"),
    ],
)
def test_bad_containers(demo, X, error, message):
    with pytest.raises(error, match=message):
        demo.fit_transform(X)


def test_mixed_kinds_in_one_call(demo, folder, photographs):
    with pytest.raises(ImageError, match="row 1"):
        demo.transform([str(folder[0]), photographs[0]])


def test_finished_rows_survive_a_bad_one(demo, folder, tmp_path, forward_rows):
    one_by_one = CLIPFeaturizer("demo", batch_size=1, n_jobs=1)
    with pytest.raises(ImageError):
        one_by_one.transform([*folder, bad_files(tmp_path, folder[0])[2]])
    done = forward_rows()
    assert done == 6
    one_by_one.transform(folder)
    assert forward_rows() == done


def test_counterparts_of_a_file_that_changed_since_are_refused(tmp_path):
    path, other = (str(tmp_path / name) for name in ("a.png", "b.png"))
    for file, colour in ((path, "red"), (other, "blue")):
        Image.new("RGB", (32, 32), colour).save(file)
    clip = CLIPFeaturizer("demo", interventions="photometric")
    Z = clip.fit_transform([other, path])
    Image.new("RGB", (32, 32), "green").save(path)
    message = r"a\.png'.*not the one.*Embed all images again"
    with pytest.raises(ImageError, match=message):
        Z.counterparts  # noqa: B018
    Image.new("RGB", (32, 32), "red").save(path)  # as it was
    assert np.isfinite(Z.counterparts).all()


def test_jpeg_decoding_modes_are_close_and_kept_apart(tmp_path, forward_rows):
    """Only files that reduced decoding can change are encoded again."""
    files = write_images(tmp_path)
    exact = CLIPFeaturizer("demo").transform(files)
    assert forward_rows() == 4
    featurizer = CLIPFeaturizer("demo", jpeg_decoding="reduced")
    reduced = featurizer.transform(files)
    assert forward_rows() == 4 + 2
    assert_array_equal(reduced[2:], exact[2:])
    cosines = np.sum(exact * reduced, axis=1)
    assert 0.99 < cosines.min() and cosines[:2].max() < 1 - 1e-7
    assert_array_equal(CLIPFeaturizer("demo").transform(files), exact)
    assert_array_equal(featurizer.transform(files), reduced)
    content = [path.read_bytes() for path in files]
    assert_array_equal(featurizer.transform(content), reduced)
    assert forward_rows() == 4 + 2


def write_images(folder):
    """Two JPEG files that can be reduced; a small one and a PNG file that cannot."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8))
    files = [folder / name for name in ("a.jpg", "b.jpg", "small.jpg", "c.png")]
    sizes = [(1200, 900), (900, 1800), (800, 900), (1000, 1000)]
    for path, size in zip(files, sizes, strict=True):
        coarse.resize(size, Image.BICUBIC).save(path)
    return files


def test_embeddings_do_not_hold_more_than_the_result(photographs):
    images = np.repeat(photographs, 1000, axis=0)
    featurizer = CLIPFeaturizer("demo")
    featurizer.transform(images)
    tracemalloc.start()
    Z = featurizer.transform(images)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.3 * Z.nbytes


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"dtype": "int8"}, "dtype"),
        ({"on_error": "ignore"}, "on_error"),
        ({"jpeg_decoding": "fast"}, "jpeg_decoding"),
        ({"compile": "max"}, "compile"),
        ({"interventions": "blur"}, "gaussian_blur"),
        ({"interventions": []}, "empty"),
        ({"model_name": "ViT-B-61"}, "ViT-B-16"),
        ({"model_name": "ViT-B-32", "pretrained": "laion"}, "laion2b_s34b_b79k"),
        ({"device": "cuda:99"}, "cuda:99"),
    ],
)
def test_bad_parameters(photographs, params, message):
    params = {"model_name": "demo", **params}
    with pytest.raises(ValueError, match=message):
        CLIPFeaturizer(**params).fit_transform(photographs)


def test_missing_weights_file_is_named_beside_the_tags(photographs, tmp_path):
    message = "none.pt'.*no such file.*laion2b_s34b_b79k.*demo"
    with pytest.raises(WeightsNotFoundError, match=message):
        CLIPFeaturizer("ViT-B-32", str(tmp_path / "none.pt")).transform(photographs)


def test_nothing_is_read_from_bytes_that_are_no_image(demo):
    buffer = io.BytesIO()
    pickle.dump({"a": 1}, buffer)
    with pytest.raises(ImageError, match="row 0"):
        demo.transform([buffer.getvalue()])


@pytest.mark.parametrize(
    "later",
    [
        {"normalize": False},
        {"model_name": "nowhere"},
        {"interventions": "invert", "random_state": 7},
        {"dtype": "bfloat16", "on_error": "nan", "device": "cuda:7"},
    ],
)
def test_counterparts_are_made_by_the_parameters_of_then(photographs, later):
    featurizer = CLIPFeaturizer("demo")
    expected = featurizer.fit_transform(photographs).counterparts
    paired = featurizer.fit_transform(photographs)
    featurizer.set_params(**later)
    assert_array_equal(paired.counterparts, expected)
