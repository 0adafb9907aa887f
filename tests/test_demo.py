"""The demonstration that `make demo` runs, on forty of its photographs."""

import json

import pytest
from PIL import Image

pytest.importorskip("matplotlib")

from skclip_icm.demo import __main__ as demo


def test_it_prints_saves_and_repeats_its_results_without_encoding_again(
    elpv, tmp_path, monkeypatch, capsys, forward_rows
):
    monkeypatch.setattr(demo, "fetch_elpv", lambda: elpv)
    out = tmp_path / "out"
    options = ["--output", str(out), "--cache", str(tmp_path / "cache")]
    demo.main(options)
    first = forward_rows()
    assert first > 40
    printed = capsys.readouterr().out
    saved = json.loads((out / "demo.json").read_text())
    assert list(saved["results"]) == ["raw probe", "ICM"]
    for name, directions in saved["results"].items():
        (row,) = (line for line in printed.splitlines() if line.startswith(name))
        assert len(row.removeprefix(name).split()) == 6  # two directions and the mean
        assert list(directions) == ["mono to poly", "poly to mono"]
        for scores in directions.values():
            assert f"{scores['auc']:.3f}" in row
            assert f"{scores['balanced_accuracy']:.3f}" in row
    with Image.open(out / "demo.png") as figure:
        assert figure.size[0] > 1000

    demo.main(options)
    # The figure's one image is encoded anew, under each intervention.
    assert forward_rows() - first < 10
    again = json.loads((out / "demo.json").read_text())
    assert again["results"] == saved["results"]


def test_an_unknown_option_is_refused(capsys):
    with pytest.raises(SystemExit):
        demo.main(["--outptu", "x"])
    assert "unrecognized arguments: --outptu" in capsys.readouterr().err
