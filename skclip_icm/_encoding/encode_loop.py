"""The encode loop: images in, embeddings out, each image and intervention once.

What the cache holds is not decoded, equal images are encoded once, and what is finished
is cached at once. Beside the embeddings, a digest for each image is in memory.
"""

import hashlib
import logging
import os
import uuid
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from skclip_icm._encoding.parallel_encode import (
    Job,
    content_id,
    count_threads,
    encode_jobs,
    is_path,
)
from skclip_icm._encoding.stores import file_stamp, get_digests, put_digests
from skclip_icm._images.inputs import ImageError, describe, read_content, row_error
from skclip_icm.interventions import (
    intervene,
    intervention_key,
    resolve_interventions,
)

logger = logging.getLogger("skclip_icm")

# Rows hashed, or asked of the cache, at a time: bounds what is held beside the result.
_ROWS_AT_A_TIME = 1024
# Images that cannot be read and that are named in the log, in one call.
_MAX_TOLD = 10
# Callables whose code does not say all that they do have a key for their lifetime.
_KEYS_FOR_LIFE = weakref.WeakKeyDictionary()


class View(NamedTuple):
    """One rendering of each image: as it is, or after a draw of an intervention."""

    key: str
    intervention: object = None
    random_state: int = 0
    draw: int = 0

    def render(self, image, encoder):
        """Return `image`, of the model's input size, in this view."""
        if self.intervention is None:
            return image
        changed = intervene(
            image, self.intervention, random_state=self.random_state, draw=self.draw
        )
        return encoder.resize(changed)


AS_IS = View("as is")


def views_of(interventions, n_draws, random_state):
    """List the views that interventions make, draw by draw.

    Parameters
    ----------
    interventions : str, callable, or list or tuple of these
        As in `interventions.resolve_interventions`.
    n_draws : int
        Random draws of each.
    random_state : int
        Seed.

    Returns
    -------
    views : list of View
        One for each intervention and draw.
    """
    many = isinstance(interventions, list | tuple)
    entries = interventions if many else [interventions]
    resolve_interventions(entries)
    return [
        View(f"{_lasting_key(entry)}/{random_state}/{draw}", entry, random_state, draw)
        for entry in entries
        for draw in range(n_draws)
    ]


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
    expected=None,
):
    """Embed every view of every image.

    Parameters
    ----------
    items : sequence of length n
        Images, as `image_input.as_items` returns them.
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
        ``progress(n_images)`` returns a context manager with an ``update(m)`` method.
    jpeg_decoding : {"exact", "reduced"}, default="exact"
        Whether large JPEG files may be decoded at reduced size.
    expected : list of (bytes or None) of length n, default=None
        What an earlier call returned as `contents` of these images, if they must still
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

    n_told = 0

    def report(error):
        nonlocal n_told
        if on_error == "raise":
            raise error
        # Thousands may follow in images from the wild.
        level = logging.WARNING if n_told < _MAX_TOLD else logging.DEBUG
        logger.log(level, "%s The embedding is NaN.", error)
        n_told += 1

    contents = _contents(items, store, target, count_threads(n_jobs), report)
    if expected is not None:
        contents = [
            _unchanged(item, content, before, report)
            for item, content, before in zip(items, contents, expected, strict=True)
        ]
    table = _Table(contents, encoder, views, store)
    n_missing = table.n_missing
    with progress(n_missing) as bar:
        for cells, embeddings in encode_jobs(
            ((items[job.row], job) for job in table.missing()),
            n_missing,
            encoder,
            views,
            (batch_size, may_reduce),
            n_jobs=n_jobs,
            report=report,
        ):
            table.fill(cells, embeddings)
            bar.update(len(cells))
    embeddings, failed = table.rows()
    if n_told > _MAX_TOLD:
        logger.warning(
            "%d of %d images have embeddings of NaN; the first %d are named above.",
            len(failed),
            len(items),
            _MAX_TOLD,
        )
    return embeddings, failed, contents


class _Table:
    """Embeddings row by row, filled from the cache and from the model.

    Of rows with equal content, the first is filled, and the others at the end.
    """

    def __init__(self, contents, encoder, views, store):
        self._contents, self._views, self._store = contents, views, store
        self._fingerprint = encoder.fingerprint
        first = {}
        self._source = np.array(
            [
                -1 if content is None else first.setdefault(content, row)
                for row, content in enumerate(contents)
            ]
        )
        self._distinct = np.flatnonzero(self._source == np.arange(len(contents)))
        shape = len(contents), len(views), encoder.n_features
        self._values = np.full(shape, np.nan, dtype=np.float32)
        self._present = np.zeros(shape[:2], dtype=bool)
        self._load()

    @property
    def n_missing(self):
        """Number of views, of distinct images, that the cache did not hold."""
        return int(np.count_nonzero(~self._present[self._distinct]))

    def missing(self):
        """Iterate over the jobs that fill them, in row order."""
        for row in self._distinct:
            views = np.flatnonzero(~self._present[row])
            if len(views):
                yield Job(int(row), self._contents[row], views.tolist())

    def fill(self, cells, embeddings):
        """Put freshly computed `embeddings` into `cells` and into the cache."""
        rows, views = np.array(cells).T
        self._values[rows, views] = embeddings
        self._present[rows, views] = True
        self._store.put_many([self._key(*cell) for cell in cells], embeddings)

    def rows(self):
        """Return the embeddings, and the rows that failed."""
        read = self._source >= 0
        repeated = read.copy()
        repeated[self._distinct] = False
        for rows in _in_parts(np.flatnonzero(repeated)):
            self._values[rows] = self._values[self._source[rows]]
        complete = self._present.all(axis=1)
        return self._values, np.flatnonzero(~(read & complete[self._source])).tolist()

    def _load(self):
        for rows in _in_parts(self._distinct):
            views = range(len(self._views))
            cells = [(row, view) for row in rows.tolist() for view in views]
            found = self._store.get_many([self._key(*cell) for cell in cells])
            for cell, embedding in zip(cells, found, strict=True):
                if embedding is not None:
                    self._values[cell], self._present[cell] = embedding, True

    def _key(self, row, view):
        about = f"{self._fingerprint}\0{self._views[view].key}\0".encode()
        return hashlib.sha256(about + self._contents[row]).digest()


def _contents(items, store, target, n_threads, report):
    """Content of each item, as a digest; None where it cannot be read."""
    contents = []
    with ThreadPoolExecutor(n_threads, thread_name_prefix="skclip_icm") as pool:
        for rows in _in_parts(range(len(items))):
            stamps = [_stamp(items[row], target) for row in rows]
            known = get_digests(store, stamps)
            futures = [
                pool.submit(_identify, items[row], row, target)
                for row, content in zip(rows, known, strict=True)
                if content is None
            ]
            read = (_result(future, report) for future in futures)
            found = [next(read) if c is None else c for c in known]
            fresh = [
                i for i, c in enumerate(known) if c is None and found[i] is not None
            ]
            put_digests(store, [stamps[i] for i in fresh], [found[i] for i in fresh])
            contents += found
    return contents


def _in_parts(rows):
    for start in range(0, len(rows), _ROWS_AT_A_TIME):
        yield rows[start : start + _ROWS_AT_A_TIME]


def _stamp(item, target):
    stamp = file_stamp(item) if is_path(item) else None
    if stamp is None or target is None:
        return stamp
    # What `content_id` gives depends on the target.
    return hashlib.sha256(f"reduced for {target}\0".encode() + stamp).digest()


def _identify(item, row, target):
    return content_id(read_content(item, row), row, target)


def _unchanged(item, content, expected, report):
    """Return the digest `content`, or None if it is not the expected one."""
    if content is None or content == expected:
        return content
    name = repr(os.fsdecode(item)) if is_path(item) else describe(item)
    found = "the image is not the one that was embedded before"
    # Without a row: these may be some of the images that the user has passed.
    report(row_error(None, name, found, "Embed all images again."))


def _result(future, report):
    try:
        return future.result()
    except ImageError as error:
        report(error)


def _lasting_key(intervention):
    """Text that tells what an intervention does, as long as the object lives."""
    key = intervention_key(intervention)
    if key is None:
        try:
            key = _KEYS_FOR_LIFE.setdefault(intervention, uuid.uuid4().hex)
        except TypeError:  # neither hashable nor weakly referable
            key = uuid.uuid4().hex
    return key
