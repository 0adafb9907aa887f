"""The encode loop: one pass over the images, each and each intervention encoded once.

Every image goes through read, digest, ask the cache, decode and render, encode, keep;
images follow each other closely, so the first is encoded long before the last is read.
A file is opened at most once: of one that has not changed since its digest was kept,
and whose embeddings are in the cache, only size and times are looked at. Beside the
embeddings, a digest for each image is in memory.
"""

import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from typing import NamedTuple

import numpy as np

from skclip_icm._encoding.parallel_encode import (
    Cell,
    Job,
    ahead,
    content_id,
    count_threads,
    encode_jobs,
    is_path,
)
from skclip_icm._encoding.stores import digests_beside, file_stamp
from skclip_icm._images.inputs import ImageError, describe, read_content, row_error

logger = logging.getLogger("skclip_icm")

# Rows of which the cache is asked at a time: by the stamps of files, which is all that
# is held of them, and by the digests of images that have been read.
_STAMPS_AT_A_TIME = 1024
_IMAGES_AT_A_TIME = 16
# Images that cannot be read and that are named in the log, in one call.
_MAX_TOLD = 10


def embed(
    items,
    encoder,
    views,
    store,
    *,
    batch_size,
    n_jobs,
    on_error,
    progress,
    jpeg_decoding="exact",
    rows=None,
    expected=None,
):
    """Embed every view of every image.

    Parameters
    ----------
    items : sequence
        Images, as `as_items` returns them.
    encoder : Encoder
        The loaded model.
    views : list of View
        What to render of each image.
    store : object with get_many and put_many
        The cache.
    batch_size : int
        Images per forward pass.
    n_jobs : int or None
        Number of threads or processes; None is what joblib's configuration says, or
        else one thread for each processor.
    on_error : {"raise", "nan"}
        What to do about an image that cannot be read.
    progress : callable
        ``progress(n_images)`` returns a context manager as `progress_bar` does.
    jpeg_decoding : {"exact", "reduced"}, default="exact"
        Whether large JPEG files may be decoded at reduced size.
    rows : array of int of shape (n,), increasing, default=None
        Which of the images to embed; None is all of them.
    expected : list of (bytes or None), default=None
        What an earlier call returned as `contents` of all images, if they must still
        be the same.

    Returns
    -------
    embeddings : ndarray of shape (n, n_views, d), float32
        Embeddings as the model gives them; NaN for images that cannot be read.
    failed : list of int
        Rows of those images.
    contents : list of (bytes or None) of length n
        A digest of each image; None where it cannot be read.

    Raises
    ------
    ImageError
        If an image cannot be read, or is not the expected one, and `on_error` is
        "raise". Finished rows are in the cache by then.
    """
    may_reduce = jpeg_decoding == "reduced"
    target = encoder.image_size if may_reduce else None
    rows = np.arange(len(items)) if rows is None else np.asarray(rows)
    n_cells = len(rows) * len(views)
    report = _Report(on_error)
    n_threads = count_threads(n_jobs)

    def read(task):
        row, stamp = task
        return readers.submit(_read, items[row], row, stamp, target, expected)

    with (
        progress(n_cells) as bar,
        ThreadPoolExecutor(n_threads, thread_name_prefix="skclip_icm-read") as readers,
    ):
        table = _Table(rows, views, encoder, store, bar)
        images = ahead(read, table.unread(items, target, expected), 2 * n_threads)
        results = encode_jobs(
            table.jobs(images),
            n_cells,
            encoder,
            views,
            (batch_size, may_reduce),
            n_jobs=n_jobs,
            recall=table.recall,
        )
        with closing(results):
            for cells, embeddings, errors in results:
                table.keep(cells, embeddings)
                for error in errors:
                    report(error)
                    bar.update(len(views), encoded=False)
    embeddings, failed = table.rows()
    report.sum_up(len(failed), len(rows))
    return embeddings, failed, table.contents


class _Read(NamedTuple):
    """An image that was read, and the digest of its content."""

    row: int
    name: str
    content: object
    digest: bytes
    stamp: bytes | None


def _read(item, row, stamp, target, expected):
    """Return what was read of an image, or the error that it is."""
    name = os.fsdecode(item) if is_path(item) else ""
    try:
        content = read_content(item, row)
        digest = content_id(content, row, target)
        if expected is not None and digest != expected[row]:
            raise row_error(
                row,
                repr(name) if name else describe(item),
                "the image is not the one that was embedded before",
                "Embed all images again.",
            )
    except ImageError as error:
        return error
    return _Read(row, name, content, digest, stamp)


class _Table:
    """Embeddings row by row, filled from the cache and from the model.

    Of rows with equal content, the first is filled, and the others at the end.
    """

    def __init__(self, rows, views, encoder, store, bar):
        self._rows, self._views, self._store, self._bar = rows, views, store, bar
        self._digests = digests_beside(store)
        self._fingerprint = encoder.fingerprint
        self._first = {}
        # Place of the row that each row's embeddings are taken from, -1 for none.
        self._source = np.full(len(rows), -1)
        self._values = np.full(
            (len(rows), len(views), encoder.n_features), np.nan, dtype=np.float32
        )
        self._present = np.zeros(self._values.shape[:2], dtype=bool)
        self.contents = [None] * len(rows)

    def unread(self, items, target, expected):
        """Iterate over rows that must be read, with the stamps of their files.

        What an earlier call has read need not be read again for what the cache holds.
        """
        known_by_content = all(view.key is not None for view in self._views)
        for rows in _in_parts(self._rows.tolist(), _STAMPS_AT_A_TIME):
            stamps = [_stamp(items[row], target) for row in rows]
            at_hand = ()
            if known_by_content and expected is None:
                at_hand = self._at_hand(rows, self._digests.get_digests(stamps))
            elif known_by_content:
                at_hand = self._at_hand(rows, [expected[row] for row in rows])
            for row, stamp in zip(rows, stamps, strict=True):
                if row not in at_hand:
                    yield row, stamp

    def jobs(self, read):
        """Iterate over what to encode, and over the errors of images, in row order."""
        for images in _in_parts(read, _IMAGES_AT_A_TIME):
            good = [image for image in images if isinstance(image, _Read)]
            self._digests.put_digests(
                [image.stamp for image in good], [image.digest for image in good]
            )
            cells = {
                image.row: self._cells(image.row, image.digest)
                for image in good
                if self._is_first(image.row, image.digest)
            }
            by_content = [cell for some in cells.values() for cell in some if cell.key]
            known = self.recall(by_content)
            for image in images:
                if isinstance(image, ImageError):
                    yield image
                elif image.row not in cells:
                    self._bar.update(len(self._views), encoded=False)
                else:
                    missing = [cell for cell in cells[image.row] if cell not in known]
                    if missing:
                        self._bar.begin()
                        yield Job(image.row, image.name, image.content, missing)

    def recall(self, cells):
        """Fill the cells that the cache holds, and return them as a set."""
        found = self._store.get_many([cell.key for cell in cells]) if cells else []
        known = set()
        for cell, embedding in zip(cells, found, strict=True):
            if embedding is not None:
                self._put(cell, embedding)
                known.add(cell)
        self._bar.update(len(known), encoded=False)
        return known

    def keep(self, cells, embeddings):
        """Put freshly computed `embeddings` into `cells` and into the cache."""
        if cells:
            for cell, embedding in zip(cells, embeddings, strict=True):
                self._put(cell, embedding)
            self._store.put_many([cell.key for cell in cells], embeddings)
            self._bar.update(len(cells))

    def rows(self):
        """Return the embeddings, and the rows that failed."""
        repeated = (self._source >= 0) & (self._source != np.arange(len(self._rows)))
        for places in _in_parts(np.flatnonzero(repeated), _STAMPS_AT_A_TIME):
            self._values[places] = self._values[self._source[places]]
        complete = self._present.all(axis=1)
        failed = (self._source < 0) | ~complete[self._source]
        return self._values, self._rows[failed].tolist()

    def _at_hand(self, rows, digests):
        """Fill rows with known digests that are in the cache; return these."""
        known = [(r, d) for r, d in zip(rows, digests, strict=True) if d is not None]
        cells = [cell for row, digest in known for cell in self._cells(row, digest)]
        found = self._store.get_many([cell.key for cell in cells]) if cells else []
        at_hand, n_views = set(), len(self._views)
        for i, (row, digest) in enumerate(known):
            part = slice(i * n_views, (i + 1) * n_views)
            # All or nothing: what is read may be another image by then.
            if all(embedding is not None for embedding in found[part]):
                at_hand.add(row)
                self._bar.update(n_views, encoded=False)
                if self._is_first(row, digest):
                    for cell, embedding in zip(cells[part], found[part], strict=True):
                        self._put(cell, embedding)
        return at_hand

    def _is_first(self, row, digest):
        place = self._place(row)
        self.contents[place] = digest
        self._source[place] = self._first.setdefault(digest, place)
        return self._source[place] == place

    def _cells(self, row, digest):
        return [
            Cell(row, v, view.key and view.embedding_key(self._fingerprint, digest))
            for v, view in enumerate(self._views)
        ]

    def _put(self, cell, embedding):
        place = self._place(cell.row), cell.view
        self._values[place], self._present[place] = embedding, True

    def _place(self, row):
        return int(np.searchsorted(self._rows, row))


class _Report:
    """What is done about images that cannot be read."""

    def __init__(self, on_error):
        self._on_error, self._n_told = on_error, 0

    def __call__(self, error):
        if self._on_error == "raise":
            raise error
        # Thousands may follow in images from the wild.
        level = logging.WARNING if self._n_told < _MAX_TOLD else logging.DEBUG
        logger.log(level, "%s The embedding is NaN.", error)
        self._n_told += 1

    def sum_up(self, n_failed, n_images):
        if self._n_told > _MAX_TOLD:
            logger.warning(
                "%d of %d images have embeddings of NaN; the first %d are named above.",
                n_failed,
                n_images,
                _MAX_TOLD,
            )


def _in_parts(values, size):
    values = iter(values)
    return iter(lambda: list(islice(values, size)), [])


def _stamp(item, target):
    stamp = file_stamp(item) if is_path(item) else None
    if stamp is None or target is None:
        return stamp
    # What `content_id` gives depends on the target.
    return hashlib.sha256(f"reduced for {target}\0".encode() + stamp).digest()
