"""The encode loop: images in, embeddings out, each image and intervention once.

Decoding and interventions run in threads ahead of the model. A bounded number of
decoded images is in memory at a time, and what is finished is cached at once.
"""

import hashlib
import logging
import os
import uuid
import weakref
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import joblib
import numpy as np

from skclip_icm.cache import file_stamp, get_digests, put_digests
from skclip_icm.image_input import ImageError, read_content, row_error
from skclip_icm.images import decode, digest
from skclip_icm.interventions import (
    intervene,
    intervention_key,
    resolve_interventions,
)

logger = logging.getLogger("skclip_icm")

# Decoded images that may wait for the model, in batches: enough that neither idles.
_BATCHES_AHEAD = 4
# Rows whose content is hashed at a time, to bound the number of futures.
_ROWS_HASHED = 4096
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


def embed(items, encoder, views, store, *, batch_size, n_jobs, on_error, progress):
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
        Number of threads that decode; None means one per processor.
    on_error : {"raise", "nan"}
        What to do about an image that cannot be read.
    progress : callable
        ``progress(n_images)`` returns a context manager with an ``update(m)`` method.

    Returns
    -------
    embeddings : ndarray of shape (n, n_views, d), float32
        Embeddings as the model gives them; NaN for images that cannot be read.
    failed : list of int
        Rows of those images.

    Raises
    ------
    ImageError
        If an image cannot be read and `on_error` is "raise". Finished rows are in the
        cache by then.
    """
    n_threads = (
        joblib.cpu_count() if n_jobs is None else joblib.effective_n_jobs(n_jobs)
    )
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="skclip_icm")
    try:
        table = _Table(_digests(items, store, pool, on_error), encoder, views, store)
        jobs = table.missing()
        with progress(sum(len(job.views) for job in jobs)) as bar:
            ready = _render_ahead(
                jobs, items, encoder, views, pool, batch_size, on_error
            )
            for cells, pixels in _batches(ready, batch_size):
                table.fill(cells, _encode(encoder, pixels))
                bar.update(len(cells))
    finally:
        pool.shutdown(cancel_futures=True)
    return table.rows()


class _Job(NamedTuple):
    """The views that one image still lacks."""

    entry: int
    row: int
    content: bytes
    views: list


class _Table:
    """Embeddings by distinct content, filled from the cache and from the model."""

    def __init__(self, digests, encoder, views, store):
        self._store = store
        known = {}
        self._entry_of_row = [
            -1 if content is None else known.setdefault(content, len(known))
            for content in digests
        ]
        self._contents = list(known)
        self._keys = [
            [_key(content, encoder.fingerprint, view) for view in views]
            for content in known
        ]
        shape = len(known), len(views), encoder.n_features
        self._values = np.full(shape, np.nan, dtype=np.float32)
        self._present = np.zeros(shape[:2], dtype=bool)
        self._load()

    def missing(self):
        """Jobs for the cells that the cache did not hold, in row order."""
        first_row = {}
        for row, entry in enumerate(self._entry_of_row):
            first_row.setdefault(entry, row)
        return [
            _Job(entry, first_row[entry], content, np.flatnonzero(lacking).tolist())
            for entry, (content, lacking) in enumerate(
                zip(self._contents, ~self._present, strict=True)
            )
            if lacking.any()
        ]

    def fill(self, cells, embeddings):
        """Put freshly computed `embeddings` into `cells` and into the cache."""
        entries, views = np.array(cells).T
        self._values[entries, views] = embeddings
        self._present[entries, views] = True
        self._store.put_many([self._keys[e][v] for e, v in cells], embeddings)

    def rows(self):
        """Return the embeddings row by row, and the rows that failed."""
        entry_of_row = np.array(self._entry_of_row)
        failed = np.flatnonzero(
            (entry_of_row < 0) | ~self._present[entry_of_row].all(axis=1)
            if len(self._keys)
            else np.ones(len(entry_of_row), dtype=bool)
        )
        if np.array_equal(entry_of_row, np.arange(len(self._keys))):
            return self._values, failed.tolist()
        rows = np.full((len(entry_of_row), *self._values.shape[1:]), np.nan, np.float32)
        read = entry_of_row >= 0
        rows[read] = self._values[entry_of_row[read]]
        return rows, failed.tolist()

    def _load(self):
        keys = [key for row in self._keys for key in row]
        found = self._store.get_many(keys)
        flat = self._values.reshape(-1, self._values.shape[2])
        present = self._present.reshape(-1)
        for i, embedding in enumerate(found):
            if embedding is not None:
                flat[i], present[i] = embedding, True


def _digests(items, store, pool, on_error):
    """SHA-256 of each item's content; None where it cannot be read."""
    stamps = [file_stamp(item) if _is_path(item) else None for item in items]
    digests = get_digests(store, stamps)
    unknown = [row for row, content in enumerate(digests) if content is None]

    def hash_row(row):
        return digest(read_content(items[row], row), row)

    for start in range(0, len(unknown), _ROWS_HASHED):
        rows = unknown[start : start + _ROWS_HASHED]
        futures = [pool.submit(hash_row, row) for row in rows]
        for row, future in zip(rows, futures, strict=True):
            digests[row] = _result(future, on_error)
        read = [row for row in rows if digests[row] is not None]
        put_digests(
            store, [stamps[row] for row in read], [digests[row] for row in read]
        )
    return digests


def _render_ahead(jobs, items, encoder, views, pool, batch_size, on_error):
    """Yield ((entry, view), pixels), rendering a few batches ahead in threads."""

    def render(job):
        item = items[job.row]
        name = os.fsdecode(item) if _is_path(item) else ""
        content = read_content(item, job.row)
        if name and digest(content) != job.content:
            # Its embedding would be kept under the digest of other content.
            raise row_error(job.row, repr(name), "the file changed", "Encode it again.")
        image = encoder.resize(decode(content, job.row, name))
        return [
            ((job.entry, v), np.asarray(views[v].render(image, encoder)))
            for v in job.views
        ]

    jobs = iter(jobs)
    waiting = deque(pool.submit(render, job) for job in islice(jobs, batch_size))
    for _ in range(_BATCHES_AHEAD - 1):
        waiting.extend(pool.submit(render, job) for job in islice(jobs, batch_size))
    while waiting:
        rendered = _result(waiting.popleft(), on_error)
        waiting.extend(pool.submit(render, job) for job in islice(jobs, 1))
        yield from rendered or ()


def _batches(ready, batch_size):
    while batch := list(islice(ready, batch_size)):
        cells, pixels = zip(*batch, strict=True)
        yield cells, pixels


def _encode(encoder, pixels):
    """Embed a batch; in halves if it is too much for the device's memory."""
    import torch

    # Stacked (b, H, W, 3) pixels are, seen as (b, 3, H, W), in channels-last order.
    batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    try:
        return encoder.encode_images(batch)
    except (torch.OutOfMemoryError, MemoryError):
        if len(pixels) == 1:
            raise
        half = len(pixels) // 2
    return np.concatenate(
        [_encode(encoder, pixels[:half]), _encode(encoder, pixels[half:])]
    )


def _result(future, on_error):
    try:
        return future.result()
    except ImageError as error:
        if on_error == "raise":
            raise
        logger.warning("%s The embedding is NaN.", error)
        return None


def _lasting_key(intervention):
    """Text that tells what an intervention does, as long as the object lives."""
    key = intervention_key(intervention)
    if key is None:
        try:
            key = _KEYS_FOR_LIFE.setdefault(intervention, uuid.uuid4().hex)
        except TypeError:  # neither hashable nor weakly referable
            key = uuid.uuid4().hex
    return key


def _is_path(item):
    return isinstance(item, str | os.PathLike)


def _key(content, fingerprint, view):
    return hashlib.sha256(f"{fingerprint}\0{view.key}\0".encode() + content).digest()
