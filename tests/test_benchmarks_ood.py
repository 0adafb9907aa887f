"""The benchmark runs on folders of domains and on a known causal model."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from skclip_icm import CLIPFeaturizer, ICMTransformer

pytestmark = pytest.mark.slow


@pytest.fixture
def ood(import_benchmark):
    return import_benchmark("ood")


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
    causal = ["--data", "causal", "--seeds", "2", "--n-jobs", "1", *_results(tmp_path)]
    ood.main(causal)
    result = json.loads((tmp_path / "ood-causal.json").read_text())
    assert list(result["methods"]) == ["shift"]  # two classes: no open class
    shift = {k: v["accuracy"][0] for k, v in result["methods"]["shift"].items()}
    assert max(shift["probe"], shift["probe, centred"], shift["PCA"]) < 0.6
    assert shift["script's matrix, smallest"] < 0.1
    assert min(v for k, v in shift.items() if k.startswith("ICM, ")) > 0.9
    assert "zero-shot" not in shift
    assert result["missing"]["LEACE, domain erased"] == "needs two training domains"
    rules = result["rules"]
    assert rules["under other interventions, worst"] > 0.9
    assert rules["one training domain left out"] is None
    assert rules["held-out rows as they are"] < 0.6
    best = rules["best in hindsight (target labels)"]
    assert all(rule is None or rule <= best for rule in rules.values())
    ood.main([*causal, "--methods", "PCA"])
    assert _comparable(tmp_path) == _comparable(result)


def test_folder(ood, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(ood, "CLIPFeaturizer", Narrow)
    cache = ["--cache", str(tmp_path / "cache")]
    arguments = ["--folder", str(folder), "--seeds", "1", "--n-jobs", "1"]
    arguments += [*cache, *_results(tmp_path)]
    ood.main([*arguments, "--methods", "zero-shot"])  # never run before
    result = json.loads((tmp_path / "ood-tiny.json").read_text())
    assert set(result["methods"]["both"]) == {"zero-shot", "probe, centred"}
    ood.main(arguments)
    result = json.loads((tmp_path / "ood-tiny.json").read_text())
    assert result["targets"] == ["dark", "grey", "noisy"]
    assert result["classes"] == ["bottom", "left side", "right side", "top"]
    assert list(result["methods"]) == ["shift", "open", "both"]
    assert set(result["missing"]) <= {"LEACE, domain erased"}  # an optional package
    from ood_benchmark.methods import METHODS, ROWS

    assert set(result["methods"]["shift"]) == set(ROWS) - set(result["missing"])
    everywhere = {name for name, method in METHODS.items() if not method.shift_only}
    for protocol in ("open", "both"):
        assert everywhere - set(result["missing"]) <= set(result["methods"][protocol])
    assert result["rules"]["one training domain left out"] is not None
    assert len({len(record) for record in result["records"]}) == 1
    assert len(result["records"][0]) == len(result["columns"])
    summary = (tmp_path / "ood.md").read_text()
    for name in [*result["methods"]["shift"], *result["rules"], "## tiny"]:
        assert name in summary


def test_one_folder_to_train_on_and_others_to_test(ood, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(ood, "CLIPFeaturizer", Narrow)
    for image in (folder / "noisy" / "top").iterdir():
        image.unlink()
    (folder / "noisy" / "top").rmdir()
    names = tmp_path / "names.txt"
    names.write_text("left_side left half of it\n")
    ood.main(
        ["--train", str(folder / "dark"), "--class-names", str(names), "--limit", "4"]
        + ["--test", str(folder / "grey"), str(folder / "noisy"), "--methods", "probe"]
        + ["--cache", str(tmp_path / "cache"), "--n-jobs", "1", *_results(tmp_path)]
    )
    result = json.loads((tmp_path / "ood-dark.json").read_text())
    assert result["targets"] == ["grey", "noisy"]
    assert result["n_images"] == 4 * (4 + 4 + 3)
    assert result["classes"] == ["bottom", "left half of it", "right side", "top"]


def test_paper_protocol(ood, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(ood, "CLIPFeaturizer", Narrow)
    cache = ["--cache", str(tmp_path / "cache")]
    ood.main(
        ["--protocol", "paper", "--folder", str(folder), *cache, *_results(tmp_path)]
    )
    result = json.loads((tmp_path / "ood-paper-tiny.json").read_text())
    assert set(result["rows"]["CLIP"]) == {"dark", "grey", "noisy"}
    for by_target in result["rows"].values():
        for found in by_target.values():
            assert set(found) <= {"zero-shot", "probe", "base", "open", "harmonic"}
            assert all(0 <= value <= 1 for value in found.values())
    summary = (tmp_path / "ood-paper.md").read_text()
    assert (
        "second-hand" in summary and "| 96.1 | 82.4 | 71.5 | 34.2 | 56.8 |" in summary
    )


def test_paper_split(ood):
    from ood_benchmark.paper import _masks

    y, domains = np.tile(np.repeat(range(4), 10), 3), np.repeat(range(3), 40)
    train, validation, test, _ = _masks(y, domains, 1)
    assert [mask.sum() for mask in (train, validation, test)] == [64, 16, 8]
    # What DomainBed's split of 40 rows by its hash of (0, 1) sets apart.
    assert list(np.flatnonzero(test) - 40) == [3, 6, 11, 12, 14, 17, 32, 39]
    base = np.arange(4) < 2
    train, validation, test, new = _masks(y, domains, 1, base)
    assert [m.sum() for m in (train, validation, test, new)] == [32, 8, 20, 20]
    assert set(y[train]) == {0, 1} and set(y[new]) == {2, 3}


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


def test_validation_interventions_are_not_fitted_with(ood):
    from ood_benchmark.data import FITTED_WITH, VALIDATION

    from skclip_icm.interventions._intervene import parts_of

    assert not {*parts_of(FITTED_WITH), "hue"} & set(VALIDATION)


@pytest.fixture
def training(ood):
    from ood_benchmark.methods import Training

    rng = np.random.default_rng(0)
    y, domains = np.arange(240) % 3, np.arange(240) // 3 % 2
    Z = rng.normal(size=(240, 12)) + np.eye(12)[y] + domains[:, None]
    Z, X_do = (
        part.astype(np.float32) for part in (Z, Z + rng.normal(size=Z.shape) / 3)
    )
    return Training(Z, X_do, y, np.arange(3), domains, 2, Z[:50] + 3)


@pytest.mark.parametrize("C", [0.1, 10])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_classifier_is_logistic_regression(training, n_classes, C):
    from ood_benchmark.classifiers import fit_linear

    rows = training.y < n_classes
    X, y = training.Z[rows], training.y[rows]
    ours = fit_linear(X, y, np.ones(len(y)), C)
    theirs = LogisticRegression(C=C, tol=1e-6).fit(X, y)
    np.testing.assert_allclose(ours[:-1].T, theirs.coef_, atol=0.02)


@pytest.mark.parametrize(
    "name, setting, params",
    [
        ("ICM projection", ("lam", 3), {"lam": 3}),
        ("ICM whitening", ("shrinkage", 0.3), {"shrinkage": 0.3}),
        ("ICM whitening", ("shrinkage", "auto"), {}),
        ("ICM projection, class pairs", ("lam", 0.3), {"lam": 0.3, "pairs": "class"}),
        ("ICM projection, domain pairs", ("lam", 0.3), {"lam": 0.3, "pairs": "domain"}),
        ("ICM projection, centred by domain", ("lam", 3), {"lam": 3}),
    ],
)
def test_representations_are_those_of_the_estimator(training, name, setting, params):
    from ood_benchmark.methods import METHODS

    by_domain = "centred by domain" in name
    method = "whitening" if "whitening" in name else "projection"
    icm = ICMTransformer(method=method, center="domain" if by_domain else True)
    icm.set_params(**params)
    passed = {} if "pairs" in params else {"X_do": training.X_do}
    if by_domain or params.get("pairs") == "domain":
        passed["domains"] = training.domains
    expected = icm.fit_transform(training.Z, training.y, **passed)
    represent = METHODS[name].represent(training)[setting].rescaled(training)
    ours = represent(training.Z, training.domains)
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours @ ours.T, expected @ expected.T, atol=1e-3)
    if by_domain:
        expected = icm.adapt(training.unlabelled).transform(training.unlabelled)
        ours = represent(training.unlabelled, np.full(len(expected), training.target))
        np.testing.assert_allclose(ours @ ours.T, expected @ expected.T, atol=1e-3)


def test_metrics_with_weights(ood):
    from ood_benchmark.metrics import Outcome, measure

    rng = np.random.default_rng(0)
    y, margins = rng.integers(0, 2, 60), rng.integers(-3, 4, 60)
    found = Outcome((margins > 0) == y, margins)
    weights = rng.integers(0, 4, (60, 2))
    for metric, expected in (
        ("roc_auc", lambda w: roc_auc_score(y, margins, sample_weight=w)),
        (
            "balanced_accuracy",
            lambda w: balanced_accuracy_score(y, margins > 0, sample_weight=w),
        ),
        ("accuracy", lambda w: np.average(found.hits, weights=w)),
    ):
        values = measure(metric, found, y, weights)
        np.testing.assert_allclose(values, [expected(w) for w in weights.T])


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


def _comparable(result):
    """Records in a set order: a method that is run again gives what it gave."""
    if isinstance(result, Path):
        result = json.loads((result / "ood-causal.json").read_text())
    about = [record[:5] for record in result["records"]]
    return sorted(map(str, about)), result["methods"], result["rules"]
