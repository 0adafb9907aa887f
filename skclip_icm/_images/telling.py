"""What the log says of images that are read, but hardly as somebody meant them."""

import itertools
import logging

from skclip_icm._images.inputs import describe

logger = logging.getLogger("skclip_icm")

# Images that the log names in a process; a folder may hold a million of them.
_MAX_TOLD = 10
_n_blank = itertools.count()


def tell(counter, row, name, text, *details):
    """Log a warning about an image; beyond the first ones of a kind, for debugging.

    Parameters
    ----------
    counter : iterator of int
        Counts the images of this kind.
    row : int or None
        Position of the image.
    name : str
        Its path, or a description.
    text : str
        What to say, with slots as `logging` fills them.
    *details : object
        For the slots.
    """
    level = logging.WARNING if next(counter) < _MAX_TOLD else logging.DEBUG
    where = name if row is None else f"row {row}: {name}"
    logger.log(level, f"%s: {text}", where, *details)


def tell_blank(image, content, row=None, name=""):
    """Log that an image shows nothing, if it is one colour everywhere.

    So are those that are transparent everywhere, and those whose values 0 and 1 stand
    for black and white.

    Parameters
    ----------
    image : PIL image
        What the model sees, of mode RGB.
    content : bytes, PIL image or uint8 array
        What it was made of.
    row : int, optional
        Its position, for the message.
    name : str, default=""
        Its path, for the message.
    """
    extrema = image.getextrema()
    if all(high - low <= 1 for low, high in extrema):
        tell(
            _n_blank,
            row,
            repr(name) if name else describe(content),
            "the model sees one colour, RGB %s, and nothing else. Drop the image if it "
            "is blank. Else, it may be transparent everywhere, or made of values from "
            "0 to 1 as whole numbers, where 255 stands for white.",
            tuple(high for _, high in extrema),
        )
