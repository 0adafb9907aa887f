"""The bytes of a file to an image that is not decoded yet, and of bounded size.

Files are untrusted: only raster formats with a signature are tried (`FORMATS`; no
PostScript, PDF or vector format, whose readers start other programs), and the
number of pixels is bounded before any is decoded.
"""

import functools
import importlib
import io

from PIL import Image

from skclip_icm._images.inputs import row_error

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
#: speaks of a decompression bomb (0.7 GB, as Pillow takes 4 bytes for an RGB pixel).
MAX_PIXELS = 178_956_970

#: Largest ratio of the sides. Resizing the shorter side of a strip of pixels to that
#: of a model would make gigabytes of it.
MAX_RATIO = 256


def open_image(content, row, name):
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
            except Warning:  # see decode
                raise
            except Exception as exc:
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
