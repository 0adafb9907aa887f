"""Embed images and fit on a cluster, with Ray Data.

Images become embeddings in actors that hold one model each; embeddings become sums, a
d x d matrix or two for a batch of rows, that add up in any order. So rows never meet,
neither on one machine nor in its memory. Workers need skclip-icm as well.

Blocks whose worker or machine dies are computed again by Ray, without a limit (its
defaults for Ray Data: ``max_restarts`` and ``max_task_retries`` of actors and
``max_retries`` of tasks are all -1). Exceptions are not retried: they would come again.
"""

from collections import Counter
from functools import partial
from numbers import Integral

import numpy as np
from sklearn.base import clone

from skclip_icm._batches import add_columns, check_columns, floats, located, values_of
from skclip_icm._estimators import is_featurizer
from skclip_icm._projection.groups import Groups, group_rows
from skclip_icm._projection.merging import check_mergeable
from skclip_icm._projection.partial_fit import check_transformer


def embed(
    dataset,
    featurizer,
    *,
    column,
    output="embedding",
    counterparts=None,
    batch_size=256,
    concurrency=1,
    num_cpus=None,
    num_gpus=None,
):
    """Add the embeddings of images, and of their counterparts, to a Ray dataset.

    Nothing runs before the rows are asked for, and then blocks stream: only some are in
    memory at any time.

    Parameters
    ----------
    dataset : ray.data.Dataset
        Rows with an image each.
    featurizer : CLIPFeaturizer
        What embeds. It travels without the model's weights; each actor loads the model
        once, so the weights must be found, or be downloadable, on every machine. With
        ``cache=None`` nothing is cached here.
    column : str
        Column of the images: paths that every machine can read, the bytes of image
        files, or arrays, as `ray.data.read_images` makes them.
    output : str, default="embedding"
        Column to add, with a float32 array of shape (d,) in each row.
    counterparts : str, default=None
        Column to add for the counterparts under the featurizer's interventions, of
        shape (k, d). None adds none, and does not compute them.
    batch_size : int, default=256
        Rows that an actor gets in one call. The model's own batches are those of the
        featurizer.
    concurrency : int or tuple of two int, default=1
        Number of actors. As long as the cluster has too few CPUs for all of them, they
        are fewer, so that a CPU is left for reading the rows. A tuple: their least and
        largest number, between which Ray chooses.
    num_cpus, num_gpus : float, default=None
        What Ray reserves for each actor. None is one CPU and no GPU. Reserve several
        CPUs and set `n_jobs` of the featurizer to as many if decoding is the
        bottleneck.

    Returns
    -------
    dataset : ray.data.Dataset
        All rows, with the columns added.

    Raises
    ------
    ImportError
        If Ray is missing (extra ``ray``).
    TypeError, ValueError
        If `dataset` is no Ray dataset, a column is absent or would be overwritten, or
        counterparts are asked for without interventions or without an int as
        `random_state`. What depends on the rows is found when they are computed, and
        reaches the user in an error of Ray: a column that holds no images, or an image
        that cannot be read (with ``on_error="nan"``, its row is NaN instead).

    See Also
    --------
    fit_icm : Fit to the columns that this adds.
    skclip_icm.CLIPFeaturizer : The same on one machine.

    Notes
    -----
    With an int as `random_state`, embeddings and counterparts are those that the
    featurizer gives on one machine, whichever actor computes them, up to the rounding
    of different batches.

    Missing images, such as those of failed downloads, may be nulls of any type, also in
    whole blocks. Ray itself cannot join a block of tensors with one of nulls that have
    no type: drop such rows before, by ``dataset.filter(lambda row: row["image"] is not
    None)``, or let what downloads them return bytes.

    Examples
    --------
    >>> import ray
    >>> from skclip_icm import CLIPFeaturizer, ICMTransformer
    >>> from skclip_icm.distributed import embed, fit_icm
    >>> images = ray.data.read_images("s3://bucket/images")  # doctest: +SKIP
    >>> dataset = embed(  # doctest: +SKIP
    ...     images,
    ...     CLIPFeaturizer(),
    ...     column="image",
    ...     counterparts="embedding_do",
    ...     concurrency=8,
    ...     num_gpus=1,
    ... )
    >>> icm = fit_icm(  # doctest: +SKIP
    ...     dataset, ICMTransformer(), counterparts="embedding_do"
    ... )
    """
    ray_data = _ray_data(dataset)
    _check_featurizer(featurizer, counterparts)
    added = [name for name in (output, counterparts) if name is not None]
    if len({column, *added}) <= len(added):
        raise ValueError(
            f"column={column!r}, output={output!r} and counterparts={counterparts!r} "
            "must differ."
        )
    names = dataset.columns(fetch_if_missing=False)
    if names is not None:
        check_columns(names, [column], added)
    size = _pool_size(concurrency, num_cpus)
    return dataset.map_batches(
        _Embedder,
        fn_constructor_args=(featurizer, column, output, counterparts),
        batch_format="pyarrow",
        batch_size=batch_size,
        compute=ray_data.ActorPoolStrategy(min_size=size[0], max_size=size[1]),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )


def fit_icm(
    dataset,
    icm,
    *,
    column="embedding",
    counterparts=None,
    y=None,
    domains=None,
    batch_size=16_384,
):
    """Fit a transformer to embeddings in a Ray dataset.

    The result is that of ``icm.fit`` on all rows on one machine, up to rounding. Each
    batch of rows is summed up where it is; the sums, not the rows, travel.

    Parameters
    ----------
    dataset : ray.data.Dataset
        Rows with an embedding each, as `embed` makes them or as read from files.
    icm : ICMTransformer
        Its parameters are used; it is left as it is.
    column : str, default="embedding"
        Column of the embeddings: arrays or lists of d floats.
    counterparts : str, default=None
        Column of their counterparts, of shape (d,) or (k, d) in each row.
    y, domains : str, default=None
        Columns of the class and domain labels, for class and domain pairs.
    batch_size : int, default=16_384
        Rows that are summed up at a time. A worker needs memory for them, and for their
        sums: two d x d matrices of float64, whatever the number of classes. These
        travel, so fewer rows are more traffic. For class and domain pairs a first pass
        over the labels alone counts the rows of each class.

    Returns
    -------
    icm : ICMTransformer
        A new transformer, fitted. More rows can be added to it by its ``partial_fit``
        and ``merge``, but with class and domain pairs, whose weights are those of these
        rows.

    Raises
    ------
    ImportError
        If Ray is missing (extra ``ray``).
    TypeError, ValueError
        If `dataset` is no Ray dataset or has no rows, a column is absent or of the
        wrong type, a value is not finite, or there are no pairs.

    See Also
    --------
    embed : Makes the columns.
    skclip_icm.fit_files : The same on one machine, from files.

    Examples
    --------
    >>> import ray
    >>> from skclip_icm import ICMTransformer
    >>> from skclip_icm.distributed import fit_icm
    >>> dataset = ray.data.read_parquet("embeddings/")  # doctest: +SKIP
    >>> icm = fit_icm(  # doctest: +SKIP
    ...     dataset, ICMTransformer(lam=10), counterparts="embedding_do"
    ... )
    """
    _ray_data(dataset)
    check_transformer(icm)
    columns = {"X": column, "X_do": counterparts, "y": y, "domains": domains}
    columns = {part: name for part, name in columns.items() if name is not None}
    names = dataset.columns(fetch_if_missing=False)
    if names is not None:
        check_columns(names, columns.values())
        dataset = dataset.select_columns(list(dict.fromkeys(columns.values())))
    groups = _count_groups(dataset, icm, columns)
    summarise = partial(_summarise, icm=clone(icm), columns=columns, groups=groups)
    rows = dataset.map_batches(summarise, batch_format="pyarrow", batch_size=batch_size)
    fitted = clone(icm)
    for row in rows.iter_rows():
        if isinstance(row["sums"], Exception):
            raise row["sums"]
        part = row["sums"]
        if hasattr(fitted, "n_features_in_"):
            check_mergeable(fitted, part)
            fitted._sums.merge(part._sums)
        else:
            fitted = part
    if not hasattr(fitted, "n_features_in_"):
        raise ValueError("dataset has no rows, so there is nothing to fit.")
    return fitted._finish()


class _Embedder:
    """What an actor does; made once in each."""

    def __init__(self, featurizer, column, output, counterparts):
        # Every image comes once: what an actor's memory kept would never be used.
        cache = _NoCache() if featurizer.cache is None else featurizer.cache
        self._featurizer = clone(featurizer).set_params(cache=cache)
        self._column, self._output, self._counterparts = column, output, counterparts

    def __call__(self, batch):
        added = [name for name in (self._output, self._counterparts) if name]
        check_columns(batch.column_names, [self._column], added)
        images = values_of(batch, self._column)
        try:
            # One by one unless they are pixels: numbers may all be NaN, for none, and
            # grey images are no longer told from one when they are stacked.
            found = self._embed(list(images) if images.ndim in (1, 3) else images)
            return add_columns(batch, found)
        except (TypeError, ValueError) as error:
            located(error, batch, [self._column])
            raise

    def _embed(self, images):
        if self._counterparts is None:
            return {self._output: self._featurizer.transform(images)}
        paired = self._featurizer.intervene(images)
        return {
            self._output: np.asarray(paired),
            self._counterparts: paired.counterparts,
        }


def _count_groups(dataset, icm, columns):
    """Count the rows of each class (and domain) in a first pass over the labels."""
    labels = {name: columns[name] for name in ("y", "domains") if name in columns}
    if icm.pairs not in ("class", "domain") or not labels:
        return None
    count, sizes = partial(_count_labels, icm=icm, labels=labels), Counter()
    rows = dataset.select_columns(list(labels.values())).map_batches(
        count, batch_format="pyarrow"
    )
    for row in rows.iter_rows():
        if isinstance(row["sizes"], Exception):
            raise row["sizes"]
        sizes.update(row["sizes"])
    if not sizes:
        return None
    return Groups(list(sizes), list(sizes.values()), across=icm.pairs == "domain")


def _count_labels(batch, icm, labels):
    result = np.empty(1, dtype=object)
    try:
        given = {part: values_of(batch, name) for part, name in labels.items()}
        values = {"y": None, "domains": None, **given}
        n, by_domain = len(batch), icm.center == "domain"
        keys, codes = group_rows(icm.pairs, n, **values, by_domain=by_domain)
        result[0] = dict(zip(keys, np.bincount(codes).tolist(), strict=True))
    except (TypeError, ValueError) as error:
        result[0] = located(error, batch, labels.values())
    return {"sizes": result}


class _NoCache:
    """A store that keeps nothing."""

    def get_many(self, keys):
        return [None] * len(keys)

    def put_many(self, keys, rows):
        pass


def _summarise(batch, icm, columns, groups):
    """Turn a batch into one row, with its sums or with what is wrong with it.

    An error that is raised here would reach the user wrapped into those of Ray.
    """
    icm, result = clone(icm), np.empty(1, dtype=object)
    try:
        check_columns(batch.column_names, columns.values())
        parts = {part: values_of(batch, name) for part, name in columns.items()}
        for part in {"X", "X_do"} & parts.keys():
            parts[part] = floats(parts[part], columns[part])
        icm._add_rows(**parts, groups=groups)
        result[0] = icm
    except (TypeError, ValueError) as error:
        result[0] = located(error, batch, columns.values())
    return {"sums": result}


def _ray_data(dataset):
    try:
        import ray.data
    except ImportError as error:
        raise ImportError(
            "skclip_icm.distributed needs Ray Data: pip install skclip-icm[ray]."
        ) from error
    if not isinstance(dataset, ray.data.Dataset):
        raise TypeError(
            f"dataset is of type {type(dataset).__name__}, expected a "
            "ray.data.Dataset, as ray.data.read_images or ray.data.read_parquet return."
        )
    return ray.data


def _pool_size(concurrency, num_cpus):
    """Least and largest number of actors.

    Actors that have taken all CPUs would wait for rows for ever if these come from
    tasks, such as reading files, which need a CPU too.
    """
    sizes = concurrency if isinstance(concurrency, tuple) else (1, concurrency)
    whole = len(sizes) == 2 and all(isinstance(size, Integral) for size in sizes)
    if not whole or not 1 <= sizes[0] <= sizes[1]:
        raise ValueError(
            f"concurrency is {concurrency!r}, expected a number of actors from 1 on, "
            "or a tuple of their least and largest number."
        )
    if isinstance(concurrency, tuple):
        return concurrency
    import ray

    if not ray.is_initialized():
        ray.init()  # as Ray Data does when it runs
    per_actor = 1 if num_cpus is None else num_cpus
    others = ray.cluster_resources().get("CPU", 0) - 1
    at_once = int(others // per_actor) if per_actor else concurrency
    return max(1, min(concurrency, at_once)), concurrency


def _check_featurizer(featurizer, counterparts):
    if not is_featurizer(featurizer):
        raise TypeError(
            f"featurizer is of type {type(featurizer).__name__}, expected a "
            "CLIPFeaturizer; of a pipeline, that step alone."
        )
    if counterparts is None:
        return
    if featurizer.interventions is None:
        raise ValueError(
            "There is no intervention for counterparts: set "
            "CLIPFeaturizer(interventions=...), such as 'photometric'."
        )
    if not isinstance(featurizer.random_state, Integral):
        raise ValueError(
            f"random_state is {featurizer.random_state!r}: set an int, or counterparts "
            "would depend on which actor computes them."
        )
