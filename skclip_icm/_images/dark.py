"""Images of 16 bits whose values do not reach far: they would be seen as black."""

import logging
import warnings

logger = logging.getLogger("skclip_icm")


def warn_if_dark(image, row=None, name=""):
    """Warn if an image of more than 8 bits uses a small part of the range up to 65535.

    The warning is the same for all such images, so that Python shows it once; the log,
    at level INFO, names each.

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
    >>> import warnings
    >>> from PIL import Image
    >>> from skclip_icm._images.dark import warn_if_dark
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     warn_if_dark(Image.new("I;16", (4, 4), 4000))
    >>> print(caught[0].message)
    An image of 16 bits has no value above 4095, as those of 12-bit cameras...
    """
    high = image.getextrema()[1]
    if not 0 < high < 4096:  # 0: black, however it is scaled
        return
    top, who = (4095, "those of 12-bit cameras") if high > 255 else (255, "8-bit ones")
    logger.info("row %s: %s: no value is above %d of 65535.", row, name, high)
    warnings.warn(
        f"An image of 16 bits has no value above {top}, as {who} do: it is read as "
        "nearly black, since 65535 stands for white. Scale such images, and pass "
        f"arrays: numpy.asarray(PIL.Image.open(path)) / {top}. The log of "
        "'skclip_icm', at level INFO, names them.",
        UserWarning,
        stacklevel=2,
    )
