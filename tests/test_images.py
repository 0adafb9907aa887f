"""Anything to an RGB image, or a clear error."""

import io
import itertools
import os
import pickle
import re
import struct
import subprocess
import sys
import warnings
import zlib
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from broken_images import png, png_chunk
from PIL import BmpImagePlugin, Image, ImageFile, TiffImagePlugin, WebPImagePlugin

from skclip_icm import CLIPFeaturizer
from skclip_icm._encoding.stores import _MemoryStore
from skclip_icm._images import decoding as images
from skclip_icm._images import deep, opening, telling
from skclip_icm._images.decoding import (
    ImageError,
    as_items,
    decode,
    digest,
    read_content,
)
from skclip_icm._images.heif import is_avif, is_heif


def picture(size=(40, 30), seed=0):
    """Return a smooth colour picture, so that lossy formats stay close."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def encoded(image, image_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def _refuse(*args):
    raise AssertionError("called")


def difference(a, b):
    return np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int))


class Dataset:
    """What is used of a `datasets.Dataset`: columns that decode when indexed."""

    def __init__(self, files, decode=True):
        self.files, self.fetched = files, []
        self.features = {"image": SimpleNamespace(decode=decode)}

    def __getitem__(self, name):
        return Column(self, name)

    def cast_column(self, name, feature):
        cast = Dataset(self.files, feature.decode)
        cast.fetched = self.fetched
        return cast


class Column(Sequence):
    def __init__(self, source, name):
        self.source, self.column_name = source, name

    def __len__(self):
        return len(self.source.files)

    def __getitem__(self, row):
        assert type(row) is int
        assert not self.source.features[self.column_name].decode, "decoded"
        self.source.fetched.append(row)
        return {"bytes": self.source.files[row], "path": None}


class TestAsItems:
    @pytest.mark.parametrize(
        "wrap",
        [
            list,
            tuple,
            lambda x: np.array(x, dtype=object),
            lambda x: np.array(x, dtype=object)[:, None],
            np.array,
            lambda x: np.array(x)[:, None],
            pd.Series,
            lambda x: pd.DataFrame({"path": x}, index=[7, 7]),
            pl.Series,
            lambda x: pl.DataFrame({"path": x}),
        ],
    )
    def test_containers_of_paths(self, wrap):
        assert list(as_items(wrap(["a.jpg", "b.jpg"]))) == ["a.jpg", "b.jpg"]

    def test_rows_of_bytes_and_path(self):
        """The form of image columns that Hugging Face writes to Parquet."""
        rows = [
            {"bytes": b"one", "path": "1.png"},
            {"bytes": None, "path": "~/2.png"},
            {"path": "3.png"},
            {"bytes": None, "path": None},
            {"bytes": pd.NA, "path": "5.png"},
        ]
        expected = [b"one", os.path.expanduser("~/2.png"), "3.png", None, "5.png"]
        table = pa.table({"image": rows[:2]})
        assert list(as_items(rows)) == expected
        assert list(as_items(pd.Series(rows))) == expected
        assert list(as_items(table.to_pandas())) == expected[:2]
        assert list(as_items(table["image"])) == expected[:2]
        assert list(as_items(pl.from_arrow(table))) == expected[:2]
        with pytest.raises(TypeError, match="Wrap one image in a list"):
            as_items(rows[0])

    def test_masked_entries_are_missing(self):
        items = as_items(np.ma.array(["a.png", "b.png"], mask=[False, True]))
        assert items[0] == "a.png"
        with pytest.raises(ImageError, match="row 1: .*the image is missing"):
            read_content(items[1], 1)

    def test_table_asks_for_its_column(self):
        with pytest.raises(TypeError, match=r"columns \['image', 'y'\].*X\['name'\]"):
            as_items(pa.table({"image": [b"a"], "y": [0]}))

    def test_column_of_a_dataset_is_fetched_row_by_row_and_not_decoded(self):
        files = [encoded(picture(seed=i), "PNG") for i in range(3)]
        column = Dataset(files)["image"]
        items = as_items(column)
        fetched = column.source.fetched
        assert len(items) == 3 and len(fetched) <= 1
        assert items[2] == files[2]
        assert fetched[-1] == 2 and len(fetched) <= 2

    @pytest.mark.parametrize(
        "kind",
        [
            {},  # a column of a column, which cannot be cast
            {"cast_column": _refuse, "format": {"type": "custom"}},
            {"cast_column": _refuse, "mode": "L"},
        ],
    )
    def test_columns_that_a_user_transforms_have_rows_as_they_come(self, kind):
        images = [picture(seed=i) for i in range(2)]
        features = {"image": SimpleNamespace(decode=True, mode=kind.pop("mode", None))}
        source = SimpleNamespace(features=features, files=images, **kind)

        class Inner(Column):
            def __getitem__(self, row):
                return self.source.files[row]

        assert list(as_items(Inner(source, "image"))) == images

    def test_paths_of_home_and_file_addresses(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        file = tmp_path / "a b.png"
        file.write_bytes(b"content")
        address = file.as_uri()
        for path in (
            "~/a b.png",
            Path("~/a b.png"),
            address,
            address.upper()[:4] + address[4:],
        ):
            [item] = as_items([path])
            assert read_content(item) == b"content"
        monkeypatch.chdir(tmp_path)
        (tmp_path / "file:a.png").write_bytes(b"a name like any other")
        [item] = as_items(["file:a.png"])
        assert read_content(item) == b"a name like any other"
        [item] = as_items(["file://elsewhere/a.png"])
        with pytest.raises(ImageError, match="Addresses are not fetched.* 'file:///'"):
            read_content(item)
        with pytest.raises(TypeError, match="X is the folder.*load_domain_folder"):
            as_items(tmp_path.as_uri())

    def test_files_in_memory(self):
        file = io.BytesIO(b"content")
        file.seek(3)
        [item] = as_items([file])
        assert read_content(item) == b"content"
        assert file.tell() == 3
        with pytest.raises(TypeError, match="a single bytes"):
            as_items(file)
        file.close()
        with pytest.raises(ImageError, match="row 4: a BytesIO: it is closed"):
            read_content(file, 4)

    def test_open_files_and_bytes_of_one_length_are_refused_with_what_to_pass(self):
        with open(__file__, "rb") as file, pytest.raises(TypeError, match=r"read\(\)"):
            as_items([file])
        with pytest.raises(ValueError, match="cuts zeros.* in a list"):
            as_items(np.array([b"one", b"three"]))

    def test_str_and_path_are_one_kind(self):
        assert len(as_items(["a.jpg", Path("b.jpg")])) == 2

    @pytest.mark.parametrize("channels", [1, 3, 4])
    def test_stacked_arrays_are_not_copied(self, channels):
        X = np.zeros((3, 8, 9, channels), dtype=np.uint8)
        items = as_items(X)
        assert np.shares_memory(read_content(items[1], 1), X)

    def test_tensors_stacked_and_listed(self):
        torch = pytest.importorskip("torch")
        X = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).reshape(2, 3, 4, 5)
        for items in (as_items(X), as_items(list(X))):
            pixels = read_content(items[1], 1)
            np.testing.assert_array_equal(pixels, X[1].permute(1, 2, 0).numpy())

    def test_float_tensors_and_wrong_tensors(self):
        torch = pytest.importorskip("torch")
        half = torch.full((2, 1, 4, 4), 0.2, dtype=torch.bfloat16)
        assert read_content(as_items(half)[0])[0, 0, 0] == 51
        for shape, message in [
            ((3, 4, 4), "wrap it in a list"),
            ((5, 512), "embeddings or features"),
            ((2, 8, 9, 3), r"permute\(0, 3, 1, 2\)"),
        ]:
            with pytest.raises(ValueError, match=message):
                as_items(torch.zeros(shape, dtype=torch.uint8))
        with pytest.raises(ImageError, match=r"row 1: .*expected \(3, H, W\)"):
            read_content(torch.zeros(8, 9, 3, dtype=torch.uint8), 1)

    def test_tensors_without_plain_values_are_errors_of_their_row(self):
        torch = pytest.importorskip("torch")
        tensor = torch.full((3, 4, 4), 0.2)
        for other in (tensor.to("meta"), tensor.to_sparse()):
            with pytest.raises(ImageError, match="row 1: .* tensor .*no plain values"):
                read_content(other, 1)
        negative = torch.complex(tensor, -tensor).conj().imag  # a view with a sign
        assert read_content(negative)[0, 0, 0] == 51
        with pytest.raises(ImageError, match="row 1: complex64.*expected dtype uint8"):
            read_content(torch.complex(tensor, tensor).conj(), 1)

    @pytest.mark.parametrize(
        "X", ["a.jpg", Path("a.jpg"), b"bytes", picture(), None], ids=type
    )
    def test_single_image(self, X):
        with pytest.raises(TypeError, match="Wrap one image in a list"):
            as_items(X)

    @pytest.mark.parametrize(
        "X", [[], (), np.empty((0, 8, 8, 3), np.uint8), pd.Series([], dtype=object)]
    )
    def test_empty(self, X):
        with pytest.raises(ValueError, match="holds no images"):
            as_items(X)

    def test_mixed_kinds_name_the_first_row_that_differs(self):
        with pytest.raises(ImageError, match="row 1 is a path, row 3 is a PIL image"):
            as_items([None, "a.jpg", "b.jpg", picture(), picture()])
        with pytest.raises(ImageError, match="row 1 is bytes") as caught:
            as_items(["a.jpg", b"bytes"])
        assert caught.value.row == 1

    def test_a_type_of_the_name_of_a_kind_is_none(self):
        with pytest.raises(TypeError, match=r"holds an array\.array in row 0"):
            as_items([array("B", b"bytes")])

    @pytest.mark.parametrize("missing", [None, np.nan, pd.NA, np.float32("nan")])
    def test_missing_rows_are_kept_for_later(self, missing):
        items = as_items([missing, "a.jpg"])
        assert len(items) == 2
        with pytest.raises(ImageError, match="row 0: .*missing"):
            read_content(items[0], 0)

    @pytest.mark.parametrize(
        ("X", "message"),
        [
            (np.zeros((5, 512), np.float32), "embeddings or features"),
            (np.zeros((30, 40, 3), np.uint8), r"wrap it in a list"),
            (np.zeros((7, 30, 40), np.uint8), r"X\[..., None\]"),
            (np.zeros((7, 3, 30, 40), np.uint8), "channels last"),
            (np.zeros(7), "expected"),
            (np.array([["a.jpg", "b.jpg"]]), "one column"),
            (pd.DataFrame({"a": ["x"], "b": ["y"]}), "2 columns"),
        ],
    )
    def test_wrong_shape(self, X, message):
        with pytest.raises(ValueError, match=message):
            as_items(X)

    @pytest.mark.parametrize("X", [{"a": 1}, {"a"}, iter(["a"]), 3, [1, 2], [["a"]]])
    def test_wrong_type(self, X):
        with pytest.raises(TypeError, match="expected"):
            as_items(X)


class TestReadContent:
    @pytest.mark.parametrize("as_type", [str, Path])
    def test_file(self, tmp_path, as_type):
        path = tmp_path / "a.bin"
        path.write_bytes(b"content")
        assert read_content(as_type(path)) == b"content"

    def test_bytes(self):
        assert read_content(memoryview(b"content")) == b"content"
        assert read_content(bytearray(b"content")) == b"content"
        with pytest.raises(ImageError, match="row 1: bytes: they are empty"):
            read_content(b"", 1)
        with pytest.raises(ImageError, match="row 1: .* type int: not an image"):
            read_content(3, 1)

    def test_no_such_file_says_where_it_looked(self):
        with pytest.raises(ImageError, match="no such file.*working directory") as e:
            read_content("nowhere.jpg", 4)
        assert e.value.row == 4
        assert "row 4" in str(e.value) and "nowhere.jpg" in str(e.value)

    def test_the_working_directory_may_be_gone(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        tmp_path.rmdir()
        with pytest.raises(ImageError, match="no such file.*directory is gone"):
            read_content("nowhere.jpg", 0)

    def test_fifo_is_refused_without_waiting(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.jpg")
        with pytest.raises(ImageError, match="not a regular file"):
            read_content(tmp_path / "pipe.jpg", 0)

    def test_other_unreadable_paths(self, tmp_path):
        (tmp_path / "empty.jpg").touch()
        (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
        for path, message in [
            (tmp_path, "a directory"),
            (tmp_path / "empty.jpg", "empty"),
            (tmp_path / "loop.jpg", "loop of symbolic links"),
            ("/dev/zero", "not a regular file"),
            ("a\0b.jpg", "null byte"),
            ("x" * 100_000, "name too long"),
            ("", "no such file"),
            ("https://example.org/a.jpg", "not fetched"),
        ]:
            with pytest.raises(ImageError, match=message) as caught:
                read_content(path, 0)
            assert len(str(caught.value)) < 1000

    def test_file_above_the_bound(self, tmp_path):
        path = tmp_path / "huge.jpg"
        with open(path, "wb") as file:
            file.truncate(images.MAX_BYTES + 1)  # sparse
        with pytest.raises(ImageError, match="at most"):
            read_content(path)

    def test_floats_in_the_unit_interval(self):
        pixels = read_content(np.array([[0.0, 0.5], [1.0, 0.2]], dtype=np.float32))
        np.testing.assert_array_equal(pixels, [[0, 128], [255, 51]])

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_pixels_that_are_no_numbers(self, value):
        with pytest.raises(ImageError, match="row 2: .*NaN or infinity. Fill such"):
            read_content(np.full((4, 4, 3), value), 2)

    @pytest.mark.parametrize("value", [-0.1, 1.5, 255.0])
    def test_floats_elsewhere(self, value):
        with pytest.raises(ImageError, match=r"row 2: .*\[0, 1\]"):
            read_content(np.full((4, 4, 3), value), 2)

    def test_floats_just_outside_are_what_they_round_to(self):
        """Resizing, and turning normalisation back, leave such values."""
        pixels = read_content(np.array([[-1e-17, 1.0000001]]))
        np.testing.assert_array_equal(pixels, [[0, 255]])

    def test_floats_above_are_told_to_the_last_digit(self):
        with pytest.raises(ImageError, match=r"values from 0\.2 to 1\.0021, a float"):
            read_content(np.array([[0.2, 1.0021]], np.float32))

    def test_masked_pixels_are_refused(self):
        pixels = np.arange(24, dtype=np.uint8).reshape(4, 6)
        np.testing.assert_array_equal(read_content(np.ma.array(pixels)), pixels)
        masked = np.ma.masked_greater(np.stack([pixels] * 3, axis=-1), 20)
        for image in masked, masked / 255:
            with pytest.raises(ImageError, match=r"row 3: .*masked.*array\.filled"):
                read_content(image, 3)

    @pytest.mark.parametrize("dtype", ["int64", "uint16", "bool", "complex64"])
    def test_wrong_dtype(self, dtype):
        with pytest.raises(ImageError, match=f"{dtype}.*expected dtype uint8"):
            read_content(np.zeros((4, 4, 3), dtype), 0)

    def test_wrong_shape(self):
        with pytest.raises(ImageError, match=r"\(4, 4, 2\)"):
            read_content(np.zeros((4, 4, 2), np.uint8), 0)


class TestDecode:
    @pytest.mark.parametrize(
        ("image_format", "tolerance"),
        [
            ("PNG", 0),
            ("BMP", 0),
            ("TIFF", 0),
            ("PPM", 0),
            ("JPEG", 30),
            ("MPO", 30),
            ("WEBP", 30),
            ("JPEG2000", 30),
            ("AVIF", 30),
            ("GIF", 40),
            ("ICO", 0),
        ],
    )
    def test_formats(self, image_format, tolerance):
        Image.init()
        if image_format not in Image.SAVE:
            pytest.skip(f"this Pillow does not write {image_format}")
        image = picture((48, 32))
        size = {"sizes": [(48, 32)]} if image_format == "ICO" else {}
        decoded = decode(encoded(image, image_format, **size))
        assert decoded.mode == "RGB" and decoded.size == (48, 32)
        assert difference(decoded, image).max() <= tolerance

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
    def test_exif_orientation(self, orientation, image_format):
        # What a camera stores so that the upright picture is recovered.
        upright = picture()
        inverse = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
        method = inverse.get(orientation, images._TRANSPOSE.get(orientation))
        stored = upright.transpose(method) if method is not None else upright
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = encoded(stored, image_format, exif=exif)
        for source in (content, Image.open(io.BytesIO(content))):
            decoded = decode(source)
            assert decoded.size == upright.size
            assert difference(decoded, upright).mean() < 6
            # Nothing is left that would turn it once more.
            assert decode(decoded).size == upright.size

    @pytest.mark.filterwarnings("ignore:Corrupt EXIF")
    def test_damaged_exif_does_not_spoil_the_picture(self):
        content = encoded(picture(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
        assert decode(content).size == (40, 30)

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "La", "RGBa"])
    def test_transparent_modes_are_laid_on_white(self, mode):
        image = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
        image.paste((10, 10, 10, 255), (0, 0, 2, 4))
        source = image.convert("LA").convert(mode) if "L" in mode.upper() else image
        if mode in ("PA", "RGBa"):
            source = image.convert(mode)
        if mode == "PA" and source.getchannel("A").getextrema() == (255, 255):
            pytest.skip("Pillow < 12 drops transparency when it converts to PA")
        decoded = decode(source)
        assert decoded.getpixel((3, 0)) == (255, 255, 255)
        assert max(decoded.getpixel((0, 0))) <= 20

    def test_half_transparent(self):
        image = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
        assert decode(encoded(image, "PNG")).getpixel((0, 0)) == (127, 127, 127)

    @pytest.mark.parametrize(
        ("mode", "colour"), [("P", 3), ("RGB", (1, 2, 3)), ("L", 9), ("1", 0)]
    )
    def test_transparent_colour_key(self, mode, colour):
        image = Image.new(mode, (4, 4), colour)
        if mode == "P":
            image.putpalette(range(12))
        content = encoded(image, "PNG", transparency=colour)
        assert decode(content).getpixel((0, 0)) == (255, 255, 255)

    def test_palette_with_an_alpha_table(self):
        image = Image.new("P", (4, 4), 1)
        image.putpalette([0, 0, 0, 50, 100, 150])
        content = encoded(image, "PNG", transparency=bytes([0, 255]))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert decode(content).getpixel((0, 0)) == (50, 100, 150)

    @pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
    def test_other_modes(self, mode):
        source = picture().convert(mode)
        np.testing.assert_array_equal(decode(source), source.convert("RGB"))

    def test_lab(self):
        image = Image.new("LAB", (4, 4), (255, 128, 128))  # lightness 100, no colour
        assert min(decode(image).getpixel((0, 0))) >= 250

    def test_cmyk_jpeg(self):
        image = picture()
        decoded = decode(encoded(image.convert("CMYK"), "JPEG", quality=95))
        assert difference(decoded, image).mean() < 6

    @pytest.mark.parametrize(
        ("image_format", "dtype"),
        [("PNG", "uint16"), ("TIFF", "uint16"), ("TIFF", "int32")],
    )
    def test_16_bit(self, image_format, dtype):
        values = np.array([[0, 257, 32896], [65535, 128, 129]], dtype=dtype)
        red = np.asarray(decode(encoded(Image.fromarray(values), image_format)))[..., 0]
        np.testing.assert_array_equal(red, [[0, 1, 128], [255, 0, 1]])

    def test_float_image(self):
        image = Image.fromarray(np.full((4, 4), 0.2, dtype=np.float32))
        assert decode(encoded(image, "TIFF")).getpixel((0, 0)) == (51, 51, 51)
        with pytest.raises(ImageError, match=r"\[0, 1\]"):
            decode(Image.fromarray(np.full((4, 4), 9.0, dtype=np.float32)), 0)

    def test_32_bit_out_of_range(self):
        with pytest.raises(ImageError, match="0 to 65535"):
            decode(Image.fromarray(np.full((4, 4), 70_000, dtype=np.int32)), 0)

    @pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "TIFF"])
    def test_first_frame(self, image_format):
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
        content = encoded(
            frames[0], image_format, save_all=True, append_images=[frames[1]]
        )
        red, _, blue = decode(content).getpixel((4, 4))
        assert red > 240 and blue < 15

    @pytest.mark.parametrize("shape", [(6, 7), (6, 7, 1), (6, 7, 3), (6, 7, 4)])
    def test_arrays(self, shape):
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        if shape[-1] == 4:
            pixels[..., 3] = 255
        before = pixels.copy()
        decoded = np.array(decode(pixels))
        expected = np.broadcast_to(np.atleast_3d(pixels)[..., :3], (6, 7, 3))
        np.testing.assert_array_equal(decoded, expected)
        np.testing.assert_array_equal(decode(pixels[::-1]), expected[::-1])
        np.testing.assert_array_equal(pixels, before)

    @pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
    def test_one_pixel(self, size):
        image = Image.new("RGB", size)
        for content in (image, encoded(image, "PNG"), np.asarray(image)):
            with pytest.raises(ImageError, match="row 5: .*1-pixel image"):
                decode(content, 5)

    def test_empty_arrays(self):
        with pytest.raises(ImageError, match="1-pixel image"):
            decode(np.empty((0, 4, 3), np.uint8), 0)

    @pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
    def test_truncated(self, image_format, share):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        content = encoded(Image.fromarray(noise), image_format)
        with pytest.raises(ImageError, match="row 1: 'a.jpg': "):
            decode(content[: int(share * len(content))], 1, "a.jpg")

    @pytest.mark.parametrize(
        "content", [b"not an image", b"PK\3\4", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"%PDF-"]
    )
    def test_other_files(self, content):
        with pytest.raises(ImageError, match="Expected one of JPEG, PNG"):
            decode(content + bytes(200), 0, "a.jpg")

    def test_a_pillow_without_some_format(self, monkeypatch):
        """AVIF came with Pillow 11.3, and builds may lack a library."""
        content = encoded(picture(), "PNG")
        import_module = opening.importlib.import_module

        def without_avif(name):
            if name == "PIL.AvifImagePlugin":
                raise ImportError(name)
            return import_module(name)

        opening._openers.cache_clear()
        monkeypatch.setattr(opening.importlib, "import_module", without_avif)
        monkeypatch.setattr(WebPImagePlugin, "SUPPORTED", False)
        try:
            assert decode(content).size == (40, 30)
            with pytest.raises(ImageError, match="WEBP .*not installed"):
                decode(b"RIFF    WEBPVP8 ")
        finally:
            opening._openers.cache_clear()

    def test_what_others_register_with_pillow_is_not_asked(self, monkeypatch):
        """Nor missed: the registry is one for the process, and embeddings are kept."""
        contents = [encoded(picture(), name) for name in ("JPEG", "PNG", "GIF")]
        Image.init()
        expected = [decode(content) for content in contents]
        other = {"PNG": (_refuse, lambda prefix: True)}  # and no JPEG at all
        monkeypatch.setattr(Image, "OPEN", other)
        opening._openers.cache_clear()
        assert [decode(content) for content in contents] == expected

    def test_pixel_bound_is_checked_before_decoding(self):
        header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
        content = bytearray(encoded(picture(), "PNG"))
        content[16:29] = header
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ImageError, match="60000 x 60000 pixels, at most"):
                decode(bytes(content), 0)

    @pytest.mark.parametrize("kind", ["png", "bmp"])
    @pytest.mark.parametrize("limit", [None, Image.MAX_IMAGE_PIXELS])
    def test_icon_of_another_size_than_its_directory_says(
        self, kind, limit, monkeypatch
    ):
        """Pillow decodes an icon when it opens it."""
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        options = {"sizes": [(40, 30)], "bitmap_format": kind}
        content = bytearray(encoded(picture(), "ICO", **options))
        start = struct.unpack_from("<I", content, 18)[0]
        if kind == "png":
            content[start + 16 : start + 24] = struct.pack(">II", 60_000, 60_000)
            crc = zlib.crc32(content[start + 12 : start + 29])
            content[start + 29 : start + 33] = struct.pack(">I", crc)
        else:  # of twice the height, for the mask
            content[start + 4 : start + 12] = struct.pack("<ii", 60_000, 120_000)
        monkeypatch.setattr(ImageFile.ImageFile, "load", _refuse)
        with pytest.raises(ImageError, match="row 3: .*60000 x 60000 pixels, at most"):
            decode(bytes(content), 3)

    def test_gif_frame_beyond_its_canvas(self, monkeypatch):
        """Pillow allocates what a frame will leave behind when it opens a file."""
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        frames = [Image.new("P", (8, 8), colour) for colour in (0, 1)]
        options = {"save_all": True, "append_images": frames[1:], "disposal": 2}
        content = encoded(frames[0], "GIF", **options)
        frame = struct.pack("<BHHHH", ord(","), 0, 0, 8, 8)
        assert frame in content
        huge = struct.pack("<BHHHH", ord(","), 0, 0, 60_000, 60_000)
        monkeypatch.setattr(Image.core, "fill", _refuse)
        with pytest.raises(ImageError, match="row 3: .*60000 x 60000 pixels, at most"):
            decode(content.replace(frame, huge, 1), 3)

    @pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif"}])
    def test_webp_canvas(self, options, monkeypatch):
        """All that a file of each kind says of its size is read as libwebp reads it."""
        monkeypatch.setattr(opening, "MAX_PIXELS", 2000)
        monkeypatch.setattr(opening, "WebPImageFile", _refuse)
        with pytest.raises(ImageError, match="50 x 41 pixels, at most 2000"):
            decode(encoded(picture((50, 41)), "WEBP", **options))
        with pytest.raises(ImageError, match="called"):
            decode(encoded(picture((50, 40)), "WEBP", **options))

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "1"])
    @pytest.mark.parametrize("kind", ["png", "bmp"])
    def test_icon_of_several_pictures_gives_the_largest(self, mode, kind):
        image = picture((64, 32)).convert(mode)
        options = {"sizes": [(16, 16), (64, 32), (32, 32)], "bitmap_format": kind}
        decoded = decode(encoded(image, "ICO", **options))
        np.testing.assert_array_equal(decoded, image.convert("RGB"))

    def test_palette_with_an_alpha_table_in_an_icon(self):
        image = Image.new("P", (4, 4), 1)
        image.putpalette([0, 0, 0, 50, 100, 150])
        content = encoded(image, "PNG", transparency=bytes([0, 0]))
        header = struct.pack("<HHH4BHHII", 0, 1, 1, 4, 4, 0, 0, 1, 8, len(content), 22)
        assert decode(header + content).getpixel((0, 0)) == (255, 255, 255)

    @pytest.mark.parametrize("image_format", images.FORMATS)
    def test_pillow_limit_is_ours_not_the_users(self, image_format, monkeypatch):
        options = {}
        if image_format == "AVIF":
            pytest.importorskip("PIL.AvifImagePlugin")
        elif image_format == "ICO":
            options = {"sizes": [(40, 30)], "bitmap_format": "bmp"}
        elif image_format in ("GIF", "MPO", "TIFF", "WEBP"):
            options = {"save_all": True, "append_images": [picture().rotate(180)]}
        content = encoded(picture(), image_format, **options)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert decode(content).size == (40, 30)
        assert Image.MAX_IMAGE_PIXELS == 100

    @pytest.mark.parametrize("mode", ["RGB", "P", "RGBA", "L"])
    def test_pil_images_are_left_alone(self, mode):
        image = picture().convert(mode)
        image.info["comment"] = b"kept"
        before, info = image.copy(), dict(image.info)
        decoded = decode(image)
        decoded.paste((1, 2, 3), (0, 0, 40, 30))
        assert image == before and image.info == info

    def test_closed_pil_image(self, tmp_path):
        picture().save(tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as image:
            pass
        with pytest.raises(ImageError, match="row 0"):
            decode(image, 0)

    def test_same_bytes_from_many_threads(self, tmp_path):
        picture((300, 200)).save(tmp_path / "a.png")
        lazy = Image.open(tmp_path / "a.png")
        content = encoded(picture((300, 200)), "JPEG")
        work = [lazy, content] * 20
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda c: decode(c).tobytes(), work))
        assert len(set(results[::2])) == 1 and len(set(results[1::2])) == 1


LITTLE_MEMORY = """
import os, resource, sys
from skclip_icm._images.decoding import ImageError, decode, read_content
import numpy as np

paths = sys.argv[1:]
small, contents = read_content(paths[0]), [read_content(path) for path in paths[1:]]
decode(small)  # so that all libraries are loaded
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
for more in (5, 30, 60, 200):  # MiB
    resource.setrlimit(resource.RLIMIT_AS, (used + more * 2**20, -1))
    for path, content in zip(paths[1:], contents):
        try:
            decode(content, 3, path)
        except MemoryError as error:
            assert str(error).startswith(f"row 3: {path!r}: there is not enough")
            print(more, path, "MemoryError")
        else:
            print(more, path, "decoded")
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_a_good_image_is_not_called_damaged_where_memory_is_short(tmp_path):
    """What the libraries say of it is mostly that the file is broken."""
    picture().save(tmp_path / "small.webp")
    paths = [tmp_path / "small.webp"]
    options = {"jpg": {"progressive": True}, "tif": {"compression": "tiff_lzw"}}
    suffixes = ["jpg", "png", "webp", "gif", "bmp", "tif", "jp2", "ppm"]
    for suffix in suffixes + ["avif"] * (".avif" in Image.registered_extensions()):
        paths.append(tmp_path / f"large.{suffix}")
        picture((3000, 3000)).save(paths[-1], **options.get(suffix, {}))
    run = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY, *map(str, paths)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    outcomes = [tuple(line.split()[::2]) for line in run.stdout.splitlines()]
    # The pixels of each are 26 MiB.
    assert outcomes.count(("5", "MemoryError")) == len(paths) - 1
    assert outcomes.count(("200", "decoded")) >= 8


class TestReducedDecoding:
    @pytest.mark.parametrize(
        ("size", "expected"),
        [
            ((800, 600), (200, 150)),  # 600 / 4 >= 2 * 64
            ((2000, 1500), (250, 188)),
            ((512, 512), (128, 128)),
            ((255, 900), (255, 900)),
            ((200, 150), (200, 150)),
        ],
    )
    def test_stays_at_twice_the_target(self, size, expected):
        image = picture(size)
        content = encoded(image, "JPEG", quality=95)
        decoded = decode(content, target=(64, 64))
        assert decoded.size == expected
        exact = decode(content).resize((64, 64), Image.Resampling.BICUBIC)
        reduced = decoded.resize((64, 64), Image.Resampling.BICUBIC)
        assert difference(exact, reduced).mean() < 1.5

    def test_target_is_height_and_width_of_the_upright_image(self):
        exif = Image.Exif()
        exif[0x0112] = 6  # stored 800 wide and 200 high, shown 200 wide and 800 high
        content = encoded(picture((800, 200)), "JPEG", exif=exif)
        assert decode(content, target=(200, 50)).size == (100, 400)
        assert decode(content, target=(50, 200)).size == (200, 800)

    def test_only_jpeg(self):
        content = encoded(picture((800, 600)), "PNG")
        assert decode(content, target=(32, 32)).size == (800, 600)


class TestDigest:
    def test_files_by_bytes(self):
        content = encoded(picture(), "PNG")
        assert digest(content) == digest(bytes(content))
        assert digest(content) != digest(content + b"\0")
        assert len(digest(content)) == 32

    def test_pixels_and_shape_count(self):
        pixels = np.zeros((4, 6, 3), dtype=np.uint8)
        other = pixels.copy()
        other[3, 5, 2] = 1
        contents = [pixels, other, pixels.reshape(6, 4, 3), pixels[..., 0]]
        assert len({digest(content) for content in contents}) == 4
        assert digest(np.asfortranarray(pixels)) == digest(pixels)

    def test_transparency_and_orientation_count(self):
        opaque = Image.new("P", (4, 4), 0)
        keyed = opaque.copy()
        keyed.info["transparency"] = 0
        assert digest(opaque) != digest(keyed)
        turned = picture()
        turned.getexif()[0x0112] = 3
        assert digest(turned) != digest(picture())

    def test_broken_pil_image(self):
        content = encoded(picture((200, 200)), "PNG")
        lazy = Image.open(io.BytesIO(content[: len(content) // 2]))
        with pytest.raises(ImageError) as caught:
            digest(lazy, 3)
        assert caught.value.row == 3


class TestHeif:
    """Needs the extra "heif"."""

    @staticmethod
    def photograph(image, **options):
        pillow_heif = pytest.importorskip("pillow_heif")
        buffer = io.BytesIO()
        pillow_heif.from_pillow(image).save(buffer, quality=95, **options)
        return buffer.getvalue()

    def test_it_is_decoded_and_pillow_does_not_learn_of_it(self):
        image = picture((64, 48))
        content = self.photograph(image)
        assert is_heif(content) and not is_avif(content)
        decoded = decode(content)
        assert decoded.mode == "RGB" and decoded.size == (64, 48)
        assert difference(decoded, image).max() <= 40
        Image.init()
        assert "HEIF" not in Image.OPEN

    def test_orientation_is_applied_once(self):
        exif = Image.Exif()
        exif[0x0112] = 6
        image = picture((64, 48))
        decoded = decode(self.photograph(image, exif=exif.tobytes()))
        upright = image.transpose(Image.Transpose.ROTATE_270)
        assert difference(decoded, upright).max() <= 40

    def test_truncated_is_an_error(self):
        content = self.photograph(picture((64, 48)))
        with pytest.raises(ImageError, match="row 2: .*cannot be decoded"):
            decode(content[: len(content) // 2], 2)


def ftyp(*brands):
    box = b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])
    return (4 + len(box)).to_bytes(4) + box + bytes(32)


def test_kinds_of_iso_files_are_told_apart():
    assert is_heif(ftyp(b"heic", b"mif1", b"heic"))
    assert is_heif(ftyp(b"mif1", b"heic"))
    for content in (ftyp(b"mif1", b"avif"), ftyp(b"isom", b"mp42"), b"", b"abc"):
        assert not is_heif(content)
    assert is_avif(ftyp(b"avif", b"mif1"))


def test_heif_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"row 3: 'a.heic': .*skclip-icm\[heif\]"):
        decode(ftyp(b"heic"), 3, "a.heic")


@pytest.mark.parametrize(
    ("high", "top"), [(200, 255), (255, 255), (256, 4095), (4095, 4095)]
)
def test_dark_16_bit_images_are_told_with_their_scale(high, top, caplog, monkeypatch):
    image = Image.new("I;16", (4, 4), 1)
    image.putpixel((0, 0), high)
    monkeypatch.setattr(deep, "_n_dark", itertools.count())
    with caplog.at_level("WARNING", logger="skclip_icm"):
        decode(image, 3)
        for _ in range(99):
            decode(image)
    first = caplog.messages[0]
    assert re.search(rf"row 3: .*no value above {top}.* / {top}\.", first)
    assert len(caplog.messages) == 10  # of a hundred


@pytest.mark.parametrize("tag", [{254: 1}, {50706: b"\1\4\0\0"}])
def test_raw_files_of_cameras_are_not_taken_for_their_previews(tag):
    assert decode(encoded(picture(), "TIFF")).mode == "RGB"
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for key, value in tag.items():
        info[key] = value
    content = encoded(picture(), "TIFF", tiffinfo=info)
    with pytest.raises(ImageError, match=r"row 3: .*a raw file of a camera.*convert"):
        decode(content, 3, "a.dng")


@pytest.mark.parametrize("high", [0, 255, 4095, 4096, 65535])
def test_dark_colours_of_16_bits_are_told(high, caplog, monkeypatch):
    """Of several channels, Pillow reads 8 of the 16 bits."""
    values = np.full((2, 2, 3), high, ">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    content = png(2, 2, bits=16, colour=2, data=zlib.compress(rows))
    monkeypatch.setattr(deep, "_n_dark", itertools.count())
    for image in content, Image.open(io.BytesIO(content)):
        caplog.clear()
        decode(image, 3)
        assert ["row 3" in text for text in caplog.messages] == [True] * (high < 4096)


@pytest.mark.parametrize("high", [0, 4096, 65535])
def test_other_16_bit_images_are_not_told(high, caplog):
    decode(Image.new("I;16", (4, 4), high))
    assert not caplog.messages


@pytest.mark.parametrize(("high", "top"), [(255, 255), (256, 4095), (4095, 4095)])
def test_numbers_without_a_white_are_refused(high, top):
    """Pillow makes mode I of arrays of int, of which nobody knows the scale."""
    image = Image.fromarray(np.array([[0, 1], [1, high]], np.int32))
    with pytest.raises(ImageError, match=rf"row 3: .*no value above {top}.* / {top};"):
        decode(image, 3)
    scaled = np.asarray(decode(np.asarray(image) / top))
    assert scaled[1, 1].tolist() == [round(255 * high / top)] * 3
    assert np.asarray(decode(Image.new("I", (2, 2), 0))).max() == 0


def transparent_png(values, key, bits=None):
    """A PNG file, 8 or 16 bits by the dtype, in which one colour is transparent."""
    bits, colour = bits or 8 * values.itemsize, 2 * (values.ndim == 3)
    rows = b"".join(
        b"\0" + row.astype(f">u{values.itemsize}").tobytes() for row in values
    )
    data, extra = zlib.compress(rows), png_chunk(b"tRNS", key)
    return png(2, 2, bits=bits, colour=colour, data=data, extra=extra)


def tiff(values, photometric, order="<", bits=None):
    """A TIFF file of one channel, whose zero is white (0) or black (1)."""
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    if bits == 12:  # two values in three bytes, and each row begins with a byte
        data = b"".join(int(f"{a:03x}{b:03x}", 16).to_bytes(3) for a, b in values)
    tags = {256: 2, 257: 2, 258: bits or 8 * values.itemsize, 259: 1, 262: photometric}
    tags |= {273: 10 + 12 * 10 + 4, 277: 1, 278: 2, 279: len(data), 339: kind}
    entries = b"".join(
        struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items()
    )
    head = b"II" if order == "<" else b"MM"
    start = struct.pack(f"{order}HIH", 42, 8, len(tags))
    return head + start + entries + bytes(4) + data


DEEP = np.array([[0, 65535], [25700, 51400]], np.uint16)  # 257 times those of 8 bits


@pytest.mark.parametrize("key", [0x6464, 0x6465])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_value_of_16_bits_counts_as_one_of_8_bits(channels, key):
    shallow = np.array([[0, 255], [100, 200]], np.uint8)
    files = []
    for values, value in [(shallow, 100), (DEEP, key)]:
        colours = values if channels == 1 else np.stack([values] * 3, axis=2)
        files.append(transparent_png(colours, struct.pack(">H", value) * channels))
    expected, found = (np.asarray(decode(file)) for file in files)
    assert expected[1, 0].tolist() == [255] * 3
    # A grey is compared in 16 bits; of colours, Pillow keeps 8.
    if channels == 1 and key != 25700:
        expected = np.asarray(decode(shallow))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(decode(Image.open(io.BytesIO(files[1]))), expected)


def test_a_transparent_colour_of_16_bits_may_be_near_black():
    """Not that of 8 bits which has the same number: 5 of 65,535 is black."""
    values = np.array([[5, 5 * 257], [25700, 51400]], np.uint16)
    colours = np.stack([values] * 3, axis=2)
    content = transparent_png(colours, struct.pack(">HHH", 5, 5, 5))
    lazy = Image.open(io.BytesIO(content))
    for image in (decode(content), decode(lazy)):
        assert np.asarray(image)[:, :, 0].tolist() == [[255, 5], [100, 200]]
    assert lazy.info["transparency"] == (5, 5, 5), "left as it was"


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("key", [0, 1])
def test_a_transparent_grey_of_few_bits_counts_as_one_of_8_bits(bits, key):
    """Pillow widens the pixels, and not the key."""
    packed = np.array([[1 << 8 - 2 * bits]] * 2, np.uint8)  # 0, then 1
    values = [0, 255 // (2**bits - 1)]
    content = transparent_png(packed, struct.pack(">H", key), bits)
    values[key] = 255
    assert np.asarray(decode(content))[:, :, 0].tolist() == [values] * 2


@pytest.mark.parametrize("dtype", [np.int8, np.int16])
@pytest.mark.parametrize("opened", [bytes, lambda b: Image.open(io.BytesIO(b))])
def test_signed_numbers_are_refused(dtype, opened):
    """Of which Pillow would read -1 as white."""
    content = tiff(np.array([[-1, 5], [50, 100]], dtype), 1)
    with pytest.raises(ImageError, match="row 3: .*signed numbers of .* bits: nothing"):
        decode(opened(content), 3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L"])
@pytest.mark.parametrize("no_jp2", [False, True])
def test_deep_colours_of_jpeg_2000_are_refused(mode, no_jp2):
    """Pillow rounds 65535 to 256, of which 0 is left."""
    image = picture().convert(mode)
    content = encoded(image, "JPEG2000", no_jp2=no_jp2)
    assert difference(decode(content), decode(image)).max() == 0
    components = b"\x07\x01\x01" * len(image.getbands())
    assert content.count(components) == 1
    deep = content.replace(components, components.replace(b"\x07", b"\x0b"))
    if mode == "L":
        assert decode(deep).mode == "RGB"
    else:
        with pytest.raises(ImageError, match="row 3: .*makes white black, found 12"):
            decode(deep, 3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "LA"])
@pytest.mark.parametrize("opened", [bytes, lambda b: Image.open(io.BytesIO(b))])
def test_channels_stored_apart_are_refused_where_pillow_misreads_them(mode, opened):
    image = picture().convert(mode)
    content = encoded(image, "TIFF")
    assert len(image.getbands()) == len(decode(content).convert(mode).getbands())
    together, apart = (struct.pack("<HHIHH", 284, 3, 1, n, 0) for n in (1, 2))
    assert content.count(together) == 1
    content = content.replace(together, apart)
    if mode != "LA":  # of 16 bits, as far as what is said of them goes
        eight, sixteen = (struct.pack("<H", n) * len(mode) for n in (8, 16))
        assert content.count(eight) == 1
        content = content.replace(eight, sixteen)
    with pytest.raises(ImageError, match=r"row 3: .*each stored by itself.*together"):
        decode(opened(content), 3)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("kind", ["uint16", "float32", "12 bits"])
def test_deep_tiff_files_are_seen_as_those_of_8_bits(kind, photometric, order):
    shallow = np.array([[0, 255], [100, 200]], np.uint8)
    expected = np.asarray(decode(tiff(shallow, photometric)))
    assert expected[0, :, 0].tolist() == ([0, 255] if photometric else [255, 0])
    values, bits = DEEP, None
    if kind == "float32":
        values = (DEEP / 65535).astype(np.float32)
    elif kind == "12 bits":
        values, bits = (DEEP.astype(int) * 4095 // 65535).astype(np.uint16), 12
    file = tiff(values, photometric, order, bits)
    try:
        found = np.asarray(decode(file))
    except ImageError as error:  # Pillow does not know all of them
        assert "unknown pixel mode" in str(error)
        known = kind == "float32" or photometric == 1 and kind == "uint16"
        assert not known
        return
    np.testing.assert_allclose(found.astype(int), expected, atol=int(bits == 12))
    np.testing.assert_array_equal(decode(Image.open(io.BytesIO(file))), found)


def bitmap(pixels, alpha):
    """A BMP file of four bytes a pixel, that says which of them is the transparency."""
    height, width = pixels.shape[:2]
    alpha = np.full((height, width), alpha, np.uint8)
    data = np.dstack([pixels[::-1, :, ::-1], alpha]).tobytes()
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    size = struct.pack("<IiiHHIIiiII", 108, width, height, 1, 32, 3, *[0] * 5)
    header = size + masks + bytes(108 - len(size) - len(masks))
    start = 14 + len(header)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + header + data


def icon(pixels, alpha):
    """An ICO file with a bitmap of four bytes a pixel, and of its mask nothing."""
    height, width = pixels.shape[:2]
    alpha = np.full((height, width), alpha, np.uint8)
    data = np.dstack([pixels[::-1, :, ::-1], alpha]).tobytes()
    data += bytes(-(-width // 32) * 4 * height)
    header = struct.pack("<IiiHHIIiiII", 40, width, 2 * height, 1, 32, 0, *[0] * 5)
    entry = width, height, 0, 0, 1, 32, len(header + data), 22
    return struct.pack("<3H4B2H2I", 0, 1, 1, *entry) + header + data


@pytest.mark.parametrize("make", [bitmap, icon])
@pytest.mark.parametrize(
    "opened", [bytes, lambda content: Image.open(io.BytesIO(content))]
)
def test_bitmaps_without_any_transparency_are_seen_as_they_are(make, opened):
    """Programs leave the fourth byte zero, which says that nothing is to be seen."""
    pixels = np.asarray(picture((32, 32)))
    for alpha in 0, 255:
        assert difference(decode(opened(make(pixels, alpha))), pixels).max() == 0
    half = np.rint(pixels * (128 / 255) + 127)
    assert difference(decode(opened(make(pixels, 128))), half).max() <= 1


def test_a_flag_of_pillow_makes_no_transparency(monkeypatch):
    content = encoded(
        Image.merge("RGBA", [*picture().split(), picture().convert("L")]), "BMP"
    )
    expected = np.asarray(decode(content))
    monkeypatch.setattr(BmpImagePlugin, "USE_RAW_ALPHA", True, raising=False)
    np.testing.assert_array_equal(decode(content), expected)
    assert BmpImagePlugin.USE_RAW_ALPHA


@pytest.mark.parametrize(
    ("make", "seen"),
    [
        (lambda p: np.dstack([p, np.zeros_like(p[..., 0])]), "255, 255, 255"),
        (lambda p: encoded(Image.fromarray(p // 128), "PNG"), "1, 1, 1"),
        (lambda p: Image.new("L", (9, 9)), "0, 0, 0"),
        (lambda p: np.full((9, 9), 0.2), "51, 51, 51"),
    ],
)
def test_images_that_show_nothing_are_told(make, seen, caplog, monkeypatch):
    monkeypatch.setattr(telling, "_n_blank", itertools.count())
    pixels = np.asarray(picture())
    featurizer = CLIPFeaturizer("demo", cache=_MemoryStore(), interventions=None)
    featurizer.transform([make(pixels)])
    [message] = caplog.messages
    assert re.search(rf"^row 0: .*one colour, RGB \({seen}\)", message)
    caplog.clear()
    featurizer.transform([pixels])
    assert not caplog.messages


def test_memory_that_only_the_file_claims_to_need():
    """Pillow calls a strip of 2 GB a lack of memory (-9), whatever there is."""
    content = encoded(picture(), "TIFF", compression="tiff_lzw")
    rows = struct.pack("<HHII", 278, 3, 1, 30)
    assert rows in content
    content = content.replace(rows, struct.pack("<HHII", 278, 4, 1, 2**31))
    with pytest.raises(ImageError, match="row 2: .*-9"):
        decode(content, 2)


@pytest.mark.parametrize("on_error", ["raise", "nan"])
def test_memory_that_is_short_is_no_broken_image(on_error, monkeypatch):
    def fail(self):
        raise MemoryError

    content = encoded(picture(), "PNG")
    featurizer = CLIPFeaturizer("demo", on_error=on_error, cache=_MemoryStore())
    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(MemoryError, match="row 0: .* not enough memory"):
        featurizer.transform([content])


def test_error_crosses_processes():
    error = pickle.loads(pickle.dumps(ImageError("row 3: broken", 3)))
    assert error.row == 3 and str(error) == "row 3: broken"
    assert isinstance(error, ValueError)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_files_never_raise_anything_else():
    rng = np.random.default_rng(0)
    Image.init()
    for image_format in images.FORMATS:
        if image_format not in Image.SAVE:
            continue
        content = encoded(picture(), image_format)
        for _ in range(40):
            damaged = bytearray(content)
            for place in rng.integers(0, len(content), 5):
                damaged[place] = rng.integers(0, 256)
            try:
                assert decode(bytes(damaged), 0).mode == "RGB"
            except ImageError:
                pass
