"""Greyscale of more than 8 bits, or of floats: to 8 bits, by what is black and white.

Pillow leaves these images as the file has them, where of 8 bits it inverts those whose
zero is white and lets a transparent value count.
"""

import itertools

import numpy as np
from PIL import Image

from skclip_icm._images.inputs import check_array, row_error
from skclip_icm._images.telling import tell

_n_dark = itertools.count()

# Tags of TIFF, and values of some.
_BITS_PER_SAMPLE, _COMPRESSION, _PHOTOMETRIC = 258, 259, 262
_PLANAR_CONFIGURATION, _SAMPLE_FORMAT = 284, 339
_WHITE_IS_ZERO, _SEPARATE, _SIGNED = 0, 2, 2


def is_deep(image):
    """Whether an image is of more than 8 bits in its only channel, or of floats."""
    return image.mode.startswith("I") or image.mode == "F"


def is_shortened(image):
    """Whether Pillow reads 8 of 16 bits of an image that is not loaded yet.

    So it does of those with several channels.
    """
    return not is_deep(image) and any(
        ";16" in str(t) for t in getattr(image, "tile", ())
    )


def check_tiff(image, row=None, name=""):
    """Refuse a TIFF file of which Pillow makes another picture, without a word.

    Of signed numbers of 8 bits, it reads -1 as white; those of 32 bits are what it
    writes itself, see `find_scale`. Where each channel is stored by itself, it takes
    two bytes of a value for two pixels, and greys with an alpha for something else.

    Parameters
    ----------
    image : PIL image
        As it was opened.
    row : int, optional
        Its position, for the message.
    name : str, default=""
        Its path, for the message.

    Raises
    ------
    ImageError
        If it has signed numbers of 8 or 16 bits, or channels stored in such a way.
    """
    tags = getattr(image, "tag_v2", {})
    bits, n_channels = max(tags.get(_BITS_PER_SAMPLE, (1,))), len(image.getbands())
    if bits <= 16 and _SIGNED in tags.get(_SAMPLE_FORMAT, ()):
        raise row_error(
            row,
            name,
            f"a TIFF file of signed numbers of {bits} bits: nothing says what stands "
            "for black and for white",
            "Pass an array, of uint8 or of floats from 0 to 1.",
        )
    is_split = tags.get(_PLANAR_CONFIGURATION) == _SEPARATE and n_channels > 1
    if is_split and (n_channels == 2 or bits > 8 and tags.get(_COMPRESSION, 1) == 1):
        raise row_error(
            row,
            name,
            f"a TIFF file of {n_channels} channels of {bits} bits, each stored by "
            "itself, which Pillow misreads",
            "Save the channels of a pixel together (planar configuration 1).",
        )


def tell_dark(image, row=None, name=""):
    """Log that an image is read as nearly black, if that `is_shortened` is.

    Parameters
    ----------
    image : PIL image
        As it was opened, loaded.
    row : int, optional
        Its position, for the message.
    name : str, default=""
        Its path, for the message.
    """
    colours = "".join(image.getbands()).rstrip("Aa")
    high = max(image.getchannel(band).getextrema()[1] for band in colours)
    if high < 16:  # 0 is what becomes of all values below 256
        _tell_dark(
            row,
            name,
            "no value above 4095, as those of 12-bit cameras do",
            "black",
            "white",
            "Multiply the values by 16 and save them again, by a program that keeps 16 "
            "bits, as Pillow does not.",
        )


def find_scale(image, bands, row=None, name=""):
    """Return what turns bands of an image into 8 bits.

    Parameters
    ----------
    image : PIL image
        As it was opened, loaded; of a mode that `is_deep`.
    bands : callable
        Gives an iterator over parts that make up the image.
    row : int, optional
        Its position, for messages.
    name : str, default=""
        Its path, for messages.

    Returns
    -------
    to_8_bit : callable
        From a PIL image that is a part of it to one of mode "L".

    Raises
    ------
    ImageError
        If the values are not those of a picture, or nothing says what is white.

    Examples
    --------
    >>> from PIL import Image
    >>> from skclip_icm._images.deep import find_scale
    >>> image = Image.new("I;16", (4, 4), 51400)
    >>> find_scale(image, lambda: [image])(image).getpixel((0, 0))
    200
    """
    tags = getattr(image, "tag_v2", {})
    inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    if image.mode == "F":
        white = None
    else:
        white = 4095 if tags.get(_BITS_PER_SAMPLE) == (12,) else 65535
        _check_range(image, bands, white, inverted, row, name)
    transparent = image.info.get("transparency")

    def to_8_bit(band):
        values = np.asarray(band)
        if white is None:
            grey = check_array(values, row, name)
        else:
            values = values.astype(np.uint32)
            grey = ((values * 255 + white // 2) // white).astype(np.uint8)
        grey = 255 - grey if inverted else grey
        if white is not None and isinstance(transparent, int):
            grey = np.where(values == transparent, np.uint8(255), grey)
        return Image.fromarray(grey)

    return to_8_bit


def _check_range(image, bands, white, inverted, row, name):
    """Refuse values that are none of 16 bits; refuse or log those that may be of less.

    It goes to the log, with a limit, where the file says that it has 16 bits: as a
    Python warning, ``-W error`` would decide which images can be read. Numbers of 32
    bits say nothing of what is white.
    """
    extrema = [(band.min(), band.max()) for band in map(np.asarray, bands())]
    low, high = int(min(least for least, _ in extrema)), int(max(m for _, m in extrema))
    if low < 0 or high > 65535:
        raise row_error(
            row,
            name,
            f"values from {low} to {high} in mode {image.mode}, expected 0 to 65535",
            "Convert the image to 8 or 16 bits.",
        )
    if not 0 < high < 4096 or white < 65535:  # 0: black, however it is scaled
        return
    top, who = (4095, "those of 12-bit cameras") if high > 255 else (255, "8-bit ones")
    found = f"no value above {top}, as {who} do"
    ends = ("white", "black") if inverted else ("black", "white")
    # Pillow has brought those of a PGM file to 16 bits.
    if image.mode == "I" and image.format != "PPM":
        raise row_error(
            row,
            name,
            f"an image of 32-bit numbers (mode I) has {found}: nothing says what "
            "stands for white",
            f"Pass an array, numpy.asarray(image) / {top}; if 65535 is white, / 65535.",
        )
    fix = "Scale such images, and pass arrays: numpy.asarray(PIL.Image.open(path)) / "
    _tell_dark(row, name, found, *ends, f"{fix}{top}.")


def _tell_dark(row, name, found, seen, white, fix):
    tell(
        _n_dark,
        row,
        name or "a PIL image",
        "an image of 16 bits has %s: it is read as nearly %s, since 65535 stands for "
        "%s. %s",
        found,
        seen,
        white,
        fix,
    )
