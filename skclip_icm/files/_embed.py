"""Embed images into files, part by part; what is finished is not done again."""

import hashlib
import json
import logging
import os
import warnings
from numbers import Integral
from pathlib import Path

import numpy as np
from sklearn.utils import Bunch

from skclip_icm._encoding.views import AS_IS
from skclip_icm._estimators import HasMethods, Interval, StrOptions, validate_params
from skclip_icm._images.decoding import digest
from skclip_icm._images.inputs import ImageError, as_items, read_content
from skclip_icm.files._embedding_files import EmbeddingFiles
from skclip_icm.files._replacing import replacing
from skclip_icm.interventions import resolve_interventions

logger = logging.getLogger("skclip_icm")

_RECORD = "embed_files.json"
_FOLDERS = "img_emb", "metadata"
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
    returns what is there.

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
        If the folder holds embeddings of other images, by another model, in other
        parts, or if no image can be read.
    FileExistsError
        If the folder holds such files that this function has not written.
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
    items, folder = as_items(X), Path(folder)
    views = [AS_IS, *featurizer._views(featurizer.interventions)]
    write = {"npy": _write_npy, "parquet": _write_parquet}[file_format]
    record = _Record(folder, _about(featurizer, views, file_format, rows_per_file))
    starts = range(0, len(items), rows_per_file)
    for part, start in enumerate(starts):
        rows = np.arange(start, min(start + rows_per_file, len(items)))
        if record.has(part, items, rows):
            continue
        embeddings, failed, _ = featurizer._embed(items, views, rows)
        kept = ~np.isin(rows, failed)
        write(folder, part, rows[kept], embeddings[kept], items)
        record.add(part, items, rows, failed)
        logger.info("%s: part %d of %d is written.", folder, part + 1, len(starts))
    record.check_end(len(starts))
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
    return _open(folder, file_format, len(starts), len(views) - 1, failed)


class _Record:
    """What is finished, in a small file that is replaced after each part."""

    def __init__(self, folder, about):
        self._path, self._about, self._parts = folder / _RECORD, about, []
        if not self._path.exists():
            foreign = [name for name in _FOLDERS if (folder / name).exists()]
            if foreign:
                raise FileExistsError(
                    f"{folder / foreign[0]} is there already, and not by embed_files: "
                    f"there is no {_RECORD} beside it. Give another folder."
                )
            self._save()
            return
        found = json.loads(self._path.read_text(encoding="utf-8"))
        differing = [key for key in about if found["about"].get(key) != about[key]]
        if differing:
            raise ValueError(
                f"{folder} holds embeddings made with another {differing[0]}: "
                f"{found['about'].get(differing[0])!r} there, {about[differing[0]]!r} "
                "now. Give another folder, or remove that one."
            )
        self._parts = found["parts"]

    @property
    def failed(self):
        """Rows that are left out."""
        return [row for part in self._parts for row in part["failed"]]

    def has(self, part, items, rows):
        """Say whether a part is finished; ValueError if it is of other images."""
        if part >= len(self._parts):
            return False
        if self._parts[part]["images"] != _identify(items, rows):
            raise ValueError(
                f"{self._path.parent} holds embeddings of other images in the rows "
                f"{rows[0]} to {rows[-1]}. Give another folder, or the images that it "
                "was begun with, in the same order."
            )
        return True

    def add(self, part, items, rows, failed):
        """Note that a part is finished."""
        images = _identify(items, rows)
        self._parts.append({"images": images, "failed": [int(row) for row in failed]})
        self._save()

    def _save(self):
        content = {"about": self._about, "parts": self._parts}
        with replacing(self._path) as path:
            path.write_text(json.dumps(content), encoding="utf-8")

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


def _identify(items, rows):
    """Return a digest of given images: of paths and sizes of files, or of content."""
    hasher = hashlib.sha256()
    for row in rows.tolist():
        item = items[row]
        if isinstance(item, str | os.PathLike):
            try:
                size = os.stat(item).st_size
            except (OSError, ValueError):
                size = -1
            hasher.update(os.fsencode(item) + f"\0{size}\0".encode())
            continue
        try:
            hasher.update(digest(read_content(item, row), row))
        except ImageError:
            hasher.update(b"not an image")
    return hasher.hexdigest()


def _write_npy(folder, part, rows, embeddings, items):
    for view in range(embeddings.shape[1]):
        with replacing(folder / _npy_folder(view) / f"img_emb_{part}.npy") as path:
            with open(path, "wb") as file:
                np.save(file, np.ascontiguousarray(embeddings[:, view]))


def _write_parquet(folder, part, rows, embeddings, items):
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
    with replacing(folder / "metadata" / f"metadata_{part}.parquet") as path:
        with open(path, "wb") as file:  # whose name need not be Unicode
            pq.write_table(pa.table(columns), file)


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
    return "embedding" if view == 0 else f"embedding_do_{view - 1}"
