"""Images of 16 bits whose values do not reach far: they would be seen as black."""

import itertools
import logging

logger = logging.getLogger("skclip_icm")

# Images that the log names in a process; a folder may hold a million of them.
_MAX_TOLD = 10
_n_dark = itertools.count()


def warn_if_dark(image, row=None, name=""):
    """Warn if an image of more than 8 bits uses a small part of the range up to 65535.

    It goes to the log, with a limit: as a Python warning, ``-W error`` would decide
    which images can be read.

    Parameters
    ----------
    image : PIL image
        Of a mode that begins with "I".
    row : int, optional
        Its position.
    name : str, default=""
        Its path.

    Examples
    --------
    >>> import logging, sys
    >>> from PIL import Image
    >>> from skclip_icm._images.dark import warn_if_dark
    >>> logger = logging.getLogger("skclip_icm")
    >>> handler = logging.StreamHandler(sys.stdout)
    >>> logger.addHandler(handler)
    >>> warn_if_dark(Image.new("I;16", (4, 4), 4000), 3, "'cell.png'")
    row 3: 'cell.png': an image of 16 bits has no value above 4095, as...
    >>> logger.removeHandler(handler)
    """
    high = image.getextrema()[1]
    if not 0 < high < 4096:  # 0: black, however it is scaled
        return
    top, who = (4095, "those of 12-bit cameras") if high > 255 else (255, "8-bit ones")
    level = logging.WARNING if next(_n_dark) < _MAX_TOLD else logging.DEBUG
    logger.log(
        level,
        "%s%s: an image of 16 bits has no value above %d, as %s do: it is read as "
        "nearly black, since 65535 stands for white. Scale such images, and pass "
        "arrays: numpy.asarray(PIL.Image.open(path)) / %d.",
        "" if row is None else f"row {row}: ",
        name or "a PIL image",
        top,
        who,
        top,
    )
