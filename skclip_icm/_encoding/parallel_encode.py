"""From jobs to embeddings, on all processors: decode ahead of the model, in parallel.

Images are decoded and rendered in threads while the model runs in its own (`lanes`).
If `joblib.parallel_config` has set a backend of processes, its workers do the same with
parts of the jobs.
"""

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from itertools import chain, islice
from typing import NamedTuple

import joblib
import numpy as np
from joblib.parallel import MultiprocessingBackend, get_active_backend

from skclip_icm._encoding.encoder import load_encoder
from skclip_icm._encoding.lanes import encode_batch, start_lanes
from skclip_icm._encoding.views import AS_IS
from skclip_icm._images.decoding import decode, digest
from skclip_icm._images.inputs import ImageError
from skclip_icm._images.telling import tell_blank

# Decoded images that may wait for the model, in batches: enough that neither idles.
_BATCHES_AHEAD = 4
# Jobs that are looked at to tell few images from many.
_MAX_PEEK = 32
# Files that may wait to be decoded, and to be sent to a worker.
_MAX_BYTES = 2**28
_MAX_PART_BYTES = 2**25


class Cell(NamedTuple):
    """One view of one image, and the key of its embedding in the cache."""

    row: int
    view: int
    key: bytes | None  # None as long as it depends on pixels that are not rendered


class Job(NamedTuple):
    """An image that was read, and the cells that it still lacks."""

    row: int
    name: str  # of its file, for messages
    content: object
    cells: list


def encode_jobs(jobs, n_cells, encoder, views, options, *, n_jobs, recall):
    """Embed the views that images lack.

    Parameters
    ----------
    jobs : iterable of Job or ImageError
        What to embed, taken as it is needed. Errors are handed on, in order.
    n_cells : int
        Number of views in all jobs, at most.
    encoder : Encoder
        The loaded model.
    views : list of View
        What `Cell.view` counts.
    options : (int, bool)
        Images per forward pass, and whether JPEG files may be decoded reduced.
    n_jobs : int or None
        Number of threads or processes. None is what joblib's configuration says, or
        else one thread for each processor.
    recall : callable
        ``recall(cells)`` returns the set of cells that need no embedding. It is asked
        of those whose key came of their pixels.

    Yields
    ------
    cells : list of Cell
        With their keys.
    embeddings : ndarray of shape (len(cells), d), float32, or None
        Their embeddings; None if there are no cells.
    errors : list of ImageError
        Images that cannot be read, all before them having been yielded.
    """
    batch_size, _ = options
    jobs = iter(jobs)
    head = list(islice(jobs, min(batch_size, _MAX_PEEK) + 1))
    are_few = len(head) <= min(batch_size, _MAX_PEEK)
    if are_few:
        n_cells = sum(len(job.cells) for job in head if isinstance(job, Job))
    jobs = chain(head, jobs)
    n_processes = count_processes(n_jobs) if encoder.device.type == "cpu" else 1
    if n_processes > 1 and not are_few:
        yield from _in_processes(jobs, n_cells, encoder, views, options, n_processes)
    elif head:
        n_threads = count_threads(n_jobs)
        yield from _in_threads(
            jobs, n_cells, encoder, views, options, n_threads, recall
        )


def ahead(submit, tasks, n_ahead):
    """Yield what tasks give, in order, with some submitted before they are needed.

    Parameters
    ----------
    submit : callable
        ``submit(task)`` returns a future.
    tasks : iterable
        Taken as needed.
    n_ahead : int
        How many to submit before they are needed; fewer where those that are waiting
        hold large files.

    Yields
    ------
    result : object
        Of each task. Should one fail, what was submitted before is yielded first.
    """
    tasks, waiting, failure, done = iter(tasks), deque(), None, False
    while True:
        try:
            while not done and len(waiting) < n_ahead and _held(waiting) < _MAX_BYTES:
                task = next(tasks)
                waiting.append((submit(task), _n_bytes(task)))
        except StopIteration:
            done = True
        except Exception as error:
            failure, done = error, True
        if not waiting:
            break
        yield waiting.popleft()[0].result()
    if failure is not None:
        raise failure


def _held(waiting):
    return sum(n_bytes for future, n_bytes in waiting if not future.done())


def _n_bytes(task):
    content = getattr(task, "content", None)
    return len(content) if isinstance(content, bytes) else 0


def count_processes(n_jobs):
    """Return the number of worker processes that joblib's configuration asks for.

    It is 1 unless `joblib.parallel_config` has set a backend of processes, and within
    a worker. A backend that forks (multiprocessing) counts as one of threads, since
    OpenMP does not survive a fork.
    """
    backend, _ = get_active_backend(prefer="threads")
    if (
        getattr(backend, "uses_threads", False)
        or type(backend) is MultiprocessingBackend
        or backend.nesting_level
    ):
        return 1
    return joblib.effective_n_jobs(n_jobs)


def count_threads(n_jobs):
    """Return the number of threads that `n_jobs` and joblib's configuration ask for."""
    backend, configured = get_active_backend()
    n_jobs = configured if n_jobs is None else n_jobs
    if n_jobs is not None:
        return joblib.effective_n_jobs(n_jobs)
    if backend.nesting_level:
        import torch

        return torch.get_num_threads()  # A worker's share of the processors.
    return joblib.cpu_count()


def content_id(content, row=None, target=None):
    """Return the digest of an image's content and, where it matters, of its decoding.

    Parameters
    ----------
    content : bytes, PIL image or uint8 array
        What `read_content` returned.
    row : int, optional
        Its position, for the error message.
    target : (int, int), optional
        Height and width, if JPEG files may be decoded at reduced size for it.

    Returns
    -------
    bytes
        32 bytes. A JPEG file large enough to be reduced has another one with `target`
        than without; everything else has the same.
    """
    found = digest(content, row)
    if target is not None and _may_reduce(content, target):
        return sha256(b"reduced\0" + found).digest()
    return found


def is_path(item):
    """Whether an image is given by the path of its file."""
    return isinstance(item, str | os.PathLike)


def _may_reduce(content, target):
    if not isinstance(content, bytes) or not content.startswith(b"\xff\xd8"):
        return False
    sides = _jpeg_sides(content)
    return sides is None or min(sides) >= 4 * min(target)


def _jpeg_sides(content):
    """Height and width by the header of a JPEG file, or None if it is not found.

    Source: ITU-T T.81, B.2.2: a frame header is 0xFFC0 to 0xFFCF, but for three other
    segments, then length (2 bytes), precision (1), height (2) and width (2).
    """
    position = 2
    while position + 9 <= len(content) and content[position] == 0xFF:
        marker = content[position + 1]
        if marker == 0xFF:  # padding
            position += 1
        elif marker & 0xF0 == 0xC0 and marker not in (0xC4, 0xC8, 0xCC):
            sides = content[position + 5 : position + 9]
            return int.from_bytes(sides[:2], "big"), int.from_bytes(sides[2:], "big")
        else:
            length = content[position + 2 : position + 4]
            position += 2 + int.from_bytes(length, "big")
    return None


# Processes


def _in_processes(jobs, n_cells, encoder, views, options, n_processes):
    """Yield as `encode_jobs`, part by part from joblib's workers."""
    backend, _ = get_active_backend()
    # Parts are small, so that little is lost with one, and alike for all workers.
    n_batches = -(-n_cells // (n_processes * options[0]))
    part_size = max(1, min(_BATCHES_AHEAD, n_batches) * options[0] // len(views))
    parts = _parts(jobs, part_size)
    model = encoder.recipe, encoder.fingerprint
    encode = joblib.delayed(_encode_part)
    with joblib.Parallel(
        n_processes,
        batch_size=1,
        return_as="generator" if backend.supports_return_generator else "list",
    ) as parallel:
        # Not one call with all parts: joblib would read on in threads of its own, and
        # what failed there would end nowhere.
        some = list(islice(parts, 2 * n_processes))
        while some:
            found = parallel(
                encode(part, model, views, options, n_processes) for part in some
            )
            some = list(islice(parts, 2 * n_processes))  # while the workers work
            yield from found


def _parts(jobs, size):
    part, n_bytes = [], 0
    for job in jobs:
        part.append(job)
        n_bytes += _n_bytes(job)
        if len(part) == size or n_bytes > _MAX_PART_BYTES:
            yield part
            part, n_bytes = [], 0
    if part:
        yield part


def _encode_part(jobs, model, views, options, n_processes):
    """Embed a few jobs in a worker process, which loads the model once."""
    import torch

    recipe, fingerprint = model
    encoder = load_encoder(**recipe)
    if encoder.fingerprint != fingerprint:
        raise RuntimeError(
            f"A worker process loaded other weights for {recipe} than this process "
            "did. Give all machines the same files."
        )
    n_cells = sum(len(job.cells) for job in jobs if isinstance(job, Job))
    n_threads = max(1, joblib.cpu_count() // n_processes)
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        run = _in_threads(jobs, n_cells, encoder, views, options, n_threads, _none)
        cells, embeddings, errors = zip(*run, strict=True)
    finally:
        torch.set_num_threads(before)
    computed = [part for part in embeddings if part is not None]
    return (
        [cell for part in cells for cell in part],
        np.concatenate(computed) if computed else None,
        [error for part in errors for error in part],
    )


def _none(cells):
    """Recall nothing: a worker cannot ask a cache that may be an object in memory."""
    return ()


# Threads


def _in_threads(jobs, n_cells, encoder, views, options, n_threads, recall):
    """Yield as `encode_jobs`, batch by batch."""
    batch_size, may_reduce = options
    target = encoder.image_size if may_reduce else None
    lanes, n_lanes = start_lanes(encoder, -(-n_cells // batch_size), n_threads)
    decoders = ThreadPoolExecutor(n_threads, thread_name_prefix="skclip_icm-decode")

    def render(job):
        return decoders.submit(_render, job, encoder, views, target)

    def encode(batch):
        return lanes.submit(_encode, *batch, encoder)

    try:
        n_ahead = max(n_threads, _BATCHES_AHEAD * batch_size // len(views))
        rendered = ahead(render, jobs, n_ahead)
        batches = _batches(rendered, batch_size, views, recall)
        yield from ahead(encode, batches, n_lanes + 1)
    finally:
        decoders.shutdown(cancel_futures=True)
        lanes.shutdown(cancel_futures=True)


def _render(job, encoder, views, target):
    """Return [(cell, pixels)] of one image, or the error that it is."""
    if isinstance(job, ImageError):
        return job
    try:
        image = decode(job.content, job.row, job.name, target, encoder.resize)
        if AS_IS in views:
            tell_blank(image, job.content, job.row, job.name)
        return [_pixels(cell, views, image, encoder) for cell in job.cells]
    except ImageError as error:
        return error


def _pixels(cell, views, image, encoder):
    try:
        pixels = np.asarray(views[cell.view].render(image, encoder))
    except Exception as error:
        error.add_note(f"It was raised for the image in row {cell.row}.")
        raise
    if cell.key is None:  # the embedding is that of an image of these pixels
        key = AS_IS.embedding_key(encoder.fingerprint, digest(pixels))
        cell = cell._replace(key=key)
    return cell, pixels


def _batches(rendered, batch_size, views, recall):
    """Yield batches of cells, of pixels, and of the errors among them."""
    cells, pixels, errors = [], [], []
    for found in rendered:
        if isinstance(found, ImageError):
            errors.append(found)
            found = []
        by_pixels = [cell for cell, _ in found if views[cell.view].key is None]
        known = recall(by_pixels)
        for cell, image in found:
            if cell not in known:
                cells.append(cell)
                pixels.append(image)
        while len(cells) + len(errors) >= batch_size:
            yield cells[:batch_size], pixels[:batch_size], errors
            cells, pixels, errors = cells[batch_size:], pixels[batch_size:], []
    if cells or errors:
        yield cells, pixels, errors


def _encode(cells, pixels, errors, encoder):
    embeddings = encode_batch(cells, pixels, encoder)[1] if cells else None
    return cells, embeddings, errors
