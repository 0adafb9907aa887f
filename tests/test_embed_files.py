"""Images become files of embeddings, and an interrupted run goes on."""

import os
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose
from PIL import Image

from skclip_icm import (
    CLIPFeaturizer,
    EmbeddingFiles,
    ICMTransformer,
    ImageError,
    PairedEmbeddings,
    embed_files,
    fit_files,
)
from skclip_icm._locks import locked_file

FEATURIZER = CLIPFeaturizer("demo", interventions=["grayscale", "invert"])


@pytest.fixture
def paths(photographs, tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(6)]
    for path, pixels in zip(paths, photographs, strict=True):
        Image.fromarray(pixels).save(path)
    return paths


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "embeddings"


@pytest.mark.parametrize("file_format", ["npy", "parquet"])
def test_files_hold_what_the_featurizer_gives(paths, folder, file_format):
    files = embed_files(
        paths, FEATURIZER, folder, file_format=file_format, rows_per_file=4
    )
    Z = FEATURIZER.intervene(paths)
    assert_allclose(np.asarray(files.embeddings), np.asarray(Z), atol=1e-6)
    for k, rows in enumerate(files.counterparts):
        assert_allclose(np.asarray(rows), Z.counterparts[:, k], atol=1e-6)
    assert files.failed == []
    icm = fit_files(files.embeddings, ICMTransformer(2), X_do=files.counterparts)
    whole = ICMTransformer(2).fit(PairedEmbeddings(Z, Z.counterparts))
    assert_allclose(np.abs(icm.components_), np.abs(whole.components_), atol=1e-4)


def test_parts_are_named_as_clip_retrieval_names_them(paths, folder):
    embed_files(paths, FEATURIZER, folder, rows_per_file=4)
    found = {str(p.relative_to(folder)) for p in folder.rglob("*.*")}
    folders = "img_emb", "img_emb_do_0", "img_emb_do_1"
    expected = {f"{name}/img_emb_{i}.npy" for name in folders for i in range(2)}
    assert found == {*expected, "embed_files.json", ".embed_files.lock"}


def test_parquet_has_the_paths(paths, folder):
    embed_files(paths, FEATURIZER, folder, file_format="parquet", rows_per_file=4)
    table = pq.read_table(folder / "metadata" / "metadata_1.parquet")
    assert table["image_path"].to_pylist() == paths[4:]
    assert table["row"].to_pylist() == [4, 5]
    assert "embedding_do_1" in table.column_names


def test_an_interrupted_run_goes_on_behind_the_last_part(paths, folder, forward_rows):
    removed, featurizer = Image.open(paths[4]), CLIPFeaturizer("demo", n_jobs=1)
    featurizer.set_params(interventions=None)
    removed.load()
    with open(paths[4], "wb"):
        pass
    with pytest.raises(ImageError, match="row 4: "):
        embed_files(paths, featurizer, folder, rows_per_file=2)
    assert sorted(p.name for p in (folder / "img_emb").iterdir()) == [
        "img_emb_0.npy",
        "img_emb_1.npy",
    ]
    removed.save(paths[4])
    before = (folder / "img_emb" / "img_emb_0.npy").stat().st_mtime_ns
    files = embed_files(paths, featurizer, folder, rows_per_file=2)
    assert (folder / "img_emb" / "img_emb_0.npy").stat().st_mtime_ns == before
    Z = featurizer.transform(paths)
    assert_allclose(np.asarray(files.embeddings), Z, atol=1e-6)
    assert files.counterparts == []
    done = forward_rows()
    embed_files(paths, featurizer, folder, rows_per_file=2)
    assert forward_rows() == done


def test_rows_that_cannot_be_read_are_left_out_and_told(paths, folder):
    paths[1] = "nowhere.png"
    paths[2:4] = ["nowhere.png", "nowhere.png"]  # a part without any
    featurizer = CLIPFeaturizer("demo", on_error="nan")
    for _ in range(2):  # told again where all is there already
        with pytest.warns(UserWarning, match="3 of 6 .* rows 1, 2, 3.*numpy.delete"):
            files = embed_files(paths, featurizer, folder, rows_per_file=2)
        assert files.failed == [1, 2, 3]
        kept = featurizer.transform([paths[row] for row in (0, 4, 5)])
        assert_allclose(np.asarray(files.embeddings), kept, atol=1e-6)
    with pytest.raises(ValueError, match="None of the 2 images"):
        embed_files(["a", "b"], featurizer, folder.with_name("other"))


def test_a_folder_of_something_else_is_not_mixed_with(paths, folder):
    embed_files(paths, FEATURIZER, folder, rows_per_file=2)
    with pytest.raises(ValueError, match="other images in the rows 2 to 3"):
        embed_files([*paths[:3], *paths[:3]], FEATURIZER, folder, rows_per_file=2)
    with pytest.raises(ValueError, match="3 parts, X makes 2"):
        embed_files(paths[:4], FEATURIZER, folder, rows_per_file=2)
    with pytest.raises(ValueError, match="another rows_per_file: 2 there, 3 now"):
        embed_files(paths, FEATURIZER, folder, rows_per_file=3)
    other = CLIPFeaturizer("demo", interventions="invert")
    with pytest.raises(ValueError, match="another interventions"):
        embed_files(paths, other, folder, rows_per_file=2)
    (folder.parent / "foreign" / "img_emb").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="not by embed_files"):
        embed_files(paths, FEATURIZER, folder.parent / "foreign")
    more = embed_files([*paths, *paths], FEATURIZER, folder, rows_per_file=2)
    assert len(more.embeddings) == 12


@pytest.fixture
def bitmaps(photographs, tmp_path):
    """Files of one size, whatever they show."""
    paths = [str(tmp_path / f"{i}.bmp") for i in range(4)]
    for path, pixels in zip(paths, photographs, strict=False):
        Image.fromarray(pixels).save(path)
        age(path)
    return paths


def age(path, seconds=60):
    """Make a file older: what has just changed is read again in any case."""
    changed = os.stat(path).st_mtime - seconds
    os.utime(path, (changed, changed))


def test_a_file_that_changed_since_is_noticed_also_at_equal_size(bitmaps, folder):
    embed_files(bitmaps, FEATURIZER, folder, rows_per_file=2)
    size = os.stat(bitmaps[1]).st_size
    Image.open(bitmaps[1]).rotate(180).save(bitmaps[1])
    age(bitmaps[1], 1000)
    assert os.stat(bitmaps[1]).st_size == size
    with pytest.raises(ValueError, match="rows 0 to 1, .*changed since.*img_emb_0"):
        embed_files(bitmaps, FEATURIZER, folder, rows_per_file=2)
    (folder / "img_emb" / "img_emb_0.npy").unlink()  # as the message says
    files = embed_files(bitmaps, FEATURIZER, folder, rows_per_file=2)
    Z = FEATURIZER.transform(bitmaps)
    assert_allclose(np.asarray(files.embeddings), Z, atol=1e-6)


def test_the_same_content_elsewhere_is_the_same(bitmaps, folder, monkeypatch):
    embed_files(bitmaps, FEATURIZER, folder, rows_per_file=2)
    for path in bitmaps:
        age(path)
    monkeypatch.chdir(folder.parent)
    for images in bitmaps, [os.path.basename(path) for path in bitmaps]:
        files = embed_files(images, FEATURIZER, folder, rows_per_file=2)
        assert len(files.embeddings) == 4


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"about"', '{"about": 1, "parts": 2, "checksum": 3}']
)
def test_a_damaged_record_is_told(bitmaps, folder, content):
    folder.mkdir()
    (folder / "embed_files.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="json is damaged, .*Give another folder"):
        embed_files(bitmaps, FEATURIZER, folder)


def test_a_record_with_another_number_is_told(bitmaps, folder):
    embed_files(bitmaps, FEATURIZER, folder)
    record = folder / "embed_files.json"
    text = record.read_text(encoding="utf-8")
    record.write_text(text.replace('"failed": []', '"failed": [1]'), encoding="utf-8")
    with pytest.raises(ValueError, match="checksum is another"):
        embed_files(bitmaps, FEATURIZER, folder)


@pytest.mark.parametrize("file_format", ["npy", "parquet"])
def test_parts_that_are_not_what_was_written_are_written_again(
    bitmaps, folder, file_format
):
    options = {"file_format": file_format, "rows_per_file": 2}
    files = embed_files(bitmaps, FEATURIZER, folder, **options)
    expected, paths = np.asarray(files.embeddings), files.embeddings.paths
    os.truncate(paths[0], paths[0].stat().st_size - 20)
    leftover = paths[0].with_name(".0123.unfinished")  # of a process that was killed
    leftover.touch()
    if file_format == "npy":
        np.save(paths[1], expected[:1])
    files = embed_files(bitmaps, FEATURIZER, folder, **options)
    assert_allclose(np.asarray(files.embeddings), expected, atol=1e-6)
    assert not leftover.exists()
    swapped = [path.read_bytes() for path in paths[1::-1]]
    for path, content in zip(paths, swapped, strict=False):
        path.write_bytes(content)
    files = embed_files(bitmaps, FEATURIZER, folder, **options)
    assert_allclose(np.asarray(files.embeddings), expected, atol=1e-6)


def test_rows_left_out_are_an_error_where_none_may_be(bitmaps, folder):
    lenient, strict = (CLIPFeaturizer("demo", on_error=e) for e in ("nan", "raise"))
    with open(bitmaps[1], "wb"):
        pass
    with pytest.warns(UserWarning, match="1 of 4"):
        embed_files(bitmaps, lenient, folder, rows_per_file=2)
    with pytest.raises(ImageError, match="row 1: "):
        embed_files(bitmaps, strict, folder, rows_per_file=2)


def test_one_at_a_time(bitmaps, folder):
    folder.mkdir()
    with (
        locked_file(folder / ".embed_files.lock", "busy"),
        pytest.raises(BlockingIOError, match="Another embed_files is writing to"),
    ):
        embed_files(bitmaps, FEATURIZER, folder)
    assert len(embed_files(bitmaps, FEATURIZER, folder).embeddings) == 4


def test_folders_of_home_and_file_addresses(bitmaps, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    embed_files(bitmaps, FEATURIZER, "~/embeddings")
    assert len(EmbeddingFiles((tmp_path / "embeddings" / "img_emb").as_uri())) == 4
    assert len(EmbeddingFiles("~/embeddings/img_emb")) == 4


def test_images_in_memory_are_known_by_content(photographs, folder):
    embed_files(photographs, FEATURIZER, folder, rows_per_file=4)
    embed_files(list(photographs), FEATURIZER, folder, rows_per_file=4)
    with pytest.raises(ValueError, match="other images"):
        embed_files(photographs[::-1], FEATURIZER, folder, rows_per_file=4)
    shutil.rmtree(folder)
    embed_files(photographs[::-1], FEATURIZER, folder, rows_per_file=4)
