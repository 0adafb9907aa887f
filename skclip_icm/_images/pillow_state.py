"""What a user has set in Pillow: it has no say on images here, and stays as it is."""

import re
import warnings
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

from PIL import BmpImagePlugin, Image, ImageFile, PngImagePlugin

from skclip_icm._locks import Flag

# What Pillow's modules warn of (odd tags, a damaged EXIF block, large images) is either
# harmless or becomes an error here. The form is that of `warnings.filters`.
IGNORE_PILLOW = ("ignore", None, Warning, re.compile(r"PIL\b"), 0)
_USUAL_PIXELS = 89_478_485  # the limit as shipped; Pillow raises from twice as many on


@contextmanager
def no_warning_raised():
    """Keep a user's ``-W error`` from deciding which images can be read.

    The filters of all threads are one list, which others may change, copy and replace
    at any moment. So it is left alone unless it makes errors of warnings, and then
    gets one entry, which may be gone when it is taken out. `warnings.catch_warnings`
    in several threads could leave the filters of one to all others.
    """
    # From Python 3.14 on, a context may have filters of its own.
    filters = getattr(warnings, "_get_filters", lambda: warnings.filters)()
    if all(entry[0] != "error" for entry in filters):
        yield
        return
    filters.insert(0, IGNORE_PILLOW)
    try:
        yield
    finally:
        with suppress(ValueError):
            filters.remove(IGNORE_PILLOW)


def _flag(owner, name, wanted):
    # An older Pillow may not have the flag, and be as it is with it off.
    read = partial(getattr, owner, name, False)
    return Flag(read, partial(setattr, owner, name), wanted)


def _at_least_usual(limit):
    return limit if limit is None else max(limit, _USUAL_PIXELS)


#: Pillow opens and crops images of every size that is decoded here. A lower limit of a
#: user gives way no further, for what else is read meanwhile in other threads.
any_size = _flag(Image, "MAX_IMAGE_PIXELS", _at_least_usual).held

_LIMITS = (
    any_size,
    # Pillow does not fill up what is missing of a file with grey.
    _flag(ImageFile, "LOAD_TRUNCATED_IMAGES", lambda value: False).held,
    # The fourth byte of a bitmap's pixel is no transparency where nothing says so.
    _flag(BmpImagePlugin, "USE_RAW_ALPHA", lambda value: False).held,
    # Of one text in a PNG file and of all, in bytes. An editor may write its settings
    # or a workflow there: a long text makes no picture a broken one.
    _flag(PngImagePlugin, "MAX_TEXT_CHUNK", lambda value: 2**24).held,
    _flag(PngImagePlugin, "MAX_TEXT_MEMORY", lambda value: 2**26).held,
)


@contextmanager
def our_limits():
    """Let Pillow decode what is decoded here, and nothing more."""
    with ExitStack() as stack:
        for held in _LIMITS:
            stack.enter_context(held())
        yield
