"""The benchmark of scale runs at tiny sizes, and its cost model adds up."""

import json

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def scale(import_benchmark):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    return import_benchmark("scale")


def test_fits(scale, tmp_path):
    scale.main(["--quick", "--only", "fits", "--results", str(tmp_path)])
    rows = json.loads((tmp_path / "scale.json").read_text(encoding="utf-8"))["fits"]
    assert {row["method"] for row in rows} == set(scale.METHODS)
    assert all(row["seconds"] > 0 for row in rows)
    assert all(50 < row["before_mib"] <= row["peak_mib"] < 2000 for row in rows)
    table = (tmp_path / "scale.md").read_text(encoding="utf-8")
    assert "| 300 | 8 | ICM, fit_files |" in table
    for name in ("scale-time.png", "scale-memory.png"):
        assert 5_000 < (tmp_path / name).stat().st_size < 200_000


def test_cluster_and_cost(scale, tmp_path):
    pytest.importorskip("ray", reason="ray is not installed")
    row = {"n": 300, "d": 8, "method": "ICM, array", "ratio": 1, "seconds": 1}
    rows = [row | {"peak_mib": 1, "varies": varies} for varies in "nd"]
    path = tmp_path / "scale.json"
    path.write_text(json.dumps({"fits": rows}), encoding="utf-8")
    scale.main(["--quick", "--only", "cluster", "--results", str(tmp_path)])
    result = json.loads(path.read_text(encoding="utf-8"))
    assert result["fits"] == rows
    alone, actor = result["cluster"]["measured"]
    assert alone["images_per_s"] > 0
    assert actor["images_per_s"] > 0 and actor["fit_rows_per_s"] > 0
    assert [row["images"] for row in result["cost"][0]["rows"]] == list(scale.IMAGES)
    table = (tmp_path / "scale.md").read_text(encoding="utf-8")
    assert "## Cost model" in table
    assert 5_000 < (tmp_path / "scale-ray.png").stat().st_size < 200_000


def test_tiny_sizes_do_not_replace_the_results(scale):
    assert scale.parse([]).results == scale.RESULTS
    assert scale.parse(["--quick"]).results != scale.RESULTS


def test_cost_of_a_million_images(scale):
    found = scale.cost(
        10**6,
        rate=100,
        workers=10,
        image_bytes=50_000,
        width=500,
        flops=1e9,
        merge_s=0.001,
        counterparts=1,
    )
    assert found["embed_h"] == pytest.approx(1000 / 3600)
    assert found["read_tb"] == pytest.approx(0.05)
    assert found["written_tb"] == pytest.approx(0.004)
    assert found["fit_h"] == pytest.approx(50 / 3600)
    assert found["sums_tb"] == pytest.approx(1e6 / 16384 * 4e6 / 1e12)
    assert found["driver_h"] == pytest.approx(1e6 / 16384 / 3.6e6)
