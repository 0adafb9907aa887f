"""Anything to an RGB image, or a clear error.

Files are untrusted: only raster formats with a signature are tried (`FORMATS`; no
PostScript, PDF or vector format, whose readers start other programs), and the
number of pixels is bounded before any is decoded. No global state of Pillow is
changed, and every function may be called from many threads at once.
"""

import functools
import hashlib
import importlib
import io
import threading
from contextlib import contextmanager

import numpy as np
from PIL import Image

from .image_input import (
    MAX_BYTES,
    ImageError,
    as_items,
    check_array,
    describe,
    read_content,
    row_error,
)

__all__ = [
    "FORMATS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "ImageError",
    "as_items",
    "decode",
    "digest",
    "read_content",
]

_PLUGINS = {
    "JPEG": "Jpeg",
    "PNG": "Png",
    "WEBP": "WebP",
    "GIF": "Gif",
    "BMP": "Bmp",
    "TIFF": "Tiff",
    "PPM": "Ppm",
    "MPO": "Mpo",
    "JPEG2000": "Jpeg2K",
    "AVIF": "Avif",
    "ICO": "Ico",
}

#: Formats read from files and bytes. TGA is left out on purpose: it has no
#: signature, so arbitrary bytes can pass for a picture.
FORMATS = tuple(_PLUGINS)

#: Largest number of pixels decoded: the size at which Pillow itself, as shipped,
#: speaks of a decompression bomb (half a gibibyte of RGB).
MAX_PIXELS = 178_956_970

_ORIENTATION = 0x0112  # the EXIF tag
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Loading an opened but not yet decoded PIL image changes it. The same object may
# stand in several rows, so two threads must not load it at once.
_LOAD_LOCKS = tuple(threading.Lock() for _ in range(64))


def digest(content, row=None):
    """SHA-256 of an image's content: equal content, equal digest.

    Files are hashed as bytes. Pixels are hashed with their shape, PIL images after
    conversion to RGB, so a palette, transparency and orientation count.

    Parameters
    ----------
    content : bytes, PIL image or uint8 array
        What `read_content` returned.
    row : int, optional
        Its position, for the error message.

    Returns
    -------
    bytes
        32 bytes.

    Raises
    ------
    ImageError
        If a PIL image cannot be decoded.

    Examples
    --------
    >>> import numpy as np
    >>> from PIL import Image
    >>> pixels = np.zeros((4, 4, 3), dtype=np.uint8)
    >>> digest(pixels) == digest(Image.fromarray(pixels))
    True
    """
    if isinstance(content, bytes):
        return hashlib.sha256(content).digest()
    if isinstance(content, Image.Image):
        content = np.asarray(decode(content, row))
    hasher = hashlib.sha256(f"pixels {content.shape}\0".encode())
    hasher.update(np.ascontiguousarray(content))
    return hasher.digest()


def decode(content, row=None, name="", target=None):
    """Decode one image to RGB.

    The EXIF orientation is applied; transparency is laid on white; an animation
    gives its first frame (a PIL image its current one), a multi-page file its first
    page. 16-bit greyscale is divided by 257 and rounded; mode "I" must lie in
    [0, 65535] and is taken as 16-bit; mode "F" must lie in [0, 1]. Colour profiles
    are not applied. A truncated file is an error, a damaged EXIF block is not.

    Parameters
    ----------
    content : bytes, PIL image or uint8 array
        What `read_content` returned. A PIL image is not modified, beyond being
        loaded if it was opened lazily.
    row : int, optional
        Its position, for the error message.
    name : str, default=""
        Its path, for the error message.
    target : (int, int), optional
        Height and width that the image will later be resized to. A JPEG file at
        least four times as large on both sides is then decoded at 1/2, 1/4 or 1/8
        of its size, never below twice the target. None decodes exactly.

    Returns
    -------
    PIL image of mode "RGB"
        A new image, without metadata.

    Raises
    ------
    ImageError
        If it cannot be decoded, has a side below 2 pixels or more than `MAX_PIXELS`.

    Examples
    --------
    >>> import numpy as np
    >>> decode(np.zeros((2, 3, 4), dtype=np.uint8)).getpixel((0, 0))
    (255, 255, 255)
    """
    name = repr(name) if name else describe(content)
    with _decoding(row, name):
        if isinstance(content, np.ndarray):
            pixels = check_array(content, row)
            _check_size(pixels.shape[1::-1], row, name)
            if pixels.shape[2:] == (1,):
                pixels = pixels[:, :, 0]
            return _to_rgb(Image.fromarray(pixels), row, name)
        if isinstance(content, Image.Image):
            _check_size(content.size, row, name)
            with _LOAD_LOCKS[id(content) // 64 % len(_LOAD_LOCKS)]:
                content.load()
                return _to_rgb(_upright(content), row, name)
        with _open(content, row, name) as image:
            _check_size(image.size, row, name)
            if target is not None and image.format in ("JPEG", "MPO"):
                _reduce(image, target)
            image.load()
            upright = _upright(image)
            # Nobody else holds this image: copying it, as below, can take as long
            # as decoding it.
            if upright.mode == "RGB" and not upright.has_transparency_data:
                upright.info = {}
                return upright
            return _to_rgb(upright, row, name)


# Decoding


@contextmanager
def _decoding(row, name):
    try:
        yield
    except ImageError:
        raise
    # A damaged file can raise almost anything from within Pillow's plugins:
    # OSError, SyntaxError, struct.error, zlib.error, KeyError, MemoryError, ...
    except Exception as exc:
        raise row_error(
            row,
            name,
            f"the image cannot be decoded ({type(exc).__name__}: {exc})",
            "Restore or drop it; it may be truncated or damaged.",
        ) from exc


def _open(content, row, name):
    """Open bytes as the first format that accepts them, without decoding.

    `PIL.Image.open` is not used because it warns, or raises, by its own pixel limit,
    a global that the user may have changed.
    """
    reasons = []
    for image_format, factory, accept in _openers():
        accepted = accept is None or accept(content[:16])
        if isinstance(accepted, str):  # known, but this build of Pillow lacks it
            reasons.append(accepted)
        elif accepted:
            try:
                return factory(io.BytesIO(content), "")
            except Exception as exc:  # see _decoding
                reasons.append(f"{image_format}: {exc}")
    found = "; ".join(reasons) or f"it starts with {content[:8]!r}"
    raise row_error(
        row,
        name,
        f"not an image that can be read ({found})",
        f"Expected one of {', '.join(FORMATS)}; convert, restore or drop it.",
    )


@functools.cache
def _openers():
    for plugin in _PLUGINS.values():
        try:
            importlib.import_module(f"PIL.{plugin}ImagePlugin")
        except ImportError:  # AVIF came with Pillow 11.3
            continue
    return [(name, *Image.OPEN[name]) for name in FORMATS if name in Image.OPEN]


def _check_size(size, row, name):
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


def _reduce(image, target):
    height, width = target
    if _orientation(image) >= 5:  # the sides will be swapped
        height, width = width, height
    image.draft(None, (2 * width, 2 * height))


def _orientation(image):
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block does not spoil the picture
        return 1
    return orientation if orientation in _TRANSPOSE else 1


def _upright(image):
    orientation = _orientation(image)
    return image.transpose(_TRANSPOSE[orientation]) if orientation != 1 else image


def _to_rgb(image, row, name):
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit(image, row, name)
    if image.mode == "La":  # which Pillow converts to nothing else
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    image = image.convert("RGB")  # copies an image that is RGB already
    image.info = {}  # else the orientation could be applied once more
    return image


def _to_8_bit(image, row, name):
    values = np.asarray(image)
    if image.mode == "F":
        return Image.fromarray(check_array(values, row))
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise row_error(
            row,
            name,
            f"values from {low} to {high} in mode {image.mode}, expected 0 to 65535",
            "Convert the image to 8 or 16 bits.",
        )
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
