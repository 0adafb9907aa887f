"""Photographs of phones: HEIF files, which the package pillow-heif reads.

Only its own functions are called. What it can register with Pillow, for the whole
process, is left alone.
"""

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
    """Open the bytes of a HEIF file without decoding them.

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
    file : pillow_heif.HeifFile
        Its `size` is that of the upright image; `to_pillow` decodes it, to 8 bits.

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
    return pillow_heif.open_heif(content)


def _brands(content):
    """Return what a file of ISO boxes (ISO/IEC 14496-12, 4.3) calls itself."""
    if content[4:8] != b"ftyp":
        return set()
    box = content[8 : int.from_bytes(content[:4])]
    return {box[i : i + 4] for i in range(0, len(box), 4) if i != 4}
