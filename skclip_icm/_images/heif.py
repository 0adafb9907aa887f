"""Photographs of phones: HEIF files, which the package pillow-heif reads.

Only its own functions are called. What it can register with Pillow, for the whole
process, is left alone.
"""

from PIL import Image

from skclip_icm._images.reading import row_error

_HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_AVIF = {b"avif", b"avis"}


def is_heif(content):
    """Whether the bytes of a file are HEIF, and not AVIF, which Pillow reads."""
    brands = _brands(content)
    return bool(brands & _HEIF) and not brands & _AVIF


def is_avif(content):
    """Whether the bytes of a file are AVIF."""
    return bool(_brands(content) & _AVIF)


def open_heif(content, row=None, name=""):
    """Open the bytes of a HEIF file as an image that is decoded when it is loaded.

    Parameters
    ----------
    content : bytes
        A whole file.
    row : int, optional
        Its position, for the error message.
    name : str, default=""
        Its path, for the error message.

    Returns
    -------
    image : PIL image
        The upright image, of 8 bits.

    Raises
    ------
    ImageError
        If pillow-heif is missing.
    """
    try:
        import pillow_heif
    except ImportError as error:
        raise row_error(
            row,
            name,
            "a HEIF file (HEIC), which Pillow does not read",
            'Install the extra: pip install "skclip-icm[heif]", or convert the image.',
        ) from error
    return _HeifImage(pillow_heif.open_heif(content))


class _HeifImage(Image.Image):
    """What pillow-heif has opened, decoded when it is loaded."""

    format = "HEIF"

    def __init__(self, file):
        super().__init__()
        self._file, self._size, self._mode = file, file.size, file.mode

    def load(self):
        if self._file is not None:
            picture = self._file.to_pillow()
            self.im, self._mode, self._file = picture.im, picture.mode, None
        return super().load()


def _brands(content):
    """Return what a file of ISO boxes (ISO/IEC 14496-12, 4.3) calls itself."""
    if content[4:8] != b"ftyp":
        return set()
    box = content[8 : int.from_bytes(content[:4])]
    return {box[i : i + 4] for i in range(0, len(box), 4) if i != 4}
