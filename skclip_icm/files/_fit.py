"""Fit and transform embeddings that lie in files, chunk by chunk."""

import math
import os

import numpy as np
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted

from skclip_icm._embeddings import check_same_columns, column_names
from skclip_icm._images.reading import as_path
from skclip_icm._labels import check_labels
from skclip_icm._projection.differences import as_floats
from skclip_icm._projection.groups import count_groups
from skclip_icm._projection.partial_fit import check_transformer
from skclip_icm.files._embedding_files import CHUNK_BYTES, EmbeddingFiles
from skclip_icm.files._parts import write_npy

_LIST = (
    " A list holds counterparts under several interventions; of files in parts, give "
    "EmbeddingFiles(paths)."
)


def fit_files(X, icm, *, y=None, X_do=None, domains=None):
    """Fit a transformer to embeddings in files, chunk by chunk.

    The result is that of ``icm.fit`` on all rows at once, up to rounding. Memory is for
    a chunk (32 MiB) and for the sums: two d x d matrices of float64, whatever the
    number of classes.

    Parameters
    ----------
    X : EmbeddingFiles, path, list of paths or array of shape (n, d)
        Embeddings. A path is what `EmbeddingFiles` takes. Arrays may be memory maps.
    icm : ICMTransformer
        Its parameters are used; it is left as it is.
    y : array-like of shape (n,), default=None
        Class labels, for domain and class pairs.
    X_do : EmbeddingFiles, path, array or list of these, default=None
        Counterparts of the rows of `X`, of shape (n, d), or (n, k, d) for those under
        k interventions. A list holds those of several interventions.
    domains : array-like of shape (n,), default=None
        Domain labels, for domain pairs.

    Returns
    -------
    icm : ICMTransformer
        A new transformer, fitted. More rows can be added to it by its ``partial_fit``
        and ``merge``, but with class and domain pairs, whose weights are those of these
        rows.

    Raises
    ------
    ValueError
        If `X` and `X_do`, `y` or `domains` differ in length, widths differ, a value is
        not finite (the error names file and row), or there are no pairs.

    See Also
    --------
    transform_files : Write the transformed embeddings to files.
    skclip_icm.distributed.fit_icm : The same on a cluster.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> from skclip_icm import ICMTransformer, fit_files
    >>> from skclip_icm.datasets import make_causal_embeddings
    >>> Z = make_causal_embeddings(n_samples=500, random_state=0).embeddings
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/img_emb_0.npy", Z)
    ...     np.save(f"{folder}/do.npy", Z.counterparts[:, 0])
    ...     icm = fit_files(
    ...         f"{folder}/img_emb_*.npy",
    ...         ICMTransformer(lam=10),
    ...         X_do=f"{folder}/do.npy",
    ...     )
    >>> icm.n_samples_seen_, icm.n_components_
    (1000, 16)
    """
    check_transformer(icm)
    X = _check_flat(_as_rows(X, "X"))
    several = isinstance(X_do, list | tuple)
    counterparts = [] if X_do is None else X_do if several else [X_do]
    names = [f"X_do[{k}]" if several else "X_do" for k in range(len(counterparts))]
    columns = column_names(X)
    counterparts = [
        _as_rows(rows, name, columns)
        for rows, name in zip(counterparts, names, strict=True)
    ]
    labels = _check_used(icm, len(X), y=y, domains=domains)
    unused = [] if y is None or "y" in labels else [("y", y)]
    for name, rows in [*zip(names, counterparts, strict=True), *unused]:
        if len(rows) != len(X):
            raise ValueError(
                f"{name} has {len(rows)} rows, expected {len(X)}: one for each row of "
                f"X, in the same order.{_LIST if name[-1] == ']' else ''}"
            )
    icm, start, by_domain = clone(icm), 0, icm.center == "domain"
    groups = count_groups(icm.pairs, len(X), **labels, by_domain=by_domain)
    n_values = X.shape[1] + sum(math.prod(rows.shape[1:]) for rows in counterparts)
    n_rows = max(1, CHUNK_BYTES // (4 * n_values))
    sources = [("X", X), *zip(names, counterparts, strict=True)]
    for chunks in zip(*(_chunks(rows, n_rows) for _, rows in sources), strict=True):
        stop = start + len(chunks[0])
        its_labels = {key: values[start:stop] for key, values in labels.items()}
        try:
            icm._add_rows(
                chunks[0], X_do=_stack(chunks[1:]), groups=groups, **its_labels
            )
        except ValueError as error:
            _raise_located(sources, chunks, start, error)
            raise
        start = stop
    return icm._finish()


def transform_files(X, icm, folder):
    """Transform embeddings in files and write the result to files.

    Parameters
    ----------
    X : EmbeddingFiles or path
        Embeddings. A path is what `EmbeddingFiles` takes.
    icm : ICMTransformer
        A fitted transformer.
    folder : path
        Where to write. For each file of `X` it gets one ``.npy`` file of the same name
        and number of rows; so rows still match other files, such as metadata. A file
        appears when it is complete.

    Returns
    -------
    Z : EmbeddingFiles
        The files written.

    Raises
    ------
    NotFittedError
        If `icm` is not fitted.
    FileExistsError
        If a file of that name is in the folder already.
    ValueError
        If `X` is not as wide as what `icm` was fitted to, or a value is not finite (the
        error names file and row).

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> from skclip_icm import ICMTransformer, transform_files
    >>> from skclip_icm.datasets import make_causal_embeddings
    >>> Z = make_causal_embeddings(n_samples=500, random_state=0).embeddings
    >>> icm = ICMTransformer(lam=10).fit(Z)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/img_emb_0.npy", Z)
    ...     print(transform_files(f"{folder}/img_emb_0.npy", icm, f"{folder}/icm"))
    <EmbeddingFiles: 1000 x 16 float32 in 1 files>
    """
    check_is_fitted(icm)
    X = _check_flat(X if isinstance(X, EmbeddingFiles) else EmbeddingFiles(X))
    folder = as_path(folder, "folder")
    folder.mkdir(parents=True, exist_ok=True)
    targets = [folder / f"{path.stem}.npy" for path in X.paths]
    for i, target in enumerate(targets):
        _check_new(target, targets[:i])
    for part, target in zip(X._parts, targets, strict=True):
        _write(target, part, X.column, icm)
    return EmbeddingFiles(targets)


def _check_used(icm, n, **labels):
    """Check labels as a whole, since errors of a chunk would count its rows only."""
    used = ("y", "domains") if icm.pairs in ("class", "domain") else ("domains",)
    return {k: check_labels(labels[k], k, n) for k in used if labels[k] is not None}


def _as_rows(X, name, columns=None):
    is_list = isinstance(X, list | tuple) and len(X) > 0
    if isinstance(X[0] if is_list else X, str | os.PathLike):
        return EmbeddingFiles(X)
    if isinstance(X, EmbeddingFiles):
        return X
    check_same_columns(X, columns, name)
    X = X if hasattr(X, "shape") else np.asarray(X)
    if len(X.shape) not in (2, 3) or 0 in X.shape:
        raise ValueError(
            f"{name} has shape {tuple(X.shape)}, expected (n, d) with at least one "
            "row, or (n, k, d) for counterparts: an array, or files of them."
        )
    return X


def _check_new(target, others=()):
    if target.exists() or target in others:
        raise FileExistsError(
            f"{target} exists already, or two files of X have this name. Give another "
            "folder."
        )


def _check_flat(X):
    if isinstance(X, EmbeddingFiles) and len(X.shape) != 2:
        raise ValueError(
            f"X has shape {X.shape}, expected (n, d): {X.paths[0]} holds counterparts, "
            "which are for X_do of fit_files."
        )
    return X


def _chunks(X, n_rows):
    if isinstance(X, EmbeddingFiles):
        return X.chunks(n_rows)
    return (X[start : start + n_rows] for start in range(0, len(X), n_rows))


def _stack(counterparts):
    if len(counterparts) > 1:
        arrays = map(np.asarray, counterparts)
        views = [rows[:, None] if rows.ndim == 2 else rows for rows in arrays]
        return np.concatenate(views, axis=1)
    return counterparts[0] if counterparts else None


def _raise_located(sources, chunks, start, error):
    """Raise an error that names file and row if a value of the chunk is not finite."""
    for (name, rows), chunk in zip(sources, chunks, strict=True):
        finite = np.isfinite(as_floats(chunk).reshape(len(chunk), -1)).all(axis=1)
        if finite.all():
            continue
        row = start + int(finite.argmin())
        where = f"row {row}"
        if isinstance(rows, EmbeddingFiles):
            where = "{}, row {}".format(*rows.locate(row))
        raise ValueError(
            f"{where}: NaN or infinity in {name}. Drop such rows, also from y and the "
            "counterparts."
        ) from error


def _write(target, part, column, icm):
    """Transform one file, chunk by chunk; nothing is left behind if that fails."""

    def chunks():
        if part.n_rows:
            yield from _transformed(EmbeddingFiles([part.path], column), icm)
        _check_new(target)  # another call may have written it meanwhile

    dtype = np.float64 if part.dtype.itemsize == 8 else np.float32
    write_npy(target, (part.n_rows, icm.n_components_), dtype, chunks())


def _transformed(X, icm):
    start = 0
    for chunk in X.chunks():
        try:
            yield icm.transform(chunk)
        except ValueError as error:
            _raise_located([("X", X)], [chunk], start, error)
            raise
        start += len(chunk)
