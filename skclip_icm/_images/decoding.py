"""Anything to an RGB image, or a clear error.

Files are untrusted, see `opening`. Of the images above `LARGE_PIXELS` one is decoded
at a time, so that a few do not fill the memory. Limits and flags of Pillow, which are
those of the process, have no say, and stay as they are. Every function may be called
from many threads at once.
"""

import hashlib
import traceback
from contextlib import contextmanager, nullcontext

import numpy as np
from PIL import Image

from skclip_icm._images.deep import (
    check_tiff,
    find_scale,
    is_deep,
    is_shortened,
    tell_dark,
)
from skclip_icm._images.inputs import (
    MAX_BYTES,
    ImageError,
    as_items,
    check_array,
    describe,
    memory_error,
    read_content,
    row_error,
)
from skclip_icm._images.opening import (
    FORMATS,
    MAX_PIXELS,
    MAX_RATIO,
    check_memory,
    check_size,
    open_image,
)
from skclip_icm._images.pillow_state import no_warning_raised, our_limits
from skclip_icm._locks import Lock

__all__ = [
    "FORMATS",
    "LARGE_PIXELS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "MAX_RATIO",
    "ImageError",
    "as_items",
    "decode",
    "digest",
    "read_content",
]

#: Number of pixels above which images are decoded one at a time (0.13 GB each).
LARGE_PIXELS = 2**25

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
# Programs leave the fourth byte of a pixel zero there; browsers, too, then ignore it.
_OFTEN_WITHOUT_ALPHA = "BMP", "DIB", "ICO"
# Pixels converted at a time: a conversion in steps would otherwise copy a large image
# as often as it has steps.
_BAND_PIXELS = 2**22
_MAX_ATTEMPTS = 100  # how often other threads may bring Pillow's warnings back
_LARGE = Lock()
# Loading a PIL image changes it, and it may stand in several rows.
_LOADING = tuple(Lock() for _ in range(64))


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


def decode(content, row=None, name="", target=None, resize=None):
    """Decode one image to RGB.

    The EXIF orientation is applied; transparency is laid on white, but not that of a
    bitmap that is transparent everywhere; an animation gives its first frame (a PIL
    image its current one), a multi-page file its first page. 16-bit greyscale is
    divided by 257 and rounded; mode "I" must lie in [0, 65535], is taken as 16-bit and
    refused if it would be nearly black; mode "F" must lie in [0, 1]. Colour profiles
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
    resize : callable, optional
        Applied to the decoded image before the next large one is decoded, so that
        many threads do not each hold one.

    Returns
    -------
    PIL image of mode "RGB"
        A new image, without metadata; what `resize` made of it, if given.

    Raises
    ------
    ImageError
        If it cannot be decoded, has a side below 2 pixels, more than `MAX_PIXELS` or
        a side more than `MAX_RATIO` times as long as the other.
    MemoryError
        If memory does not suffice: the image may be whole.

    Examples
    --------
    >>> import numpy as np
    >>> decode(np.zeros((2, 3, 4), dtype=np.uint8)).getpixel((0, 0))
    (255, 255, 255)
    """
    name = repr(name) if name else describe(content)
    try:
        for _ in range(_MAX_ATTEMPTS):
            try:
                with no_warning_raised(), our_limits():
                    return _decode(content, row, name, target, resize)
            except Warning as warning:  # another thread has changed the filters
                _free_locals(warning)
                raised = warning
        raise raised
    except ImageError as error:
        _free_locals(error)
        raise
    # A damaged file can raise almost anything from within Pillow's plugins:
    # OSError, SyntaxError, struct.error, zlib.error, KeyError, ...
    except Exception as exc:
        _free_locals(exc)
        # Sizes are bounded, so it is not for what a file claims that this is raised.
        if isinstance(exc, MemoryError):
            raise memory_error(row, name) from exc
        raise row_error(
            row,
            name,
            f"the image cannot be decoded ({type(exc).__name__}: {exc})",
            "Restore or drop it; it may be truncated or damaged.",
        ) from exc


# Decoding


def _decode(content, row, name, target, resize):
    with _opened(content, row, name) as image:
        check_size(image.size, row, name)
        check_tiff(image, row, name)
        if target is not None and image.format in ("JPEG", "MPO"):
            _reduce(image, target)
        with _turn(image.size):
            try:
                decoded = _load(image, row, name, shared=image is content)
            except (OSError, RuntimeError):
                check_memory(image.size, image.format)
                raise
            return decoded if resize is None else resize(decoded)


def _free_locals(error):
    """Free what the frames of an error hold: a large image, perhaps half decoded.

    An error may be kept for long, in a future or a list, and its traceback with it.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


@contextmanager
def _opened(content, row, name):
    """Give a PIL image that need not be loaded yet."""
    if isinstance(content, bytes):
        with open_image(content, row, name) as image:
            yield image
    elif isinstance(content, Image.Image):
        yield content
    else:
        pixels = check_array(content, row)
        check_size(pixels.shape[1::-1], row, name)  # Pillow takes no empty ones
        yield Image.fromarray(pixels[:, :, 0] if pixels.shape[2:] == (1,) else pixels)


def _turn(size):
    return _LARGE if size[0] * size[1] > LARGE_PIXELS else nullcontext()


def _load(image, row, name, shared):
    if shared:
        with _LOADING[id(image) // 64 % len(_LOADING)]:
            return _to_rgb(_load_pixels(image, row, name), row, name)
    image = _load_pixels(image, row, name)
    # Nobody else holds this image: copying it can take as long as decoding it.
    if image.mode == "RGB" and not image.has_transparency_data:
        image = _upright(image)
        image.info = {}
        return image
    return _to_rgb(image, row, name)


def _load_pixels(image, row, name):
    """Load an image, and return it with what is transparent as it was meant."""
    shortened = is_shortened(image)
    image.load()
    if shortened:
        tell_dark(image, row, name)
    if image.format in _OFTEN_WITHOUT_ALPHA and image.mode == "RGBA":
        alpha = image.getchannel("A")
        return image.convert("RGB") if alpha.getextrema() == (0, 0) else image
    key = image.info.get("transparency")
    # Pillow shortens the pixels only. If they were loaded before, a large number tells.
    if isinstance(key, tuple) and (shortened or max(key) > 255):
        image = image._new(image.im)
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return image


def _reduce(image, target):
    height, width = target
    if _orientation(image) >= 5:  # the sides will be swapped
        height, width = width, height
    image.draft(None, (2 * width, 2 * height))


def _orientation(image):
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except (MemoryError, Warning):  # see decode
        raise
    except Exception:  # a damaged EXIF block does not spoil the picture
        return 1
    return orientation if orientation in _TRANSPOSE else 1


def _upright(image):
    orientation = _orientation(image)
    return image.transpose(_TRANSPOSE[orientation]) if orientation != 1 else image


def _to_rgb(image, row, name):
    upright, to_8_bit = _upright(image), None
    if is_deep(image):
        bands = lambda: (band for _, band in _bands(image))  # noqa: E731
        to_8_bit = find_scale(image, bands, row, name)
    result = Image.new("RGB", upright.size)
    for box, band in _bands(upright):
        rgb = _band_to_rgb(to_8_bit(band) if to_8_bit else band)
        if rgb.size == upright.size:
            return rgb
        result.paste(rgb, box)
    return result


def _bands(image):
    """Iterate over parts of an image, and where they are in it."""
    width, height = image.size
    step = max(1, _BAND_PIXELS // width)
    if step >= height:
        yield (0, 0, width, height), image
        return
    for top in range(0, height, step):
        box = (0, top, width, min(top + step, height))
        # Image.crop would raise by Pillow's limit of pixels.
        yield box, image._new(image.im.crop(box))


def _band_to_rgb(image):
    if image.mode == "La":  # which Pillow converts to nothing else
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    image = image.convert("RGB")  # copies an image that is RGB already
    image.info = {}  # else the orientation could be applied once more
    return image
