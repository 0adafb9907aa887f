"""Embed images into files, part by part; what is finished is not done again."""

import hashlib
import json
import logging
import os
import warnings
from contextlib import suppress
from numbers import Integral

import numpy as np
from sklearn.utils import Bunch

from skclip_icm._encoding.parallel_encode import content_id, is_path
from skclip_icm._encoding.stores import file_stamp
from skclip_icm._encoding.views import AS_IS
from skclip_icm._estimators import HasMethods, Interval, StrOptions, validate_params
from skclip_icm._images.inputs import ImageError, as_items, read_content
from skclip_icm._images.reading import as_path
from skclip_icm._locks import locked_file
from skclip_icm._replacing import remove_unfinished, replacing
from skclip_icm.files._embedding_files import EmbeddingFiles
from skclip_icm.files._parts import write_npy
from skclip_icm.interventions import resolve_interventions

logger = logging.getLogger("skclip_icm")

_RECORD = "embed_files.json"
_LOCK = ".embed_files.lock"
_FOLDERS = "img_emb", "metadata"
_COLUMN = "embedding"
_MAX_TOLD = 10


@validate_params(
    {
        "X": "no_validation",
        "featurizer": [HasMethods(["intervene", "encode_text"])],
        "folder": [str, os.PathLike],
        "file_format": [StrOptions({"npy", "parquet"})],
        "rows_per_file": [Interval(Integral, 1, None, closed="left")],
    },
    prefer_skip_nested_validation=True,
)
def embed_files(X, featurizer, folder, *, file_format="npy", rows_per_file=10_000):
    """Embed images, and their counterparts, into files in parts.

    A part is written when it is finished. Called again after an interruption, the
    same call goes on behind the last finished part; where nothing is left to do, it
    returns what is there. A part that was removed or is not what was written is written
    again. Images are known by their content: where the files are as they were, by path,
    size and times, they are not read again. Interventions that are functions are known
    by their names.

    Parameters
    ----------
    X : sequence of length n
        Images, as for `CLIPFeaturizer`.
    featurizer : CLIPFeaturizer
        What embeds. Its `interventions` make the counterparts, none if it is None.
        With ``on_error="nan"``, rows that cannot be read are left out.
    folder : path
        Where to write. With "npy" it gets ``img_emb/img_emb_0.npy``, ``img_emb_1.npy``
        and so on, as clip-retrieval names them, and for each counterpart files of the
        same names in ``img_emb_do_0``, ``img_emb_do_1``, ... With "parquet" it gets
        ``metadata/metadata_0.parquet`` and so on, with the columns "row", "image_path"
        (where images are paths), "embedding", "embedding_do_0", ...
    file_format : {"npy", "parquet"}, default="npy"
        Form of the files. "parquet" needs the extra ``parquet``.
    rows_per_file : int, default=10_000
        Images in a part.

    Returns
    -------
    files : Bunch
        ``embeddings``: `EmbeddingFiles`; ``counterparts``: list of `EmbeddingFiles`, as
        `X_do` of `fit_files` takes it; ``failed``: list of int, the rows of `X` that
        are left out. ``numpy.delete(y, files.failed)`` are the labels of the rest.

    Raises
    ------
    ImageError
        If an image cannot be read, unless the featurizer has ``on_error="nan"``.
    ValueError
        If the folder holds embeddings of other images, or of files that have changed
        since, by another model, in other parts, or if no image can be read.
    FileExistsError
        If the folder holds such files that this function has not written.
    BlockingIOError
        If another process or thread is embedding into the folder.
    ImportError
        If pyarrow is missing, for "parquet".

    Warns
    -----
    UserWarning
        If rows are left out.

    See Also
    --------
    fit_files : Fit an `ICMTransformer` to what is written.
    skclip_icm.distributed.embed : The same on a cluster.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> from skclip_icm import CLIPFeaturizer, ICMTransformer, embed_files, fit_files
    >>> images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files = embed_files(
    ...         images, CLIPFeaturizer("demo"), folder, rows_per_file=2
    ...     )
    ...     print(files.embeddings)
    ...     icm = fit_files(
    ...         files.embeddings, ICMTransformer(2), X_do=files.counterparts
    ...     )
    <EmbeddingFiles: 5 x 1280 float32 in 3 files>
    """
    items, folder = as_items(X), as_path(folder)
    views = [AS_IS, *featurizer._views(featurizer.interventions)]
    about = _about(featurizer, views, file_format, rows_per_file)
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"Another embed_files is writing to {folder}: wait for it, or give another."
    with locked_file(folder / _LOCK, busy):
        record = _Record(folder, about)
        remove_unfinished(folder)
        n_parts = _embed_parts(items, featurizer, views, folder, record)
    failed = record.failed
    if len(failed) == len(items):
        raise ValueError(
            f"None of the {len(items)} images of X can be read. The log of "
            "'skclip_icm' names the first ones."
        )
    if failed:
        shown = ", ".join(map(str, failed[:_MAX_TOLD]))
        more = ", ..." if len(failed) > _MAX_TOLD else ""
        warnings.warn(
            f"{len(failed)} of {len(items)} images cannot be read and are left out, "
            f"rows {shown}{more}. Leave them out of y and the like: numpy.delete(y, "
            "files.failed).",
            UserWarning,
            stacklevel=3,  # the one that checks parameters lies between
        )
    return _open(folder, file_format, n_parts, len(views) - 1, failed)


def _embed_parts(items, featurizer, views, folder, record):
    """Write the parts that are not finished; return the number of all."""
    file_format = record.about["file_format"]
    rows_per_file = record.about["rows_per_file"]
    write = {"npy": _write_npy, "parquet": _write_parquet}[file_format]
    reduced = featurizer.jpeg_decoding == "reduced"
    target = featurizer._encoder().image_size if reduced else None
    strict = featurizer.on_error == "raise"
    starts = range(0, len(items), rows_per_file)
    for part, start in enumerate(starts):
        rows = np.arange(start, min(start + rows_per_file, len(items)))
        files = _files_of_part(folder, file_format, part, len(views))
        if record.has(part, files, items, rows, target, strict):
            continue
        stamps = _stamps(items, rows)  # before the files are read
        embeddings, failed, contents = featurizer._embed(items, views, rows)
        kept = ~np.isin(rows, failed)
        write(files, rows[kept], embeddings[kept], items)
        noted = {
            "files": list(map(_digest, files)),
            "failed": [int(row) for row in failed],
            "images": _combined(contents),
            "stamps": stamps,
        }
        record.add(part, noted)
        logger.info("%s: part %d of %d is written.", folder, part + 1, len(starts))
    record.check_end(len(starts))
    return len(starts)


class _Record:
    """What is finished, in a small file that is replaced after each part."""

    def __init__(self, folder, about):
        self._path, self.about, self._parts = folder / _RECORD, about, []
        if not self._path.exists():
            foreign = [name for name in _FOLDERS if (folder / name).exists()]
            if foreign:
                raise FileExistsError(
                    f"{folder / foreign[0]} is there already, and not by embed_files: "
                    f"there is no {_RECORD} beside it. Give another folder."
                )
            self._save()
            return
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            content = {"about": found["about"], "parts": found["parts"]}
            intact = found["checksum"] == _checksum(content)
            why = "its checksum is another"
        except (ValueError, TypeError, KeyError) as error:
            intact, why = False, error
        if not intact:
            raise ValueError(
                f"{self._path} is damaged, or not by embed_files ({why}). Give "
                "another folder, or remove that one."
            )
        there, self._parts = content["about"], content["parts"]
        differing = [key for key in about if there.get(key) != about[key]]
        if differing:
            raise ValueError(
                f"{folder} holds embeddings made with another {differing[0]}: "
                f"{there.get(differing[0])!r} there, {about[differing[0]]!r} "
                "now. Give another folder, or remove that one."
            )

    @property
    def failed(self):
        """Rows that are left out."""
        return [row for part in self._parts for row in part["failed"]]

    def has(self, part, files, items, rows, target, strict):
        """Say whether a part is finished; ValueError if it is of other images.

        With `strict`, one that leaves out rows is not: embedding them raises.
        """
        if part >= len(self._parts):
            return False
        noted = self._parts[part]
        if strict and noted["failed"]:
            return False
        if not all(map(_is_as_written, files, noted["files"])):
            return False
        stamps = _stamps(items, rows)
        if stamps is not None and stamps == noted["stamps"]:
            return True
        if _combined(_read_contents(items, rows, target)) != noted["images"]:
            raise ValueError(
                f"{self._path.parent} holds embeddings of other images in the rows "
                f"{rows[0]} to {rows[-1]}, or these have changed since. Give another "
                "folder, or the images that it was begun with, in the same order; to "
                f"embed these rows again, remove {files[0]}."
            )
        with suppress(OSError):  # it only saves time, and the disk may be read-only
            self.add(part, {**noted, "stamps": stamps})
        return True

    def add(self, part, noted):
        """Note that a part is finished."""
        self._parts[part : part + 1] = [noted]
        self._save()

    def _save(self):
        content = {"about": self.about, "parts": self._parts}
        text = json.dumps({**content, "checksum": _checksum(content)})
        with replacing(self._path) as path:
            path.write_text(text, encoding="utf-8")

    def check_end(self, n_parts):
        """Raise if there are more parts than these images make."""
        if len(self._parts) > n_parts:
            raise ValueError(
                f"{self._path.parent} holds {len(self._parts)} parts, X makes "
                f"{n_parts}: it is of more images. Give another folder."
            )


def _about(featurizer, views, file_format, rows_per_file):
    names = None
    if featurizer.interventions is not None:
        names = [name for name, _ in resolve_interventions(featurizer.interventions)]
    keys = [view.key for view in views]
    return {
        "model": featurizer._encoder().fingerprint,
        "interventions": names,
        # A function has no key, and another seed with every RandomState is meant.
        "random_state": keys if isinstance(featurizer.random_state, Integral) else None,
        "normalize": bool(featurizer.normalize),
        "jpeg_decoding": featurizer.jpeg_decoding,
        "file_format": file_format,
        "rows_per_file": int(rows_per_file),
    }


def _checksum(content):
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _is_as_written(file, written):
    """Say whether a file of a part is there, and what was written."""
    if not file.exists():
        return False
    found = _digest(file)
    if found != written:
        logger.warning(
            "%s is damaged or another file: its SHA-256 is %s, expected %s. It is "
            "written again.",
            *(file, found, written),
        )
    return found == written


def _digest(file):
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _stamps(items, rows):
    """Return a digest of paths, sizes and times; None where these do not suffice."""
    stamps = []
    for row in rows.tolist():
        item = items[row]
        stamps.append(file_stamp(item) if is_path(item) else None)
        if stamps[-1] is None:
            return None
    return _combined(stamps)


def _read_contents(items, rows, target):
    """Yield the digests that embedding these images returns beside the embeddings."""
    for row in rows.tolist():
        try:
            yield content_id(read_content(items[row], row), row, target)
        except ImageError:
            yield None


def _combined(digests):
    hasher = hashlib.sha256()
    for digest in digests:
        hasher.update(b"no image" if digest is None else digest)
    return hasher.hexdigest()


def _files_of_part(folder, file_format, part, n_views):
    if file_format == "parquet":
        return [folder / "metadata" / f"metadata_{part}.parquet"]
    return [folder / _npy_folder(v) / f"img_emb_{part}.npy" for v in range(n_views)]


def _write_npy(files, rows, embeddings, items):
    n, _, d = embeddings.shape
    for view, file in enumerate(files):
        write_npy(file, (n, d), embeddings.dtype, [embeddings[:, view]])


def _write_parquet(files, rows, embeddings, items):
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(
            'file_format="parquet" needs pyarrow: pip install "skclip-icm[parquet]".'
        ) from error
    columns = {"row": pa.array(rows)}
    taken = [items[row] for row in rows.tolist()]
    if all(isinstance(item, str | os.PathLike) for item in taken):
        # Arrow's strings are Unicode, names of files need not be.
        names = [os.fsencode(item) for item in taken]
        names = [name.decode("utf-8", "backslashreplace") for name in names]
        columns["image_path"] = pa.array(names, pa.string())
    for view in range(embeddings.shape[1]):
        values = pa.array(embeddings[:, view].reshape(-1))
        lists = pa.FixedSizeListArray.from_arrays(values, embeddings.shape[2])
        columns[_parquet_column(view)] = lists
    with replacing(files[0]) as path:
        with open(path, "wb") as file:  # whose name need not be Unicode
            pq.write_table(pa.table(columns), file, write_page_checksum=True)


def _open(folder, file_format, n_parts, n_counterparts, failed):
    def files(view):
        column, name = None, f"{_npy_folder(view)}/img_emb_{{}}.npy"
        if file_format == "parquet":
            column, name = _parquet_column(view), "metadata/metadata_{}.parquet"
        return EmbeddingFiles([folder / name.format(i) for i in range(n_parts)], column)

    first, *others = (files(view) for view in range(1 + n_counterparts))
    return Bunch(embeddings=first, counterparts=others, failed=failed)


def _npy_folder(view):
    return "img_emb" if view == 0 else f"img_emb_do_{view - 1}"


def _parquet_column(view):
    return _COLUMN if view == 0 else f"{_COLUMN}_do_{view - 1}"
