"""Ray Data: the results of one machine, whatever dies on the way."""

import os
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.linalg import subspace_angles

from skclip_icm import CLIPFeaturizer, ICMTransformer
from skclip_icm.datasets import make_causal_embeddings
from skclip_icm.distributed import _Embedder, embed, fit_icm
from skclip_icm.files._embedding_files import EmbeddingFiles
from skclip_icm.files._fit import fit_files

WHITE = 13  # the image at which a worker dies


@pytest.fixture(scope="module")
def ray():
    """Ray on two CPUs of this machine."""
    ray = pytest.importorskip("ray", reason="ray is not installed")
    pytest.importorskip("ray.data", reason="the parts of ray for data are missing")
    with pytest.MonkeyPatch.context() as patch:
        here = Path(__file__).parent
        paths = [str(here.parent), str(here), os.environ.get("PYTHONPATH")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=120 * 2**20,
            log_to_driver=False,
            logging_level="error",
        )
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        yield ray
        ray.shutdown()


@pytest.fixture(scope="module")
def images():
    """Twenty small images; one of them white."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (20, 5, 5, 3), np.uint8)
    coarse[WHITE] = 255
    return coarse.repeat(9, axis=1).repeat(9, axis=2)


@pytest.fixture(scope="module")
def rows():
    """Embeddings with counterparts and labels, as a dataset has them."""
    data = make_causal_embeddings(n_samples=300, random_state=0)
    Z, Z_do = np.asarray(data.embeddings), data.embeddings.counterparts
    labels = np.array(["a", "b", "c"])[np.arange(len(Z)) % 3]
    return {"embedding": Z, "do": Z_do, "label": labels, "domain": data.domains}


def dataset_of(ray, columns, blocks=4):
    """A dataset of several blocks from arrays."""
    n = len(next(iter(columns.values())))
    items = [{key: value[i] for key, value in columns.items()} for i in range(n)]
    return ray.data.from_items(items, override_num_blocks=blocks)


def column(rows, name):
    """A column of the rows of a dataset in the order of their ids."""
    return np.stack([row[name] for row in sorted(rows, key=lambda row: row["id"])])


def die_once(marker):
    """Kill this process as if the machine had failed; the next time do nothing."""
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def assert_same_fit(icm, expected):
    assert icm.n_samples_seen_ == expected.n_samples_seen_
    assert icm.n_pairs_seen_ == expected.n_pairs_seen_
    assert icm.n_features_in_ == expected.n_features_in_
    assert icm.components_.shape == expected.components_.shape
    bases = (np.float64(fitted.components_.T) for fitted in (icm, expected))
    assert subspace_angles(*bases).max() <= 1e-6
    np.testing.assert_allclose(icm.mean_, expected.mean_, atol=1e-7)


def test_embeds_and_fits_as_on_one_machine_although_an_actor_dies(
    ray, images, tmp_path
):
    marker = str(tmp_path / "died")

    def fade(image):
        if np.asarray(image).min() == 255:
            die_once(marker)
        return Image.fromarray(np.asarray(image) // 2)

    featurizer = CLIPFeaturizer("demo", interventions=[fade, "hue"])
    # Tensors, as ray.data.read_images makes them.
    dataset = dataset_of(ray, {"id": range(20), "image": images})
    embedded = embed(
        dataset,
        featurizer,
        column="image",
        counterparts="do",
        batch_size=3,
        concurrency=2,
    ).materialize()
    assert Path(marker).exists()
    found = embedded.take_all()
    np.testing.assert_array_equal(column(found, "image"), images)
    Z = featurizer.intervene(images)
    assert column(found, "embedding").dtype == np.float32
    # Batches of other sizes are rounded otherwise.
    np.testing.assert_allclose(column(found, "embedding"), Z, atol=1e-4)
    np.testing.assert_allclose(column(found, "do"), Z.counterparts, atol=1e-4)

    icm = fit_icm(embedded, ICMTransformer(), counterparts="do", batch_size=4)
    paired = column(found, "embedding"), column(found, "do")
    assert_same_fit(icm, ICMTransformer().fit(paired[0], X_do=paired[1]))


def test_bad_images_give_nan_or_an_error_that_names_the_cause(ray, images, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path, image in zip(paths, images, strict=False):
        Image.fromarray(image).save(path)
    paths[2].write_bytes(b"no image")
    lenient = CLIPFeaturizer("demo", on_error="nan")
    # Actors must not take both CPUs while files are read.
    files = ray.data.read_binary_files(str(tmp_path), include_paths=True)
    found = embed(files, lenient, column="bytes", output="Z", concurrency=2).take_all()
    Z = column([{**row, "id": row["path"]} for row in found], "Z")
    assert np.isnan(Z[2]).all()
    kept = [0, 1, 3]
    np.testing.assert_allclose(Z[kept], lenient.transform(images[:4])[kept], atol=1e-4)
    names = [str(path) for path in paths]
    dataset = dataset_of(ray, {"path": names}, blocks=1)
    with pytest.raises(Exception, match=r"2\.png.*not an image") as caught:
        embed(dataset, CLIPFeaturizer("demo"), column="path").take_all()
    assert "In a batch of 4, column 'path'." in str(caught.value)


@pytest.mark.parametrize("batch_size", [7, 1000])
def test_fits_as_on_one_machine(ray, rows, batch_size):
    icm = ICMTransformer(lam=10)
    fitted = fit_icm(
        dataset_of(ray, rows), icm, counterparts="do", batch_size=batch_size
    )
    expected = ICMTransformer(lam=10).fit(rows["embedding"], X_do=rows["do"])
    assert_same_fit(fitted, expected)
    assert not hasattr(icm, "components_")
    # It holds its sums, so rows can be added to it.
    more = fitted.partial_fit(rows["embedding"][:5], X_do=rows["do"][:5])
    assert more.n_samples_seen_ == 605


@pytest.mark.parametrize("pairs", ["class", "domain"])
def test_fits_class_and_domain_pairs(ray, rows, pairs):
    icm = ICMTransformer(pairs=pairs, lam=0.1)
    names = {"y": "label", "domains": "domain"} if pairs == "domain" else {"y": "label"}
    fitted = fit_icm(dataset_of(ray, rows), icm, batch_size=50, **names)
    labels = {part: rows[name] for part, name in names.items()}
    assert_same_fit(fitted, icm.fit(rows["embedding"], **labels))


def test_fit_survives_a_worker_that_dies(ray, rows, tmp_path):
    marker = str(tmp_path / "died")

    def pass_on(batch, victim=rows["embedding"][333, 0]):
        if (batch["embedding"][:, 0] == victim).any():
            die_once(marker)
        return batch

    dataset = dataset_of(ray, rows).map_batches(pass_on, batch_size=50)
    fitted = fit_icm(dataset, ICMTransformer(), counterparts="do", batch_size=50)
    assert Path(marker).exists()
    expected = ICMTransformer().fit(rows["embedding"], X_do=rows["do"])
    assert_same_fit(fitted, expected)


def test_embeddings_from_lists_in_parquet(ray, rows, tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    lists = {name: rows[name].reshape(600, -1).tolist() for name in ("embedding", "do")}
    parquet.write_table(pa.table(lists), tmp_path / "part.parquet")
    dataset = ray.data.read_parquet(str(tmp_path))
    fitted = fit_icm(dataset, ICMTransformer(), counterparts="do")
    expected = ICMTransformer().fit(rows["embedding"], X_do=rows["do"])
    assert_same_fit(fitted, expected)


@pytest.mark.parametrize("k", [1, 2])
def test_parquet_that_ray_wrote_is_read_with_ray_and_without(ray, rows, tmp_path, k):
    rows = {**rows, "do": np.concatenate([rows["do"], rows["do"][::-1]], axis=1)[:, :k]}
    dataset_of(ray, rows).write_parquet(str(tmp_path))
    icm, expected = (
        ICMTransformer(),
        ICMTransformer().fit(rows["embedding"], X_do=rows["do"]),
    )
    again = ray.data.read_parquet(str(tmp_path))
    assert_same_fit(fit_icm(again, icm, counterparts="do"), expected)
    X, X_do = (EmbeddingFiles(tmp_path, column=name) for name in ("embedding", "do"))
    assert_same_fit(fit_files(X, icm, X_do=X_do), expected)


# Bad input


def test_columns_that_are_absent_or_would_be_overwritten(ray, rows):
    dataset = dataset_of(ray, rows)
    featurizer = CLIPFeaturizer("demo")
    with pytest.raises(ValueError, match=r"no column 'image'.*it has \['embedding'"):
        embed(dataset, featurizer, column="image")
    with pytest.raises(ValueError, match="has a column 'do' already"):
        embed(dataset, featurizer, column="label", output="Z", counterparts="do")
    with pytest.raises(ValueError, match="must differ"):
        embed(dataset, featurizer, column="label", output="label")
    with pytest.raises(TypeError, match="A column is given as ndarray, expected its"):
        fit_icm(dataset, ICMTransformer(), counterparts="do", y=rows["label"])
    with pytest.raises(ValueError, match="no column 'y'"):
        fit_icm(dataset, ICMTransformer(), counterparts="do", y="y")
    # Of a dataset that is not computed yet, the columns are known to workers only.
    lazy = dataset.map_batches(lambda batch: batch)
    with pytest.raises(ValueError, match="no column 'Z' in the dataset"):
        fit_icm(lazy, ICMTransformer(), column="Z", counterparts="do")


def test_columns_of_the_wrong_type(ray, rows):
    dataset = dataset_of(ray, rows)
    icm = ICMTransformer()
    with pytest.raises(TypeError, match=r"Column 'label' holds <U1.*expected the floa"):
        fit_icm(dataset, icm, column="label", counterparts="do")
    with pytest.raises(TypeError, match=r"Column 'domain' holds int64 of shape \(\)"):
        fit_icm(dataset, icm, counterparts="domain")
    ragged = [np.ones(2 + i % 2, np.float32) for i in range(10)]
    with pytest.raises(ValueError, match="'Z' holds arrays of different shapes"):
        fit_icm(dataset_of(ray, {"Z": ragged}, 1), icm, column="Z")
    with pytest.raises(Exception, match="column 'domain'"):
        embed(dataset, CLIPFeaturizer("demo"), column="domain", output="Z").take_all()


def test_rows_of_nan_are_refused(ray, rows):
    Z = rows["embedding"].copy()
    Z[[3, 8]] = np.nan
    dataset = dataset_of(ray, {**rows, "embedding": Z}, 1)
    with pytest.raises(
        ValueError, match=r"'embedding' holds NaN .* 2 of a batch of 600"
    ):
        fit_icm(dataset, ICMTransformer(), counterparts="do")
    advice = dataset.filter(lambda row: np.isfinite(row["embedding"]).all())
    fitted = fit_icm(advice, ICMTransformer(), counterparts="do")
    assert fitted.n_samples_seen_ == 598


@pytest.mark.parametrize("name", ["y", "domains"])
def test_a_missing_label_is_refused(ray, rows, name):
    pa = pytest.importorskip("pyarrow")
    pairs = {"y": "class", "domains": "interventional"}[name]
    icm = ICMTransformer(pairs=pairs, center="domain" if name == "domains" else True)
    counterparts = {"domains": "do"}.get(name)
    for labels in (["a", "b"], [1, 0]):
        table = {key: rows["embedding"][:6].tolist() for key in ("embedding", "do")}
        given = pa.array([*labels, None, *labels, labels[0]])
        for table["label"] in (given, given.dictionary_encode()):
            dataset = ray.data.from_arrow(pa.table(table))
            with pytest.raises(ValueError, match=rf"{name}\[2\] is .*mis") as raised:
                fit_icm(dataset, icm, counterparts=counterparts, **{name: "label"})
        assert re.search("In a batch of 6, column .*'label'", raised.value.__notes__[0])


def test_nothing_to_learn_from(ray, rows):
    dataset = dataset_of(ray, rows)
    with pytest.raises(ValueError, match="dataset has no rows"):
        fit_icm(dataset.limit(0), ICMTransformer(), counterparts="do")
    with pytest.raises(ValueError, match="carries no counterparts"):
        fit_icm(dataset, ICMTransformer())
    one = dataset_of(ray, {**rows, "label": [str(i) for i in range(600)]})
    with pytest.raises(ValueError, match="finds no pairs"):
        fit_icm(one, ICMTransformer(pairs="class"), y="label")


def test_counterparts_need_interventions_and_a_seed(ray, rows):
    dataset = dataset_of(ray, rows)
    asked = {"column": "label", "output": "Z", "counterparts": "Z_do"}
    with pytest.raises(ValueError, match="There is no intervention"):
        embed(dataset, CLIPFeaturizer("demo", interventions=None), **asked)
    with pytest.raises(ValueError, match="random_state is None: set an int"):
        embed(dataset, CLIPFeaturizer("demo", random_state=None), **asked)


@pytest.mark.parametrize("concurrency", [0, "2", 1.5, (2, 1), (1, 2, 3), (0.5, 1)])
def test_numbers_of_actors(ray, rows, concurrency):
    dataset = dataset_of(ray, rows)
    with pytest.raises(ValueError, match="expected a number of actors from 1 on"):
        embed(
            dataset,
            CLIPFeaturizer("demo"),
            column="do",
            output="Z",
            concurrency=concurrency,
        )


def test_something_else_than_a_dataset(ray, rows):
    with pytest.raises(TypeError, match="featurizer is of type NoneType"):
        embed(dataset_of(ray, rows), None, column="do")
    with pytest.raises(TypeError, match="icm is of type NoneType"):
        fit_icm(dataset_of(ray, rows), None, counterparts="do")
    with pytest.raises(TypeError, match=r"of type ndarray, expected a "):
        fit_icm(rows["embedding"], ICMTransformer())


def forms_of_images(pa, content, path):
    """Types of columns, how they store what they hold, and a value of each."""
    from ray.data.extensions import ArrowTensorArray

    pixels, other = np.zeros((4, 4, 3), np.uint8), np.zeros((5, 4, 3), np.uint8)
    ragged = np.fromiter([pixels, other], dtype=object)
    tensors = map(ArrowTensorArray.from_numpy, (pixels[None], ragged))
    images = [
        (pa.binary(), content),
        (pa.large_binary(), content),
        (pa.binary(len(content)), content),
        (pa.binary_view(), content),
        (pa.string(), path),
        (pa.large_string(), path),
        (pa.string_view(), path),
        (pa.struct({"bytes": pa.binary(), "path": pa.string()}), {"bytes": content}),
        (pa.dictionary(pa.int32(), pa.string()), path),
        (pa.dictionary(pa.int8(), pa.binary()), content),
    ]
    lists = (pa.list_(pa.uint8()), pa.large_list(pa.uint8()), pa.list_(pa.uint8(), 12))
    others = [
        (pa.null(), None),
        (pa.float32(), None),
        *((one, [0] * 12) for one in lists),
    ]
    return [
        *((kind, kind, value, True) for kind, value in images),
        *((t.type, t.type.storage_type, t.storage[0].as_py(), True) for t in tensors),
        *((kind, kind, value, False) for kind, value in others),
    ]


def test_blocks_of_missing_images_of_any_form(images, tmp_path):
    """As failed downloads leave them. Each row is NaN, or an error says what it is."""
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("ray.data")
    Image.fromarray(images[0]).save(tmp_path / "0.png")
    content = (tmp_path / "0.png").read_bytes()
    lenient = _Embedder(CLIPFeaturizer("demo", on_error="nan"), "image", "Z", None)
    strict = _Embedder(CLIPFeaturizer("demo"), "image", "Z", None)
    forms = forms_of_images(pa, content, str(tmp_path / "0.png"))
    for kind, storage, value, is_image in forms:
        for values in ([None] * 3, [None, value, None]):
            stored = pa.array(values, storage)
            column = stored if kind == storage else kind.wrap_array(stored)
            batch = pa.table({"image": column, "id": range(3)})
            found = lenient(batch)
            assert found.select(["image", "id"]).equals(batch), kind
            Z = [np.isnan(row).all() for row in np.stack(found["Z"].to_numpy())]
            assert Z == [one is None or not is_image for one in values], kind
            with pytest.raises(ValueError, match="row 0: .*the image is missing"):
                strict(batch)


def test_grey_images_of_one_size(images):
    pa = pytest.importorskip("pyarrow")
    tensors = pytest.importorskip("ray.data.extensions").ArrowTensorArray
    featurizer, grey = CLIPFeaturizer("demo"), images[:3, ..., 0]
    batch = pa.table({"image": tensors.from_numpy(grey)})
    found = _Embedder(featurizer, "image", "Z", None)(batch)
    expected = featurizer.transform(list(grey))
    np.testing.assert_allclose(np.stack(found["Z"].to_numpy()), expected, atol=1e-5)


def test_blocks_without_images_or_rows_among_others(ray, images, tmp_path):
    """And no null of the other columns becomes a value."""
    pa = pytest.importorskip("pyarrow")
    Image.fromarray(images[0]).save(tmp_path / "0.png")
    content = (tmp_path / "0.png").read_bytes()
    labels = pa.array(["a", None, "b"]).dictionary_encode()
    kind = pa.dictionary(pa.int32(), pa.binary())
    columns = [pa.nulls(3), pa.array([], kind), pa.nulls(3, kind)]
    columns.append(pa.array([None, content, content]).dictionary_encode())
    tables = [
        pa.table({"image": column, "label": labels[: len(column)]})
        for column in columns
    ]
    dataset = ray.data.from_arrow(tables)
    lenient = CLIPFeaturizer("demo", on_error="nan")
    found = embed(dataset, lenient, column="image", output="Z").take_all()
    missing = [np.isnan(row["Z"]).all() for row in found]
    assert missing == [True] * 7 + [False] * 2
    assert [row["label"] for row in found] == ["a", None, "b"] * 3


def test_rows_without_an_embedding_are_refused(ray, rows):
    pa = pytest.importorskip("pyarrow")
    lists = [None, *rows["embedding"][1:6].tolist()]
    for values in (pa.array(lists), pa.nulls(6)):
        dataset = ray.data.from_arrow(pa.table({"Z": values}))
        with pytest.raises(ValueError, match=r"'Z' has no value in \d of a batch of 6"):
            fit_icm(dataset, ICMTransformer(), column="Z", counterparts="Z")


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(ImportError, match=re.escape("skclip-icm[ray]")):
        fit_icm(None, ICMTransformer())
