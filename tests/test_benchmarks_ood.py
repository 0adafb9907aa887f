"""The benchmark runs on a folder of domains and on a known causal model."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skclip_icm import CLIPFeaturizer

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not BENCHMARKS.is_dir(), reason="the source distribution has no benchmarks"
    ),
]


@pytest.fixture
def ood(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import ood

    return ood


class Narrow(CLIPFeaturizer):
    """The first 48 features only: hundreds of eigendecompositions in a second."""

    def _embed(self, *args):
        embeddings, *others = super()._embed(*args)
        return embeddings[..., :48], *others

    def encode_text(self, texts):
        return super().encode_text(texts)[:, :48]


@pytest.fixture
def folder(tmp_path):
    """Three domains (background), four classes (bright part), five images each."""
    rng = np.random.default_rng(0)
    for d, domain in enumerate(["dark", "grey", "noisy"]):
        for c, name in enumerate(["top", "bottom", "left_side", "right_side"]):
            path = tmp_path / "tiny" / domain / name
            path.mkdir(parents=True)
            for i in range(5):
                high = (30, 110, 200)[d]
                pixels = rng.integers(high // 2, high, (32, 32, 3), np.uint8)
                half = [np.s_[:16], np.s_[16:], np.s_[:, :16], np.s_[:, 16:]][c]
                pixels[half] += 50
                Image.fromarray(pixels).save(path / f"{i}.png")
    return tmp_path / "tiny"


def test_causal_model(ood, tmp_path):
    ood.main(["--data", "causal", "--seeds", "2", "--n-jobs", "1", *_results(tmp_path)])
    result = json.loads((tmp_path / "ood-causal.json").read_text())
    assert list(result["methods"]) == ["shift"]  # two classes: no open class
    shift = {
        name: value and value["accuracy"][0]
        for name, value in result["methods"]["shift"].items()
    }
    assert shift["linear probe"] < 0.6
    assert shift["smallest eigenvalues"] < 0.1
    assert min(v for k, v in shift.items() if "interventional" in k) > 0.9
    assert shift["zero-shot"] is None
    renewed = ["--methods", "PCA", "--data", "causal", "--seeds", "2", "--n-jobs", "1"]
    ood.main([*renewed, *_results(tmp_path)])
    assert _untimed(tmp_path) == _untimed(result)
    assert result["missing"]["LEACE, domain erased"] == "needs two training domains"
    rules = result["rules"]["shift"]
    assert rules["separate interventions, worst"]["accuracy"][0] > 0.9
    assert rules["leave one domain out"] is None
    assert rules["in-domain validation"]["accuracy"][0] < 0.6
    best = rules["oracle (target labels)"]["accuracy"][0]
    assert all(rule is None or rule["accuracy"][0] <= best for rule in rules.values())


def test_folder(ood, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(ood, "CLIPFeaturizer", Narrow)
    cache = ["--cache", str(tmp_path / "cache")]
    arguments = ["--folder", str(folder), "--seeds", "1", "--n-jobs", "1"]
    ood.main([*arguments, *cache, *_results(tmp_path)])
    result = json.loads((tmp_path / "ood-tiny.json").read_text())
    assert result["targets"] == ["dark", "grey", "noisy"]
    assert result["classes"] == ["bottom", "left side", "right side", "top"]
    assert list(result["methods"]) == ["shift", "open", "both"]
    for protocol, values in result["methods"].items():
        present = {name for name, value in values.items() if value is not None}
        assert present == set(values) - set(result["missing"]), protocol
    assert set(result["missing"]) <= {"LEACE, domain erased"}  # an optional package
    assert result["rules"]["shift"]["leave one domain out"] is not None
    assert len({len(record) for record in result["records"]}) == 1
    assert len(result["records"][0]) == len(result["columns"])
    summary = (tmp_path / "ood.md").read_text()
    for name in [*result["methods"]["shift"], *result["rules"]["shift"], "## tiny"]:
        assert name in summary


def test_parts_do_not_share_what_they_show(ood):
    from ood_benchmark.data import causal
    from ood_benchmark.evaluate import folds, split

    task = causal(200)
    vars(task).update(groups=np.arange(400) // 4, held_out=np.arange(400) % 40 < 8)
    parts = split(task, seed=0)
    fitting, validation, test = (
        set(task.groups[mask]) for mask in (parts.fitting, parts.validation, parts.test)
    )
    assert not fitting & validation and not fitting & test and not validation & test
    assert len(fitting | validation | test) == 100
    assert list(folds(task)) == []
    again = split(task, seed=0)
    assert np.array_equal(parts.fitting, again.fitting)


def test_folder_of_one_domain(ood, tmp_path):
    path = tmp_path / "tiny" / "photo" / "dog"
    path.mkdir(parents=True)
    (path / "1.png").touch()
    with pytest.raises(ValueError, match="holds one domain, 'photo'"):
        ood.main(["--folder", str(tmp_path / "tiny"), *_results(tmp_path)])


@pytest.mark.filterwarnings("ignore:No direction has more variance")
def test_fit_cost(ood):
    import fit_cost

    result = fit_cost.run({"random": fit_cost.draw(n=300, d=16)}, repeats=1)
    table = fit_cost.markdown(result)
    assert "300 x 16 embeddings: random" in table
    assert all(f"| {name} | " in table for name in fit_cost.ROWS)
    result["side_by_side"] = [
        fit_cost.many_rows(50, 16, repeats=1),
        fit_cost.few_rows(5, 16, repeats=1),
        fit_cost.grid_search(8, repeats=1),
    ]
    assert "| fit of 5 x 16 | " in fit_cost.markdown(result)
    rows = result["inputs"]["random"]["rows"]
    assert all(row["fit_s"] > 0 for row in rows.values())


def _results(folder):
    return ["--results", str(folder)]


def _untimed(result):
    """Records in a set order: a method that is run again gives what it gave."""
    if isinstance(result, Path):
        result = json.loads((result / "ood-causal.json").read_text())
    return sorted(map(str, result["records"])), result["methods"], result["rules"]
