"""Files of the Hugging Face hub: from its cache, or downloaded, or why neither."""

import hashlib
import os
import re
import time
from contextlib import contextmanager, suppress
from inspect import signature
from pathlib import Path
from urllib.parse import urlsplit

from skclip_icm._encoding.converted_models import models_folder

# Every fit of a search loads the model: what has failed only after a wait is not
# waited for again so soon. In seconds.
_LONG, _PAUSE = 5.0, 30.0
_failures = {}
_BUSY = (408, 429)  # as after 5xx, the hub's client tries again
_PATIENCE = 60  # seconds that the hub may ask for until then
_SLOWEST = 1000  # bytes a second
_BEGINNINGS = 5  # of one file, by a server that breaks off and cannot resume
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # SHA-1 or SHA-256
_SMALL = 1 << 27  # bytes; larger files are weights


def find_file(repository, *names):
    """Return the path of the first of these files that a repository has.

    Nothing is asked of the hub where one of them is in its cache. Otherwise one is
    downloaded, or OSError says what has prevented it.
    """
    return _find_in_cache(repository, *names) or _once(
        repository, lambda: _download(repository, names)
    )


def from_cache_first(find, repository, name):
    """Call what reads files of a repository by itself; online only if it has to be.

    The hub's client would otherwise ask for news of every file that it has. `name` is
    of a file by which the hub is asked first whether it answers at all.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return find()
    _set_offline(True)
    try:
        return find()
    except (OSError, ValueError):
        pass  # something is missing
    finally:
        _set_offline(False)
    _once(repository, lambda: _etag(repository, name))
    return find()


def check_digest(path, weights_digest=None):
    """Raise OSError if a file of the hub's cache is not what its name says.

    The cache names large files by their SHA-256 and others by their SHA-1, as git
    does; but its client compares sizes only. A damaged file is removed, so that the
    next call downloads it. An intact one is noted with what its weights are hashed to,
    if that is given: one hash is then enough.
    """
    path = Path(path)
    # One step only: what the cache shares with others may have names of another kind.
    blob = path.parent / os.readlink(path) if path.is_symlink() else path
    if blob.parent.name != "blobs":
        return
    note = models_folder() / f"{blob.name}.intact"
    with suppress(OSError, ValueError):
        if weights_digest and note.read_text(encoding="ascii") == weights_digest:
            return
    if _compare(path, blob, blob.name) and weights_digest:
        with suppress(OSError):
            note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            note.write_text(weights_digest, encoding="ascii")


def small_files(repository):
    """Return the paths of what the hub's cache has of a repository, but its weights."""
    found = _folder(repository).glob("snapshots/*/*")
    return [path for path in found if path.is_file() and path.stat().st_size < _SMALL]


def _folder(repository):
    from huggingface_hub import constants, file_download

    name = file_download.repo_folder_name(repo_id=repository, repo_type="model")
    return Path(constants.HF_HUB_CACHE, name)


def _compare(path, blob, expected):
    """Return whether a name is a digest; OSError if it is that of other content."""
    if not _DIGEST.fullmatch(expected):
        return False
    name, found = _digest(path, expected)
    if found != expected:
        outcome = _remove(path, blob)
        raise OSError(
            f"{path} is damaged: its {name} is {found}, expected {expected}. {outcome}"
        )
    return True


def _digest(path, expected):
    """Return the name and value of the digest that a blob is named by."""
    with open(path, "rb") as file:
        if len(expected) == 64:
            return "SHA-256", hashlib.file_digest(file, "sha256").hexdigest()
        content = file.read()
    header = b"blob %d\0" % len(content)
    found = {hashlib.sha1(part + content).hexdigest() for part in (header, b"")}
    # Some mirrors of the hub leave the header out.
    return "SHA-1", expected if expected in found else sorted(found)[0]


def _remove(path, blob):
    try:
        path.unlink()
        blob.unlink(missing_ok=True)
    except OSError as error:
        return f"Remove it, and it is downloaded again ({error})."
    return "It was removed; the next call downloads it again."


def _find_in_cache(repository, *names):
    from huggingface_hub import constants, try_to_load_from_cache

    for name in names:
        path = try_to_load_from_cache(repository, name, constants.HF_HUB_CACHE)
        if isinstance(path, str):  # else None, or an object for "not in the hub"
            return path
    return None


def _download(repository, names):
    from huggingface_hub import constants

    for name in names:
        etag = _etag(repository, name)
        if etag is not None:
            with _one_at_a_time(repository):
                # Another process may have downloaded it meanwhile.
                found = _find_in_cache(repository, name)
                return found or _download_one(repository, name, etag)
    raise FileNotFoundError(
        f"{repository} at {constants.ENDPOINT} has no {' or '.join(names)}."
    )


@contextmanager
def _one_at_a_time(repository):
    """Let no other process download from a repository, in a ``with`` block.

    The hub's client has locks of its own, but puts a file that is there in its place
    once more, while others read it; without links, having downloaded it again.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import WeakFileLock

    folder = Path(constants.HF_HUB_CACHE, ".locks", _folder(repository).name)
    folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(folder / "skclip_icm.lock") as lock:
        try:
            yield
        finally:
            lock.release()  # which early clients leave out after an error


def _download_one(repository, name, etag):
    from huggingface_hub import constants, hf_hub_download

    try:
        with _ending_what_crawls() as options:
            path = hf_hub_download(
                repository, name, cache_dir=constants.HF_HUB_CACHE, **options
            )
    except OSError as error:
        if type(error) is OSError:  # of the content or the disk, not the network
            _remove_unfinished(repository, etag)
        raise
    if not os.path.islink(path):  # such a cache, as on Windows, keeps no digests
        _compare(Path(path), Path(path), etag)
    return path


def _remove_unfinished(repository, etag):
    """Remove what clients before 2.0 would go on with, though it cannot be right."""
    with suppress(OSError):
        (_folder(repository) / "blobs" / f"{etag}.incomplete").unlink()


@contextmanager
def _ending_what_crawls():
    """Give the options by which the hub's client ends a download that hardly moves.

    By itself it ends one only where nothing comes. Clients before 1.1 have no such
    option.
    """
    from huggingface_hub import constants, hf_hub_download

    if "tqdm_class" not in signature(hf_hub_download).parameters:
        yield {}
        return
    size = constants.DOWNLOAD_CHUNK_SIZE
    constants.DOWNLOAD_CHUNK_SIZE = None  # as it comes: 10 MB may never be full
    try:
        yield {"tqdm_class": _impatient_bar()}
    finally:
        constants.DOWNLOAD_CHUNK_SIZE = size


def _impatient_bar():
    """Return the client's progress bar as a class that raises OSError in time."""
    from huggingface_hub import constants, utils

    window = 6 * constants.HF_HUB_DOWNLOAD_TIMEOUT

    class ImpatientBar(utils.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self._beginnings = 1
            self._restart_clock()

        def update(self, n=1):
            if n < 0:  # what has come is thrown away
                self._beginnings += 1
                self._restart_clock()
            self._bytes += max(n, 0)
            self._check()
            return super().update(n)

        def _restart_clock(self):
            self._since, self._bytes = time.monotonic(), 0

        def _check(self):
            seconds = time.monotonic() - self._since
            if self._beginnings > _BEGINNINGS:
                raise OSError(
                    f"the download from {constants.ENDPOINT} broke off {_BEGINNINGS} "
                    "times, and cannot be resumed."
                )
            if seconds > window and self._bytes < _SLOWEST * seconds:
                raise TimeoutError(
                    f"the download from {constants.ENDPOINT} brought {self._bytes} "
                    f"bytes in {seconds:.0f} s, expected at least {_SLOWEST} a second. "
                    "To wait longer, set HF_HUB_DOWNLOAD_TIMEOUT, of which this is 6 "
                    "times."
                )
            if seconds > window:
                self._restart_clock()

    return ImpatientBar


def _etag(repository, name):
    """Return what the hub names the content of a file by, such as its SHA-256.

    None where there is no such file, "" where the hub is busy; an error at once if it
    does not answer. The hub's client would try for minutes. It is asked by that
    client's own means, so with its proxies, certificates, token and timeout.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import EntryNotFoundError, HfHubHTTPError

    if urlsplit(constants.ENDPOINT).scheme not in ("http", "https"):
        raise OSError(
            f"the environment variable HF_ENDPOINT is {constants.ENDPOINT!r}, expected "
            "an address that begins with https:// or http://."
        )
    url, timeout = hf_hub_url(repository, name), constants.HF_HUB_ETAG_TIMEOUT
    try:
        return get_hf_file_metadata(url, timeout=timeout).etag or ""
    except EntryNotFoundError:
        return None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status < 500 and status not in _BUSY:
            raise
        if (seconds := _asked_to_wait(error.response)) > _PATIENCE:
            raise OSError(
                f"{constants.ENDPOINT} answers {status}, and asks to come back in "
                f"{seconds} s."
            ) from error
    return ""


def _asked_to_wait(response):
    """Return the seconds that the hub's client would silently wait."""
    limit = re.search(r"\bt=(\d+)", response.headers.get("RateLimit", ""))
    after = response.headers.get("Retry-After", "")
    return max(int(limit[1]) if limit else 0, int(after) if after.isdecimal() else 0)


def _once(repository, ask):
    """Call what asks the hub; raise what went wrong first, as OSError."""
    from huggingface_hub import constants

    key = constants.ENDPOINT, repository
    start = time.monotonic()
    until, message = _failures.get(key, (start, ""))
    if start < until:
        raise OSError(
            f"{message}\nThat was a moment ago; {constants.ENDPOINT} is asked again in "
            f"{until - start:.0f} s."
        )
    try:
        return ask()
    except Exception as error:  # of the client's network library, which is its affair
        message = _first_cause(error)
        now = time.monotonic()
        if now - start > _LONG:
            _failures[key] = now + _PAUSE, message
        raise OSError(message) from error


def _first_cause(error):
    from huggingface_hub.utils import LocalEntryNotFoundError

    # Which says no more than that the file is not in the cache either.
    while isinstance(error, LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__
    kind, text = type(error).__name__, str(error).strip()
    return text if type(error) in (OSError, FileNotFoundError) else f"{kind}: {text}"


def _set_offline(value):
    from huggingface_hub import constants, utils

    constants.HF_HUB_OFFLINE = value
    if hasattr(utils, "reset_sessions"):  # before 1.0, sessions remembered the setting
        utils.reset_sessions()
