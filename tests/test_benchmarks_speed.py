"""The speed benchmark runs, at tiny sizes, and says of each aim whether it is met."""

import json

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def speed(import_benchmark):
    return import_benchmark("speed")


def test_sections_measure_and_report(speed, tmp_path):
    names = ["jpegs", "fit_tall", "warm_cache"]
    speed.main(["--quick", "--only", *names, "--results", str(tmp_path)])
    result = json.loads((tmp_path / "speed.json").read_text())
    assert list(result["sections"]) == names
    for section in result["sections"].values():
        assert all(row["seconds"] > 0 for row in section["contestants"].values())
        assert {aim["met"] for aim in section["aims"]} <= {True, False}
    jpegs = result["sections"]["jpegs"]["contestants"]
    cosines = [row["min_cosine"] for row in jpegs.values() if "min_cosine" in row]
    assert len(cosines) == 3 and min(cosines) > 0.99
    text = (tmp_path / "speed.md").read_text()
    assert "2000 x 1500" in text and ("| met |" in text or "| missed |" in text)


def test_a_section_run_later_is_added(speed, tmp_path):
    for name in ("fit_wide", "fit_tall"):
        speed.main(["--quick", "--only", name, "--results", str(tmp_path)])
    result = json.loads((tmp_path / "speed.json").read_text())
    assert list(result["sections"]) == ["fit_tall", "fit_wide"]
