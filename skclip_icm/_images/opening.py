"""The bytes of a file to an image that is not decoded yet, and of bounded size.

Files are untrusted: only raster formats with a signature are tried (`FORMATS`; no
PostScript, PDF or vector format, whose readers start other programs), and the
number of pixels is bounded before any is decoded.
"""

import functools
import importlib
import io

import numpy as np
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import DibImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.IcoImagePlugin import IcoFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from skclip_icm._images.heif import is_avif, is_heif, open_heif
from skclip_icm._images.inputs import row_error

_PLUGINS = {
    "JPEG": "Jpeg",
    "PNG": "Png",
    "WEBP": "WebP",
    "GIF": "Gif",
    "BMP": "Bmp",
    "TIFF": "Tiff",
    "PPM": "Ppm",
    "JPEG2000": "Jpeg2K",
    "AVIF": "Avif",
    "ICO": "Ico",
}

#: Formats read from files and bytes. TGA is left out on purpose: it has no
#: signature, so arbitrary bytes can pass for a picture. MPO is opened as JPEG.
FORMATS = (*_PLUGINS, "MPO")

#: Largest number of pixels decoded: the size at which Pillow itself, as shipped,
#: speaks of a decompression bomb (0.7 GB, as Pillow takes 4 bytes for an RGB pixel).
MAX_PIXELS = 178_956_970

#: Largest ratio of the sides. Resizing the shorter side of a strip of pixels to that
#: of a model would make gigabytes of it.
MAX_RATIO = 256

_WHITE_LOST = "colours of more than 8 bits, of which Pillow makes white black"
_RAW = "a raw file of a camera, or another whose first picture is a preview"
_SUBFILE_TYPE, _DNG_VERSION = 254, 50706  # tags of TIFF
_STRETCHED = {"L;2": 85, "L;4": 17}  # greys of 2 and 4 bits, to 255

# Memory that decoding was measured to take, where it is more than 8 bytes.
_BYTES_PER_PIXEL = {"AVIF": 12, "WEBP": 16, "JPEG2000": 20}


def open_image(content, row, name):
    """Open bytes as the first format that accepts them, without decoding.

    `PIL.Image.open` is not used because it warns, or raises, by its own pixel limit,
    a global that the user may have changed.
    """
    if is_heif(content):
        return open_heif(content, row, name)
    reasons = []
    for image_format, factory, accept in _openers():
        accepted = accept(content[:16])
        if isinstance(accepted, str):  # known, but this build of Pillow lacks it
            reasons.append(accepted)
        elif accepted:
            try:
                return _OURS.get(image_format, factory)(io.BytesIO(content), "")
            except _TooLargeError as error:
                check_size(error.args[0], row, name)
            except (MemoryError, Warning):  # see decode
                raise
            except Exception as exc:
                reasons.append(f"{image_format}: {exc}")
    found = "; ".join(reasons) or f"it starts with {content[:8]!r}"
    raise row_error(
        row,
        name,
        f"not an image that can be read ({found})",
        'AVIF needs another Pillow: pip install -U "Pillow>=11.3".'
        if is_avif(content)
        else f"Expected one of {', '.join(FORMATS)}; convert, restore or drop it.",
    )


@functools.cache
def _openers():
    """Return formats with what Pillow itself opens them by.

    Its registry `Image.OPEN` is one for the process, where others put their own.
    """
    found = []
    for name, plugin in _PLUGINS.items():
        try:
            module = importlib.import_module(f"PIL.{plugin}ImagePlugin")
        except ImportError:  # AVIF came with Pillow 11.3
            continue
        kind = getattr(module, f"{plugin}ImageFile")
        factory = getattr(module, "jpeg_factory", kind)  # of JPEG and MPO
        found.append((name, factory, module._accept))
    return found


def check_size(size, row, name):
    """Refuse an image that is too large, too long or a single line."""
    width, height = size
    if min(width, height) < 2:
        raise row_error(
            row,
            name,
            f"a 1-pixel image: {width} x {height} pixels, expected at least 2 x 2",
            "Drop it.",
        )
    if width * height > MAX_PIXELS:
        raise row_error(
            row,
            name,
            f"{width} x {height} pixels, at most {MAX_PIXELS} are decoded",
            "Save the image smaller.",
        )
    if max(size) > MAX_RATIO * min(size):
        raise row_error(
            row,
            name,
            f"{width} x {height} pixels, one side may be at most {MAX_RATIO} times as "
            "long as the other",
            "Crop the image.",
        )


def check_memory(size, image_format):
    """Raise MemoryError if there is no room for decoding an image of that size.

    To be called when that has failed: the libraries that decode mostly say of a lack
    of memory that the file is broken.
    """
    np.empty((*size, _BYTES_PER_PIXEL.get(image_format, 8)), np.uint8)


# Formats of which Pillow decodes or allocates an image when it opens it


class _TooLargeError(Exception):
    """An image of the size that is the argument."""


class _BoundedGif(GifImageFile):
    """A GIF whose size is checked before its first frame is allocated."""

    @property
    def _size(self):
        return self._bounded_size

    @_size.setter
    def _size(self, size):  # first that of the canvas, then as the frame extends it
        if size[0] * size[1] > MAX_PIXELS:
            raise _TooLargeError(size)
        self._bounded_size = size


def _open_icon(file, filename):
    """Open the picture of an ICO file that Pillow takes, as the PNG or BMP that it is.

    Its size is said by the picture itself; the file's directory may say another.
    """
    offset = IcoFile(file).entry[0].offset
    file.seek(offset)
    is_png = file.read(8) == b"\x89PNG\r\n\x1a\n"
    file.seek(offset if is_png else 0)
    return (_open_png if is_png else _IconBitmap)(file, filename)


class _IconBitmap(ImageFile.ImageFile):
    """A bitmap in an ICO file, decoded when it is loaded."""

    format = "ICO"

    def _open(self):
        self._icon = IcoFile(self.fp)
        self.fp.seek(self._icon.entry[0].offset)
        bitmap = DibImageFile(self.fp)
        self._mode = bitmap.mode
        # Half of the height is that of a mask.
        self._size = bitmap.width, bitmap.height // 2

    def load(self):
        if self._icon is not None:
            picture = self._icon.frame(0)
            picture.load()
            self.im, self._mode, self.palette = (
                picture.im,
                picture.mode,
                picture.palette,
            )
            self._icon = None
        return Image.Image.load(self)


def _open_png(file, filename):
    """Open a PNG file, its transparent grey in as many bits as Pillow makes of it."""
    image = PngImageFile(file, filename)
    key = image.info.get("transparency")
    if isinstance(key, int) and image.tile:
        image.info["transparency"] = key * _STRETCHED.get(image.tile[0][3], 1)
    return image


def _open_webp(file, filename):
    """Open a WebP file, for whose canvas libwebp allocates memory at once."""
    head = file.read(30)
    file.seek(0)
    kind, data = head[12:16], head[20:]
    if kind == b"VP8X":
        size = _number(data[4:7]) + 1, _number(data[7:10]) + 1
    elif kind == b"VP8L":
        bits = _number(data[1:5])
        size = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        size = _number(data[6:8]) & 0x3FFF, _number(data[8:10]) & 0x3FFF
    if size[0] * size[1] > MAX_PIXELS:
        raise _TooLargeError(size)
    try:
        return WebPImageFile(file, filename)
    except OSError:
        check_memory(size, "WEBP")
        raise


def _number(data):
    return int.from_bytes(data, "little")


def _open_tiff(file, filename):
    """Open a TIFF file, but no raw file, of which Pillow would read a preview."""
    is_cr2 = file.getvalue()[8:10] == b"CR"
    image = TiffImageFile(file, filename)
    is_reduced = image.tag_v2.get(_SUBFILE_TYPE, 0) & 1
    if is_cr2 or is_reduced or _DNG_VERSION in image.tag_v2:
        raise ValueError(_RAW)
    return image


def _open_jpeg2000(file, filename):
    """Open a JPEG 2000 file, but none of colours of more than 8 bits.

    Pillow rounds them to 8 bits such that white becomes black.
    """
    image = Jpeg2KImageFile(file, filename)
    data = file.getvalue()
    # Source: ITU-T T.800, A.5.1: number of components, then three bytes for each.
    start = data.find(b"\xff\x4f\xff\x51") + 40
    count = int.from_bytes(data[start : start + 2], "big")
    depths = [1 + (b & 0x7F) for b in data[start + 2 : start + 2 + 3 * count : 3]]
    if len(image.getbands()) > 1 and max(depths, default=0) > 8:
        raise ValueError(f"{_WHITE_LOST}, found {max(depths)}")
    return image


_OURS = {
    "GIF": _BoundedGif,
    "ICO": _open_icon,
    "JPEG2000": _open_jpeg2000,
    "PNG": _open_png,
    "TIFF": _open_tiff,
    "WEBP": _open_webp,
}
