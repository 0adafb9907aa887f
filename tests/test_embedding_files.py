"""Embeddings in files: what is read, what fits, and what is refused."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import subspace_angles
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline

from skclip_icm import ICMTransformer, PairedEmbeddings
from skclip_icm.datasets import make_causal_embeddings
from skclip_icm.files._embedding_files import EmbeddingFiles
from skclip_icm.files._fit import fit_files, transform_files


@pytest.fixture(scope="module")
def data():
    return make_causal_embeddings(n_samples=600, random_state=0)


@pytest.fixture
def folders(data, tmp_path):
    """The same rows in two folders, in 12 parts that differ from one to the other."""
    Z, Z_do = np.asarray(data.embeddings), data.embeddings.counterparts[:, 0]
    save_parts(tmp_path / "img_emb", Z, range(100, 1200, 100))
    save_parts(tmp_path / "do", Z_do, range(70, 840, 70))
    return tmp_path


def save_parts(folder, Z, cuts, name="img_emb"):
    folder.mkdir()
    for i, rows in enumerate(np.split(Z, cuts)):
        np.save(folder / f"{name}_{i}.npy", rows)


def assert_same_fit(icm, expected):
    assert icm.n_samples_seen_ == expected.n_samples_seen_
    assert icm.n_pairs_seen_ == expected.n_pairs_seen_
    assert icm.components_.shape == expected.components_.shape
    angles = subspace_angles(
        *(np.float64(fitted.components_.T) for fitted in (icm, expected))
    )
    assert angles.max() <= 1e-6
    np.testing.assert_allclose(icm.mean_, expected.mean_, atol=1e-7)
    np.testing.assert_allclose(icm.scale_, expected.scale_, rtol=1e-9)


def test_reads_numbered_parts_as_one_array(data, folders):
    Z = EmbeddingFiles(folders / "img_emb")
    assert [path.stem for path in Z.paths] == [f"img_emb_{i}" for i in range(12)]
    assert Z.shape == data.embeddings.shape
    assert Z.dtype == np.float32
    np.testing.assert_array_equal(Z, data.embeddings)
    assert [len(chunk) for chunk in Z.chunks(500)] == [500, 500, 200]
    np.testing.assert_array_equal(np.concatenate(list(Z.chunks(7))), data.embeddings)
    path, row = Z.locate(1105)
    assert (path.name, row) == ("img_emb_11.npy", 5)


def test_accepts_a_file_a_pattern_and_a_list(data, folders):
    folder = folders / "img_emb"
    np.save(folder / "other.npy", np.zeros((3, 3)))
    assert EmbeddingFiles(folder / "img_emb_3.npy").shape[0] == 100
    assert EmbeddingFiles(str(folder / "img_emb_*.npy")).shape[0] == 1200
    chosen = EmbeddingFiles([folder / "img_emb_5.npy", folder / "img_emb_2.npy"])
    np.testing.assert_array_equal(np.asarray(chosen)[:100], data.embeddings[500:600])


@pytest.mark.parametrize("stored", [np.float16, ">f4", np.float64])
def test_converts_chunk_by_chunk(data, tmp_path, stored):
    Z = np.asarray(data.embeddings).astype(stored)
    np.save(tmp_path / "Z.npy", Z)
    files = EmbeddingFiles(tmp_path / "Z.npy")
    assert files.dtype == (np.float64 if stored is np.float64 else np.float32)
    np.testing.assert_array_equal(files, Z.astype(files.dtype))


def test_reads_column_major_and_skips_empty_parts(data, tmp_path):
    Z = np.asarray(data.embeddings)
    np.save(tmp_path / "Z_0.npy", np.asfortranarray(Z[:700]))
    np.save(tmp_path / "Z_1.npy", Z[:0])
    np.save(tmp_path / "Z_2.npy", np.array([]))  # clip-retrieval, without an image
    np.save(tmp_path / "Z_3.npy", Z[700:])
    np.testing.assert_array_equal(EmbeddingFiles(tmp_path), Z)


def test_fit_equals_one_fit_on_all_rows(data, folders):
    expected = ICMTransformer(lam=10).fit(data.embeddings)
    icm = fit_files(
        folders / "img_emb", ICMTransformer(lam=10), X_do=str(folders / "do")
    )
    assert_same_fit(icm, expected)
    # It holds its sums, so rows can be added to it.
    assert icm.partial_fit(data.embeddings).n_samples_seen_ == 2400


def test_many_small_chunks_give_the_same(data, folders, monkeypatch):
    width = data.embeddings.shape[1]
    monkeypatch.setattr("skclip_icm.files._fit.CHUNK_BYTES", 2 * 4 * width * 13)
    icm = fit_files(folders / "img_emb", ICMTransformer(lam=10), X_do=folders / "do")
    assert_same_fit(icm, ICMTransformer(lam=10).fit(data.embeddings))


@pytest.mark.parametrize("pairs", ["class", "domain"])
def test_fits_class_and_domain_pairs(data, folders, pairs, monkeypatch):
    monkeypatch.setattr("skclip_icm.files._fit.CHUNK_BYTES", 50_000)
    icm, y = ICMTransformer(pairs=pairs, lam=0.1), np.arange(1200) % 3
    labels = {"y": y, "domains": data.domains} if pairs == "domain" else {"y": y}
    fitted = fit_files(folders / "img_emb", icm, **labels)
    Z = np.asarray(data.embeddings)
    assert_same_fit(fitted, icm.fit(Z, **labels))


def test_several_interventions_and_memory_maps(data, folders):
    Z, Z_do = np.asarray(data.embeddings), data.embeddings.counterparts[:, 0]
    np.save(folders / "flipped.npy", Z_do[::-1])
    mapped = np.load(folders / "flipped.npy", mmap_mode="r")
    X_do = [folders / "do", mapped]
    icm = fit_files(folders / "img_emb", ICMTransformer(), X_do=X_do)
    both = np.stack([Z_do, Z_do[::-1]], axis=1)
    assert_same_fit(icm, ICMTransformer().fit(PairedEmbeddings(Z, both)))


def test_leaves_the_given_transformer_alone(folders):
    icm = ICMTransformer()
    fit_files(folders / "img_emb", icm, X_do=folders / "do")
    assert not hasattr(icm, "components_")


def test_given_pairs_of_different_length(data, folders):
    Z = np.asarray(data.embeddings)
    with pytest.raises(ValueError, match="differ in length: 1200 and 1199"):
        fit_files(folders / "img_emb", ICMTransformer(pairs=(Z, Z[1:])))


def test_no_pairs(data, folders):
    with pytest.raises(ValueError, match="finds no pairs"):
        fit_files(folders / "img_emb", ICMTransformer(pairs="class"), y=range(1200))


def test_rows_of_x_do_are_missing(folders):
    os.remove(folders / "do" / "img_emb_11.npy")
    with pytest.raises(ValueError, match=r"X_do has 770 rows, expected 1200"):
        fit_files(folders / "img_emb", ICMTransformer(), X_do=folders / "do")


def test_labels_are_missing(folders):
    with pytest.raises(ValueError, match=r"y has 3 rows, expected 1200"):
        fit_files(folders / "img_emb", ICMTransformer(), y=[0, 1, 1])


@pytest.mark.parametrize("place", ["img_emb", "do"])
def test_nan_is_found_by_file_and_row(data, folders, place):
    path = folders / place / "img_emb_3.npy"
    rows = np.load(path)
    rows[7, 2] = np.nan
    np.save(path, rows)
    icm = ICMTransformer().partial_fit(data.embeddings)
    before = pickle.dumps(icm)
    name = "X_do" if place == "do" else "X"
    message = rf"img_emb_3.npy, row 7: NaN or infinity in {name}\."
    with pytest.raises(ValueError, match=message):
        fit_files(folders / "img_emb", icm, X_do=folders / "do")
    assert pickle.dumps(icm) == before


def test_transform_writes_one_file_for_each(data, folders):
    icm = ICMTransformer(lam=10).fit(data.embeddings)
    np.save(folders / "img_emb" / "img_emb_12.npy", np.asarray(data.embeddings)[:0])
    out = transform_files(folders / "img_emb", icm, folders / "out")
    names = [path.name for path in EmbeddingFiles(folders / "img_emb").paths]
    assert [path.name for path in out.paths] == names
    assert sorted(os.listdir(folders / "out")) == sorted(names)
    expected = icm.transform(data.embeddings)
    assert np.load(out.paths[4]).shape == (100, icm.n_components_)
    np.testing.assert_allclose(out, expected, atol=1e-6)
    with pytest.raises(FileExistsError, match=r"img_emb_0.npy"):
        transform_files(folders / "img_emb", icm, folders / "out")


def test_a_failed_transform_leaves_no_half_file(data, folders):
    icm = ICMTransformer().fit(data.embeddings)
    path = folders / "img_emb" / "img_emb_1.npy"
    rows = np.load(path)
    rows[99] = np.inf
    np.save(path, rows)
    with pytest.raises(ValueError, match=r"img_emb_1.npy, row 99: NaN or infinity"):
        transform_files(folders / "img_emb", icm, folders / "out")
    assert os.listdir(folders / "out") == ["img_emb_0.npy"]


def test_a_missing_part(folders):
    os.remove(folders / "img_emb" / "img_emb_4.npy")
    with pytest.raises(FileNotFoundError, match=r"number 4 is missing \(1 in all\)"):
        EmbeddingFiles(folders / "img_emb")
    # A list says what is wanted.
    assert len(EmbeddingFiles(sorted((folders / "img_emb").iterdir()))) == 1100


@pytest.mark.parametrize(
    ("numbers", "error", "message"),
    [
        (["32_emb_0", "32_emb_1", "32_emb_3"], FileNotFoundError, "number 2 is mis"),
        (["0", "20240102123000"], FileNotFoundError, r"1 is missing \(202401021229"),
        (["0", "1", "01"], ValueError, "'B-01.npy' has the number of another part"),
        (["20240101123000", "20240102123000", "9" * 200], None, ""),
    ],
)
def test_numbers_of_parts(tmp_path, numbers, error, message):
    for number in numbers:
        np.save(tmp_path / f"B-{number}.npy", np.ones((2, 3)))
    if error is None:
        assert len(EmbeddingFiles(tmp_path)) == 2 * len(numbers)
        return
    with pytest.raises(error, match=message):
        EmbeddingFiles(tmp_path)


def save_npy(path, Z):
    np.save(path, Z)


def save_columns(path, Z):
    np.save(path, np.asfortranarray(Z))


def save_parquet(path, Z):
    pa = pytest.importorskip("pyarrow")
    write_parquet(pa, path, as_column(pa, Z, "fixed"))


@pytest.mark.parametrize("save", [save_npy, save_columns, save_parquet])
def test_files_that_change_after_they_were_opened(data, tmp_path, save):
    name = "Z.parquet" if save is save_parquet else "Z.npy"
    Z, path = np.asarray(data.embeddings), tmp_path / name
    column = "embedding" if save is save_parquet else None
    save(path, Z)
    files = EmbeddingFiles(path, column)
    icm = ICMTransformer().fit(data.embeddings)
    for other in (Z[:700], np.tile(Z, (1, 2)), Z.astype(np.float64)):
        save(path, other)
        with pytest.raises(
            ValueError, match=rf"{name} has changed since it was opened"
        ):
            fit_files(files, ICMTransformer(), X_do=Z)
    save(path, Z[:700])
    with pytest.raises(ValueError, match=r"700 rows were given, expected 1200"):
        transform_files(files, icm, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    path = tmp_path / "Z.npy"
    for order in "CF":
        np.save(path, np.ones((20_000, 4), np.float32, order))
        chunks = EmbeddingFiles(path).chunks(100)
        next(chunks)
        os.truncate(path, 90_000)
        with pytest.raises(ValueError, match="has changed since it was opened"):
            list(chunks)


def test_relative_paths_are_those_of_then(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("Z.npy", np.ones((2, 3)))
    files = EmbeddingFiles("Z.npy")
    monkeypatch.chdir("/")
    assert np.asarray(files).shape == (2, 3)


@pytest.mark.parametrize("X", [[], [1.0, 2.0], np.ones((0, 4))])
def test_something_else_than_rows(data, X):
    with pytest.raises(ValueError, match=r"X has shape \(.*expected \(n, d\)"):
        fit_files(X, ICMTransformer())
    Z = np.asarray(data.embeddings)
    with pytest.raises(ValueError, match=r"X_do\[1\] has shape \("):
        fit_files(Z, ICMTransformer(), X_do=[Z, X])
    with pytest.raises(TypeError, match="icm is of type Pipeline, expected an ICMTr"):
        fit_files(Z, Pipeline([("icm", ICMTransformer())]), X_do=Z)


def test_paths_of_another_type():
    for source in ([3], [b"Z.npy"], [None]):
        with pytest.raises(
            TypeError, match=r"source\[0\] is of type .*expected a path"
        ):
            EmbeddingFiles(source)


@pytest.mark.parametrize(
    "names",
    [
        ["img_emb_0", "img_emb_1", "text_emb_0", "text_emb_1"],
        ["img_emb_0", "img_emb_1", "text_emb_0"],
        ["img_emb_00", "text_emb_0"],
        ["img2_emb_0", "text2_emb_0"],
        ["img_emb", "text_emb"],
        ["img_emb_0", "labels"],
    ],
)
def test_two_series_in_one_folder(tmp_path, names):
    for name in names:
        np.save(tmp_path / f"{name}.npy", np.ones((2, 3)))
    first = re.sub(r"\d+", "*", names[0])
    with pytest.raises(ValueError, match=rf"{re.escape(first)}.npy'.*as a pattern"):
        EmbeddingFiles(tmp_path)
    everything = EmbeddingFiles([tmp_path / f"{name}.npy" for name in names])
    assert len(everything) == 2 * len(names)


def test_transforming_with_an_unfitted_transformer_leaves_no_folder(folders):
    with pytest.raises(NotFittedError):
        transform_files(folders / "img_emb", ICMTransformer(), folders / "new")
    assert not (folders / "new").exists()


def test_given_pairs_take_no_class_pairs_in_place_of_counterparts(folders):
    pairs = (np.eye(64), np.eye(64)[::-1], 0.5)
    with pytest.raises(ValueError, match="carries no counterparts"):
        fit_files(folders / "img_emb", ICMTransformer(pairs=pairs), y=np.arange(1200))


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a folder without \.npy files"):
        EmbeddingFiles(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        EmbeddingFiles(tmp_path / "nowhere.npy")
    with pytest.raises(FileNotFoundError, match="no such file"):
        EmbeddingFiles([tmp_path / "nowhere.npy"])
    with pytest.raises(ValueError, match="empty list"):
        EmbeddingFiles([])
    with pytest.raises(TypeError, match="of type ndarray"):
        EmbeddingFiles(np.eye(3))


def test_parts_of_different_width(folders):
    np.save(folders / "img_emb" / "img_emb_12.npy", np.ones((5, 3)))
    message = r"img_emb_12.npy holds 3 features, .*img_emb_0.npy \d+"
    with pytest.raises(ValueError, match=message):
        EmbeddingFiles(folders / "img_emb")


def test_x_do_of_another_width(folders):
    np.save(folders / "narrow.npy", np.ones((1200, 3)))
    with pytest.raises(ValueError, match="3 features"):
        fit_files(folders / "img_emb", ICMTransformer(), X_do=folders / "narrow.npy")


class Trap:
    """Leaves a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(tmp_path):
    trap = np.array([[Trap(tmp_path / "sprung")]], dtype=object)
    np.save(tmp_path / "Z.npy", trap, allow_pickle=True)
    with pytest.raises(ValueError, match=r"Z.npy: the array is of dtype object"):
        EmbeddingFiles(tmp_path / "Z.npy")
    (tmp_path / "Z.npy").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(ValueError, match=r"Z.npy: this is not a NumPy file"):
        EmbeddingFiles(tmp_path / "Z.npy")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones(4, np.float32), r"expected an array of shape \(n, d\).*got \(4,\)"),
        (np.ones((4, 2, 3, 2)), r"got \(4, 2, 3, 2\)"),
        (np.ones((4, 2), np.int64), "dtype int64, expected float16"),
        (np.ones((4, 2), complex), "dtype complex128"),
        (np.ones((0, 2)), "no file there holds a row"),
        # Rows there are; to skip them would shift those of the files behind.
        (np.ones((4, 0)), r"got \(4, 0\)"),
        (np.ones((4, 0, 2)), r"got \(4, 0, 2\)"),
    ],
)
def test_arrays_that_are_no_embeddings(tmp_path, array, message):
    np.save(tmp_path / "Z.npy", array)
    with pytest.raises(ValueError, match=message):
        EmbeddingFiles(tmp_path / "Z.npy")


def test_files_that_are_cut_short(folders):
    path = folders / "img_emb" / "img_emb_2.npy"
    os.truncate(path, path.stat().st_size - 4)
    with pytest.raises(ValueError, match=r"img_emb_2.npy: the file is cut short"):
        EmbeddingFiles(folders / "img_emb")
    os.truncate(path, 3)
    with pytest.raises(ValueError, match=r"img_emb_2.npy: this is not a NumPy file"):
        EmbeddingFiles(folders / "img_emb")


@pytest.mark.parametrize("n_rows", [0, -1, 2.5, "all", True])
def test_chunks_of_no_rows(folders, n_rows):
    with pytest.raises(ValueError, match=rf"n_rows is {n_rows!r}, expected a whole"):
        EmbeddingFiles(folders / "img_emb").chunks(n_rows)


@pytest.mark.parametrize("row", [-1, 1200, 1.5, True])
def test_locates_only_rows_that_are_there(folders, row):
    with pytest.raises(IndexError, match=rf"row {row} is not there: .* 0 to 1199"):
        EmbeddingFiles(folders / "img_emb").locate(row)


def test_hidden_files_are_no_parts(folders):
    whole = np.asarray(EmbeddingFiles(folders / "img_emb"))
    for name in (".DS_Store", "._img_emb_0.npy", ".img_emb_0.npy.unfinished"):
        (folders / "img_emb" / name).write_bytes(b"\0\5\x16\7")
    np.testing.assert_array_equal(EmbeddingFiles(folders / "img_emb"), whole)
    (folders / "hidden").mkdir()
    (folders / "hidden" / "._img_emb_0.npy").write_bytes(b"\0\5\x16\7")
    with pytest.raises(FileNotFoundError, match=r"a folder without \.npy files"):
        EmbeddingFiles(folders / "hidden")


def test_digits_that_are_no_numbers(data, tmp_path):
    Z = np.asarray(data.embeddings)
    for name, rows in [("emb_10\u00b23", Z[700:]), ("emb_9\u00b23", Z[:700])]:
        np.save(tmp_path / f"{name}.npy", rows)
    np.testing.assert_array_equal(EmbeddingFiles(tmp_path), Z)


def test_something_else_than_one_array_in_a_file(tmp_path):
    path = tmp_path / "Z.npy"
    with open(path, "wb") as file:
        np.save(file, np.ones((2, 3)))
        np.save(file, np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"Z.npy: \d+ bytes follow the array of shape"):
        EmbeddingFiles(path)
    header = bytearray(path.read_bytes())
    header[8] = ord(" ")  # a length of the header that ends inside of a string
    path.write_bytes(header)
    with pytest.raises(ValueError, match=r"Z.npy: this is not a NumPy file"):
        EmbeddingFiles(path)
    (tmp_path / "W.npy").mkdir()
    with pytest.raises(ValueError, match=r"W.npy is a folder, expected a file"):
        EmbeddingFiles(str(tmp_path / "W*"))


def test_counterparts_under_several_interventions_in_one_file(data, tmp_path):
    Z, Z_do = np.asarray(data.embeddings), data.embeddings.counterparts[:, 0]
    both = np.stack([Z_do, Z_do[::-1]], axis=1)
    np.save(tmp_path / "Z.npy", Z)
    np.save(tmp_path / "both.npy", both)
    np.save(tmp_path / "columns.npy", np.asfortranarray(both))
    expected = ICMTransformer().fit(PairedEmbeddings(Z, both))
    for name in ("both", "columns"):
        files = EmbeddingFiles(tmp_path / f"{name}.npy")
        assert files.shape == both.shape
        icm = fit_files(tmp_path / "Z.npy", ICMTransformer(), X_do=files)
        assert_same_fit(icm, expected)
    three = np.concatenate([Z_do[:, None], both], axis=1)
    expected = ICMTransformer().fit(PairedEmbeddings(Z, three))
    for X in (Z, Z.tolist(), [tmp_path / "Z.npy"], (str(tmp_path / "Z.npy"),)):
        for X_do in ([Z_do, tmp_path / "both.npy"], (Z_do, both)):
            assert_same_fit(fit_files(X, ICMTransformer(), X_do=X_do), expected)
    with pytest.raises(ValueError, match=r"X_do has shape \(64,\), expected \(n, d\)"):
        fit_files(Z, ICMTransformer(), X_do=Z_do[0])
    for use in (
        lambda: fit_files(files, ICMTransformer(), X_do=files),
        lambda: transform_files(files, icm, tmp_path / "out"),
    ):
        with pytest.raises(ValueError, match=r"X has shape \(1200, 2, 64\), expected"):
            use()
    with pytest.raises(ValueError, match=r"2 counterparts of 64 features, .* 64 feat"):
        EmbeddingFiles([tmp_path / "Z.npy", tmp_path / "both.npy"])


# Parquet


@pytest.fixture
def pa():
    pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    return pytest.importorskip("pyarrow")


def write_parquet(pa, path, column):
    table = pa.table({"url": ["x"] * len(column), "embedding": column})
    pa.parquet.write_table(table, path, row_group_size=250)


def as_column(pa, Z, kind):
    values = pa.array(Z.reshape(-1))
    fixed = pa.FixedSizeListArray.from_arrays(values, Z.shape[1])
    if kind == "tensor":
        tensor = pa.fixed_shape_tensor(pa.from_numpy_dtype(Z.dtype), [Z.shape[1]])
        return pa.ExtensionArray.from_storage(tensor, fixed)
    value_type = pa.from_numpy_dtype(Z.dtype)
    lists = {"list": pa.list_(value_type), "large_list": pa.large_list(value_type)}
    return fixed if kind == "fixed" else fixed.cast(lists[kind])


@pytest.mark.parametrize("kind", ["list", "large_list", "fixed", "tensor"])
def test_reads_parquet_columns(data, tmp_path, pa, kind):
    Z = np.asarray(data.embeddings)
    for i, rows in enumerate([Z[:500], Z[:0], Z[500:]]):
        path = tmp_path / f"metadata_{i}.parquet"
        write_parquet(pa, path, as_column(pa, rows, kind))
    files = EmbeddingFiles(tmp_path, column="embedding")
    assert files.shape == Z.shape
    np.testing.assert_array_equal(files, Z)
    np.testing.assert_array_equal(np.concatenate(list(files.chunks(333))), Z)


def test_fit_and_transform_parquet(data, tmp_path, pa):
    Z, Z_do = np.asarray(data.embeddings), data.embeddings.counterparts[:, 0]
    write_parquet(pa, tmp_path / "Z.parquet", as_column(pa, Z, "list"))
    write_parquet(pa, tmp_path / "Z_do.parquet", as_column(pa, Z_do, "fixed"))
    X, X_do = (
        EmbeddingFiles(tmp_path / f"{name}.parquet", column="embedding")
        for name in ("Z", "Z_do")
    )
    icm = fit_files(X, ICMTransformer(lam=10), X_do=X_do)
    assert_same_fit(icm, ICMTransformer(lam=10).fit(data.embeddings))
    out = transform_files(X, icm, tmp_path / "out")
    assert [path.name for path in out.paths] == ["Z.npy"]
    np.testing.assert_allclose(out, icm.transform(Z), atol=1e-6)


def test_parquet_columns_that_are_no_embeddings(tmp_path, pa):
    path = tmp_path / "part.parquet"
    write_parquet(pa, path, pa.array([[1.0, 2.0], [3.0]]))
    with pytest.raises(ValueError, match=r"no column 'clip'; it has \['url', 'emb"):
        EmbeddingFiles(path, column="clip")
    with pytest.raises(ValueError, match="'url' is of type string, expected lists of"):
        EmbeddingFiles(path, column="url")
    with pytest.raises(ValueError, match=r"part.parquet, row 1: .* 1 numbers, expec"):
        np.asarray(EmbeddingFiles(path, column="embedding"))
    write_parquet(pa, path, pa.array([[1, 2], [3, 4]]))
    with pytest.raises(ValueError, match=r"is of type list<.*int64>, expected"):
        EmbeddingFiles(path, column="embedding")
    write_parquet(pa, path, pa.array([[1.0, 2.0], None]))
    with pytest.raises(ValueError, match=r"part.parquet, row 1: .* holds 0 numbers"):
        np.asarray(EmbeddingFiles(path, column="embedding"))


def test_parquet_columns_of_one_name(tmp_path, pa):
    column = as_column(pa, np.ones((4, 3), np.float32), "fixed")
    table = pa.table([column, column], names=["Z", "Z"])
    pa.parquet.write_table(table, tmp_path / "part.parquet")
    with pytest.raises(ValueError, match=r"there are 2 columns 'Z'"):
        EmbeddingFiles(tmp_path / "part.parquet", column="Z")


def as_tensors(pa, rows, shape, **options):
    kind = pa.fixed_shape_tensor(pa.float32(), shape, **options)
    lists = as_column(pa, rows.reshape(len(rows), -1), "fixed")
    return pa.ExtensionArray.from_storage(kind, lists)


def test_counterparts_in_a_column_of_tensors(data, tmp_path, pa):
    Z, Z_do = np.asarray(data.embeddings), data.embeddings.counterparts
    both = np.concatenate([Z_do, Z_do[::-1]], axis=1)
    path = tmp_path / "part.parquet"
    write_parquet(pa, path, as_tensors(pa, both, [2, 64]))
    files = EmbeddingFiles(path, column="embedding")
    np.testing.assert_array_equal(files, both)
    expected = ICMTransformer().fit(PairedEmbeddings(Z, both))
    assert_same_fit(fit_files(Z, ICMTransformer(), X_do=files), expected)
    for shape, options, message in [
        ([2, 8, 8], {}, r"128 numbers in a row, of shape \(2, 8, 8\)"),
        ([64, 2], {"permutation": [1, 0]}, "tensors with permuted axes"),
    ]:
        write_parquet(pa, path, as_tensors(pa, both, shape, **options))
        with pytest.raises(ValueError, match=message):
            EmbeddingFiles(path, column="embedding")


@pytest.mark.parametrize("shape", [b"[2, 64]", b"[3, 64]", b"\x80\x05K\x02."])
def test_tensors_that_ray_wrote_without_ray(data, tmp_path, pa, shape):
    """As Ray writes them: lists, with the shape in the metadata of the column."""
    Z_do = data.embeddings.counterparts
    both = np.concatenate([Z_do, Z_do[::-1]], axis=1)
    lists = as_column(pa, both.reshape(1200, -1), "large_list")
    named = {
        b"ARROW:extension:name": b"ray.data.arrow_tensor_v2",
        b"ARROW:extension:metadata": shape,
    }
    schema = pa.schema([pa.field("Z", lists.type, metadata=named)])
    path = tmp_path / "part.parquet"
    pa.parquet.write_table(pa.table([lists], schema=schema), path)
    if shape == b"[2, 64]":
        np.testing.assert_array_equal(EmbeddingFiles(path, column="Z"), both)
        return
    with pytest.raises(ValueError, match="of shape|rite lists of floats"):
        EmbeddingFiles(path, column="Z")


def test_a_missing_value_in_parquet_is_nan(tmp_path, pa):
    path = tmp_path / "part.parquet"
    write_parquet(pa, path, pa.array([[1.0, 2.0], [None, 4.0], [0.0, 1.0]]))
    X = EmbeddingFiles(path, column="embedding")
    with pytest.raises(ValueError, match=r"part.parquet, row 1: NaN or infinity in X"):
        fit_files(X, ICMTransformer(), X_do=np.ones((3, 2)))


def test_a_parquet_file_needs_a_column_and_to_be_one(tmp_path, pa):
    path = tmp_path / "part.parquet"
    write_parquet(pa, path, pa.array([[1.0, 2.0]]))
    with pytest.raises(ValueError, match="name the column"):
        EmbeddingFiles(path)
    path.write_bytes(b"no such thing" * 9)
    with pytest.raises(ValueError, match=r"part.parquet: this is not a Parquet file"):
        EmbeddingFiles(path, column="embedding")


def test_damage_to_a_parquet_file_is_told_with_its_name(data, tmp_path, pa):
    """And no damage gives other rows, where the file has checksums."""
    Z, path = np.asarray(data.embeddings)[:50], tmp_path / "part.parquet"
    table = pa.table({"Z": as_column(pa, Z, "fixed")})
    pa.parquet.write_table(table, path, write_page_checksum=True)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for at in rng.integers(len(whole), size=100):
        damaged = bytearray(whole)
        damaged[at] ^= 1 + rng.integers(255)
        path.write_bytes(damaged)
        try:
            found = np.asarray(EmbeddingFiles(path, column="Z"))
        except ValueError as error:
            assert "part.parquet" in str(error)
        else:
            np.testing.assert_array_equal(found, Z)


def test_without_pyarrow(tmp_path, monkeypatch):
    (tmp_path / "part.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"skclip-icm\[parquet\]"):
        EmbeddingFiles(tmp_path, column="embedding")


# Memory

MEASURE = """
import re, sys
from pathlib import Path
import numpy as np
from skclip_icm import ICMTransformer
from skclip_icm.files._embedding_files import EmbeddingFiles
from skclip_icm.files._fit import fit_files, transform_files

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])

folder, column = sys.argv[1], sys.argv[2] or None
rows = np.random.default_rng(0).standard_normal((2000, 512), dtype=np.float32)
ICMTransformer().fit(rows, X_do=rows + rows[::-1])
X = EmbeddingFiles(f"{folder}/X*", column)
for chunk in X.chunks(1):  # loads the readers
    break
before = peak()
icm = fit_files(X, ICMTransformer(), X_do=EmbeddingFiles(f"{folder}/Y*", column))
transform_files(X, icm, f"{folder}/out")
print((peak() - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_memory_is_for_a_chunk_whatever_the_size_of_the_file(tmp_path, kind, request):
    n, d = 100_000, 512  # 205 MB a file
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((n // 50, d), dtype=np.float32)
    for name in ("X", "Y"):
        moved = rows if name == "X" else rows + rows[::-1]
        if kind == "npy":
            np.save(tmp_path / f"{name}.npy", np.tile(moved, (50, 1)))
            continue
        pa = request.getfixturevalue("pa")
        column = as_column(pa, np.tile(moved, (50, 1)), "fixed")
        # One row group, as pyarrow writes up to a million rows.
        pa.parquet.write_table(
            pa.table({"Z": column}), tmp_path / f"{name}.parquet", use_dictionary=False
        )
    arguments = [tmp_path, "" if kind == "npy" else "Z"]
    root = Path(__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    # MiB; two files of 195 MiB were read
    assert float(run.stdout) < 270
