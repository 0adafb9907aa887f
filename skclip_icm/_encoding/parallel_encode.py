"""From jobs to embeddings, on all processors: decode ahead of the model, in parallel.

Images are decoded and rendered in threads while the model runs in its own (`lanes`).
If `joblib.parallel_config` has set a backend of processes, its workers do the same with
parts of the jobs.
"""

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from itertools import islice
from typing import NamedTuple

import joblib
import numpy as np
from joblib.parallel import MultiprocessingBackend, get_active_backend

from skclip_icm._encoding.encoder import load_encoder
from skclip_icm._encoding.lanes import encode_batch, start_lanes
from skclip_icm._images.decoding import decode, digest
from skclip_icm._images.inputs import ImageError, read_content, row_error

# Decoded images that may wait for the model, in batches: enough that neither idles.
_BATCHES_AHEAD = 4


class Job(NamedTuple):
    """The views that one image still lacks."""

    row: int
    content: bytes
    views: list


def encode_jobs(tasks, n_cells, encoder, views, options, *, n_jobs, report):
    """Embed the views that images lack.

    Parameters
    ----------
    tasks : iterable of (image, Job)
        What to embed, taken as it is needed.
    n_cells : int
        Number of views in all jobs.
    encoder : Encoder
        The loaded model.
    views : list of View
        What `Job.views` counts.
    options : (int, bool)
        Images per forward pass, and whether JPEG files may be decoded reduced.
    n_jobs : int or None
        Number of threads or processes. None is what joblib's configuration says, or
        else one thread for each processor.
    report : callable
        ``report(error)`` is told of an `ImageError` and raises it or does not.

    Yields
    ------
    cells : list of (int, int)
        Row and view.
    embeddings : ndarray of shape (len(cells), d), float32
        Their embeddings.
    """
    batch_size, _ = options
    n_processes = count_processes(n_jobs) if encoder.device.type == "cpu" else 1
    if n_processes > 1 and n_cells > batch_size:
        run = _in_processes(tasks, n_cells, encoder, views, options, n_processes)
        for cells, embeddings, errors in run:
            if cells:
                yield cells, embeddings
            for error in errors:
                report(error)
    else:
        n_threads = count_threads(n_jobs)
        yield from _in_threads(
            tasks, n_cells, encoder, views, options, n_threads, report
        )


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


def _in_processes(tasks, n_cells, encoder, views, options, n_processes):
    """Yield cells, embeddings and errors, part by part from joblib's workers."""
    backend, _ = get_active_backend()
    # Parts are small, so that little is lost with one, and alike for all workers.
    n_batches = -(-n_cells // (n_processes * options[0]))
    part_size = max(1, min(_BATCHES_AHEAD, n_batches) * options[0] // len(views))
    tasks = iter(tasks)
    parallel = joblib.Parallel(
        n_processes,
        batch_size=1,
        return_as="generator" if backend.supports_return_generator else "list",
    )
    model = encoder.recipe, encoder.fingerprint
    yield from parallel(
        joblib.delayed(_encode_part)(part, model, views, options, n_processes)
        for part in iter(lambda: list(islice(tasks, part_size)), [])
    )


def _encode_part(tasks, model, views, options, n_processes):
    """Embed a few jobs in a worker process, which loads the model once."""
    import torch

    recipe, fingerprint = model
    encoder = load_encoder(**recipe)
    if encoder.fingerprint != fingerprint:
        raise RuntimeError(
            f"A worker process loaded other weights for {recipe} than this process "
            "did. Give all machines the same files."
        )
    all_cells, parts, errors = [], [], []
    n_cells = sum(len(job.views) for _, job in tasks)
    n_threads = max(1, joblib.cpu_count() // n_processes)
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        run = _in_threads(
            tasks, n_cells, encoder, views, options, n_threads, errors.append
        )
        for cells, embeddings in run:
            all_cells.extend(cells)
            parts.append(embeddings)
    finally:
        torch.set_num_threads(before)
    return all_cells, np.concatenate(parts) if parts else None, errors


# Threads


def _in_threads(tasks, n_cells, encoder, views, options, n_threads, report):
    """Yield cells and embeddings, batch by batch."""
    batch_size, may_reduce = options
    lanes, n_lanes = start_lanes(encoder, -(-n_cells // batch_size), n_threads)
    decoders = ThreadPoolExecutor(n_threads, thread_name_prefix="skclip_icm-decode")

    def render(task):
        item, job = task
        return decoders.submit(_render, item, job, encoder, views, may_reduce)

    def encode(batch):
        return lanes.submit(encode_batch, *batch, encoder)

    try:
        n_ahead = max(n_threads, _BATCHES_AHEAD * batch_size // len(views))
        rendered = _unpack(_ahead(render, tasks, n_ahead), report)
        yield from _ahead(encode, _batches(rendered, batch_size), n_lanes + 1)
    finally:
        decoders.shutdown(cancel_futures=True)
        lanes.shutdown(cancel_futures=True)


def _ahead(submit, tasks, n_ahead):
    """Yield what tasks give, in order, with `n_ahead` submitted before they are needed.

    Should there be an image that `tasks` cannot go on from, what was submitted before
    is yielded first.
    """
    tasks, waiting, failure, done = iter(tasks), deque(), None, False
    while True:
        try:
            while not done and len(waiting) < n_ahead:
                waiting.append(submit(next(tasks)))
        except StopIteration:
            done = True
        except ImageError as error:
            failure, done = error, True
        if not waiting:
            break
        yield waiting.popleft().result()
    if failure is not None:
        raise failure


def _render(item, job, encoder, views, may_reduce):
    """Return [((row, view), pixels)] of one image, or the error that it is."""
    target = encoder.image_size if may_reduce else None
    name = os.fsdecode(item) if is_path(item) else ""
    try:
        content = read_content(item, job.row)
        if name and content_id(content, job.row, target) != job.content:
            # Its embedding would be kept under the digest of other content.
            raise row_error(job.row, repr(name), "the file changed", "Encode it again.")
        image = decode(content, job.row, name, target, encoder.resize)
        return [
            ((job.row, v), np.asarray(views[v].render(image, encoder)))
            for v in job.views
        ]
    except ImageError as error:
        return error


def _unpack(rendered, report):
    for cells in rendered:
        if isinstance(cells, ImageError):
            report(cells)
        else:
            yield from cells


def _batches(ready, batch_size):
    """Yield batches of cells and of pixels; the last one before an error, too."""
    batch, failure = [], None
    try:
        for cell in ready:
            batch.append(cell)
            if len(batch) == batch_size:
                yield tuple(zip(*batch, strict=True))
                batch = []
    except ImageError as error:
        failure = error
    if batch:
        yield tuple(zip(*batch, strict=True))
    if failure is not None:
        raise failure
