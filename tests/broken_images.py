"""Make a directory of good and of broken images, always the same for one seed.

Run ``python tests/broken_images.py DIRECTORY`` to look at them. Every format that
Pillow writes is there in every mode that it takes, whole, cut off and with flipped
bits; beside them headers that lie, bombs, files that are no images and paths that are
no files.
"""

import functools
import gzip
import io
import os
import re
import socket
import struct
import sys
import tarfile
import time
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

MODES = ["RGB", "L", "P", "1", "RGBA", "LA", "PA", "CMYK", "YCbCr", "I;16", "I", "F"]
# What Pillow writes, although its readers are not used (they start other programs) or
# need a library that it does not bring.
_SLOW_OR_ABSENT = {"BUFR", "GRIB", "HDF5", "WMF"}
# What would else be the time of writing.
_FIXED = {"PDF": {"creationDate": time.gmtime(0), "modDate": time.gmtime(0)}}
_SHARES = [0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99]
_SIDES = [0, 1, 2, 13_377, 65_535, 2**31 - 1, 2**32 - 1]


class Corpus(NamedTuple):
    """Paths: images that can be read, and everything else."""

    good: list
    broken: list


def make_corpus(directory, seed=0):
    """Write the files into `directory` and return their paths as a `Corpus`."""
    rng = np.random.default_rng(seed)
    directory = Path(directory)
    whole = dict(_whole_files(rng))
    good = _write(directory / "good", _readable(whole))
    broken = _write(directory / "whole", whole)  # some can be read, some cannot
    broken += _write(directory / "damaged", _damaged(whole, rng))
    broken += _write(directory / "lying", _lying(whole))
    broken += _write(directory / "bomb", _bombs())
    broken += _write(directory / "other", _no_images(rng))
    return Corpus(good, broken + _no_files(directory / "paths"))


def picture(rng, size=(48, 40)):
    """Draw a smooth colour picture, with some noise that does not compress."""
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    noise = rng.integers(0, 16, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(np.asarray(smooth) // 2 + noise)


def encoded(image, image_format, **options):
    """Return `image` as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def in_mode(image, mode):
    """Convert to any mode, also to those that Pillow does not convert to."""
    if mode in ("I", "I;16"):
        dtype = np.uint16 if mode == "I;16" else np.int32
        return Image.fromarray(np.asarray(image.convert("L"), dtype) * dtype(257))
    if mode == "F":
        return Image.fromarray(np.asarray(image.convert("L"), np.float32) / 255)
    if mode in ("RGBA", "LA", "PA"):
        image = image.convert("RGBA")
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image.convert(mode)


def png_chunk(kind, data):
    """Return one chunk of a PNG file, with its length and checksum."""
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png(width, height, *, bits=8, colour=2, data=b"", extra=b""):
    """Return a PNG file that may say anything about itself."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", data)
    return b"\x89PNG\r\n\x1a\n" + chunks + png_chunk(b"IEND", b"")


# Whole files


def _whole_files(rng):
    """Yield (name, content) of each format in each mode, and of some variants."""
    Image.init()
    for image_format in sorted(set(Image.SAVE) - _SLOW_OR_ABSENT):
        for mode in MODES:
            image = in_mode(picture(rng), mode)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    content = encoded(
                        image, image_format, **_FIXED.get(image_format, {})
                    )
                except Exception:  # not in this mode, or not in this build
                    continue
            yield f"{image_format}-{mode.replace(';', '_')}", content
    frames = [picture(rng) for _ in range(3)]
    for image_format in ("GIF", "PNG", "WEBP", "TIFF", "MPO"):
        options = {"save_all": True, "append_images": frames[1:]}
        yield f"{image_format}-frames", encoded(frames[0], image_format, **options)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for image_format in ("JPEG", "PNG", "WEBP", "TIFF"):
            content = encoded(picture(rng), image_format, exif=exif)
            yield f"{image_format}-exif{orientation}", content
    palette = picture(rng).convert("P")
    for name, key in (("key", 3), ("table", bytes(range(256)))):
        yield f"PNG-palette-{name}", encoded(palette, "PNG", transparency=key)
    for name, options in {
        "JPEG-progressive": {"progressive": True},
        "TIFF-deflate": {"compression": "tiff_adobe_deflate"},
        "TIFF-lzw": {"compression": "tiff_lzw"},
        "TIFF-jpeg": {"compression": "jpeg"},
        "JPEG2000-tiles": {"tile_size": (16, 16)},
        "WEBP-lossless": {"lossless": True},
        "GIF-interlaced": {"interlace": True},
    }.items():
        image_format = name.partition("-")[0]
        yield name, encoded(picture(rng), image_format, **options)


def _readable(whole):
    """The files in usual formats that Pillow alone reads, whatever its version."""
    usual = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "MPO", "JPEG2000")
    odd = ("PPM-F",)  # a PFM file, whose values may lie anywhere
    return {
        name: content
        for name, content in whole.items()
        if name.partition("-")[0] in usual and name not in odd and _loads(content)
    }


def _loads(content):
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    except OSError:  # some versions do not read all that they write
        return False
    return True


# Damage


def _damaged(whole, rng):
    for name, content in whole.items():
        for share in _SHARES:
            yield f"{name}-cut{share}", content[: int(share * len(content))]
        for attempt in range(6):
            yield f"{name}-flip{attempt}", _flipped(content, rng, 4**attempt)
        # Headers are short and hold what a reader believes.
        yield f"{name}-head", _flipped(content[:64], rng, 6) + content[64:]
        yield f"{name}-zeros", content[: len(content) // 2] + bytes(len(content) // 2)
        yield f"{name}-more", content + rng.bytes(200)


def _flipped(content, rng, n_bits):
    data = np.frombuffer(content, np.uint8).copy()
    places = rng.integers(0, len(data), n_bits)
    np.bitwise_xor.at(data, places, np.uint8(1) << rng.integers(0, 8, n_bits, np.uint8))
    return data.tobytes()


def _lying(whole):
    """Yield files whose headers promise another size than the file holds."""
    for width in _SIDES:
        for height in _SIDES:
            size = f"{width}x{height}"
            yield f"PNG-{size}", _resized_png(whole["PNG-RGB"], width, height)
            for name, place in {
                "BMP-RGB": ("<ii", 18),
                "GIF-RGB": ("<HH", 6),
                "TIFF-RGB": None,
                "PPM-RGB": None,
                "JPEG-RGB": None,
                "JPEG2000-RGB": None,
                "WEBP-RGB": None,
                "ICO-RGB": ("<BB", 6),
            }.items():
                change = place and functools.partial(_put_at, place=place)
                change = change or _CHANGES[name]
                yield f"{name}-{size}", change(whole[name], width, height)


def _resized_png(content, width, height):
    header = png_chunk(b"IHDR", struct.pack(">II", width, height) + content[24:29])
    return content[:8] + header + content[33:]


def _put_at(content, width, height, place):
    fields, offset = place
    bits = 8 * struct.calcsize(fields[:2])
    data = bytearray(content)
    values = struct.pack(fields.upper(), width % 2**bits, height % 2**bits)
    data[offset : offset + len(values)] = values
    return bytes(data)


def _resized_jpeg(content, width, height):
    start = content.index(b"\xff\xc0") + 5
    return _put_at(content, height, width, (">HH", start))


def _resized_jpeg2000(content, width, height):
    box, size = content.index(b"ihdr") + 4, content.index(b"\xff\x51") + 6
    content = _put_at(content, height, width, (">II", box))
    return _put_at(content, width, height, (">II", size))


def _resized_webp(content, width, height):
    start = content.index(b"\x9d\x01\x2a") + 3
    return _put_at(content, width & 0x3FFF, height & 0x3FFF, ("<HH", start))


def _resized_tiff(content, width, height):
    for tag, value in ((256, width), (257, height)):
        entry = content.index(struct.pack("<HH", tag, 4), 8)
        content = (
            content[: entry + 8] + struct.pack("<I", value) + content[entry + 12 :]
        )
    return content


def _resized_ppm(content, width, height):
    return re.sub(rb"\d+ \d+", b"%d %d" % (width, height), content, count=1)


_CHANGES = {
    "TIFF-RGB": _resized_tiff,
    "PPM-RGB": _resized_ppm,
    "JPEG-RGB": _resized_jpeg,
    "JPEG2000-RGB": _resized_jpeg2000,
    "WEBP-RGB": _resized_webp,
}


def _bombs():
    """Yield small files that are large pictures, or hold large texts."""
    zeros = zlib.compress(bytes(30_000_000), 1)
    yield "PNG-bomb", png(20_000, 20_000, data=zeros)
    for mode, image_format, options in [
        ("1", "TIFF", {"compression": "tiff_adobe_deflate"}),
        ("1", "PNG", {}),
    ]:
        large = Image.new(mode, (15_000, 15_000))
        yield f"{image_format}-bomb", encoded(large, image_format, **options)
    # Allowed, and among the largest that are: one bit a pixel, until decoded.
    for number in range(3):
        extra = png_chunk(b"PLTE", bytes([number] * 6))
        if number == 0:
            extra += png_chunk(b"tRNS", bytes([128, 255]))
        rows = zlib.compress(bytes((13_000 // 8 + 1) * 13_000), 1)
        yield (
            f"PNG-large{number}",
            png(13_000, 13_000, bits=1, colour=3, data=rows, extra=extra),
        )
    small = zlib.compress(bytes(10 * 31))
    for kind, before in {
        "zTXt": b"Comment\0\0",
        "iTXt": b"Comment\0\1\0\0\0",
        "iCCP": b"profile\0\0",
    }.items():
        extra = png_chunk(kind.encode(), before + zeros)
        yield f"PNG-{kind}", png(10, 10, data=small, extra=extra)
    yield "PNG-surplus", png(10, 10, data=zeros)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", bytes(30_000_000))
    yield "ZIP-bomb", buffer.getvalue()


# What is no image


def _no_images(rng):
    words = "Nothing to see here.\n" * 50
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(__file__, "a.py")
    script = '<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>'
    yield from {
        "text": words.encode(),
        "utf16": words.encode("utf-16"),
        "page": b"<!DOCTYPE html><title>404 Not Found</title>",
        "vector": script.encode(),
        "archive": buffer.getvalue(),
        "packed": gzip.compress(buffer.getvalue()),
        "document": b"%PDF-1.7\n%\xe2\xe3\n1 0 obj\n<</Type/Catalog>>\n",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nquit\n",
        "program": b"\x7fELF\2\1\1" + bytes(500),
        "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
        "one_byte": b"\xff",
        "zeros": bytes(5000),
        "empty": b"",
    }.items()
    for number in range(40):
        yield f"noise{number}", rng.bytes(int(rng.integers(1, 4000)))
    signatures = [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0"]
    signatures += [b"P6\n", b"RIFF\xff\xff\xff\xffWEBPVP8 ", b"\0\0\1\0\1\0"]
    signatures += [b"\0\0\0\x20ftypavif", b"\xff\x4f\xff\x51", b"MM\0*", b"II+\0"]
    for number, signature in enumerate(signatures * 4):
        yield f"signature{number}", signature + rng.bytes(500)
    # Directories of a TIFF file that lead to each other for ever.
    loop = b"II*\0" + struct.pack("<IHHHIII", 8, 1, 256, 4, 1, 9, 8)
    yield "tiff_loop", loop


def _no_files(directory):
    """Make paths that lead to no regular, readable file."""
    directory.mkdir()
    (directory / "directory.jpg").mkdir()
    (directory / "dangling.jpg").symlink_to(directory / "nowhere.jpg")
    (directory / "loop.jpg").symlink_to(directory / "loop.jpg")
    (directory / "one.jpg").symlink_to(directory / "other.jpg")
    (directory / "other.jpg").symlink_to(directory / "one.jpg")
    (directory / "below.jpg").symlink_to(directory)
    paths = sorted(directory.iterdir())
    if hasattr(os, "mkfifo"):
        os.mkfifo(directory / "fifo.jpg")
        (directory / "to_fifo.jpg").symlink_to(directory / "fifo.jpg")
        paths += [directory / "fifo.jpg", directory / "to_fifo.jpg"]
        paths += map(Path, ("/dev/zero", "/dev/tty", "/proc/self/mem"))
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(directory / "socket.jpg"))
        paths.append(directory / "socket.jpg")
    locked = directory / "locked.jpg"  # root may read it all the same
    locked.write_bytes(b"locked")
    locked.chmod(0)
    huge = directory / "huge.jpg"
    with open(huge, "wb") as file:
        file.truncate(2**40)  # sparse
    return [*paths, locked, huge, directory / "missing.jpg", Path("x" * 5000)]


def _write(directory, files):
    directory.mkdir(parents=True)
    paths = []
    for name, content in files.items() if isinstance(files, dict) else files:
        path = directory / f"{name}.jpg"
        path.write_bytes(content)
        paths.append(path)
    return paths


if __name__ == "__main__":
    corpus = make_corpus(sys.argv[1])
    print(f"{len(corpus.good)} good and {len(corpus.broken)} other files")
