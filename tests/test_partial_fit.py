"""Fitting in chunks, in parts that merge, from files, and on other arrays' devices."""

import pickle
import subprocess
import sys
import textwrap
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.linalg import subspace_angles
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from skclip_icm import ICMTransformer, PairedEmbeddings

# Of a few rows only, no direction may vary more than pairs do.
pytestmark = pytest.mark.filterwarnings("ignore:No direction has more variance")

KINDS = {
    "interventional": {},
    "class": {"pairs": "class"},
    "domain": {"pairs": "domain"},
    "whitening": {"method": "whitening"},
    "not centred": {"center": False, "lam": 0.3},
    "class whitening": {"method": "whitening", "pairs": "class"},
}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    y, domains = rng.integers(5, size=600), rng.integers(3, size=600)
    scale = np.linspace(0.3, 3, 12)
    Z = rng.normal(size=(5, 12))[y] + rng.normal(size=(3, 12))[domains] * scale[::-1]
    Z = (Z + rng.normal(size=(600, 12)) * scale).astype(np.float32)
    Z_do = Z[:, None] + rng.normal(size=(600, 2, 12)).astype(np.float32) * scale[::-1]
    return Z, y, Z_do.astype(np.float32), domains


def rows(data, key):
    Z, y, Z_do, domains = data
    return {"X": Z[key], "y": y[key], "X_do": Z_do[key], "domains": domains[key]}


def used(params, arguments):
    """Of what `rows` gives, what the pairs of some parameters need."""
    kind = params.get("pairs", "interventional")
    needs = {"class": ["X", "y"], "domain": ["X", "y", "domains"]}
    return {key: arguments[key] for key in needs.get(kind, ["X", "X_do"])}


def assert_same_fit(icm, expected):
    assert icm.n_components_ == expected.n_components_
    assert icm.n_samples_seen_ == expected.n_samples_seen_
    assert icm.n_pairs_seen_ == expected.n_pairs_seen_
    assert icm.pairs_ == expected.pairs_
    # In float64: in float32 the measure itself would round by as much as the bound.
    mine, other = (part.components_.T.astype(float) for part in (icm, expected))
    angles = subspace_angles(mine, other)
    assert np.max(angles) <= 1e-6
    assert_allclose(icm.eigenvalues_, expected.eigenvalues_, rtol=1e-9, atol=1e-12)
    assert_allclose(icm.mean_, expected.mean_, rtol=1e-6, atol=1e-9)
    assert_allclose(icm.scale_, expected.scale_, rtol=1e-9)
    assert_allclose(icm.invariance_, expected.invariance_, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("params", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("order", ["given", "shuffled", "by class", "by domain"])
def test_any_split_in_any_order_equals_one_fit(data, params, order):
    whole = ICMTransformer(**params).fit(**used(params, rows(data, slice(None))))
    at = {
        "given": np.arange(600),
        "shuffled": np.random.default_rng(1).permutation(600),
        "by class": np.argsort(data[1], kind="stable"),
        "by domain": np.argsort(data[3], kind="stable"),
    }[order]
    parts = np.split(at, [1, 7, 200, 201, 450])
    one_by_one = ICMTransformer(**params)
    merged = ICMTransformer(**params)
    for part in parts:
        one_by_one.partial_fit(**used(params, rows(data, part)))
    for part in reversed(parts):
        part = used(params, rows(data, part))
        merged.merge(ICMTransformer(**params).partial_fit(**part))
    assert_same_fit(one_by_one, whole)
    assert_same_fit(merged, whole)


def test_given_pairs_count_once(data):
    Z, y, Z_do, _ = data
    for pairs, X in (
        ((Z[:50], Z_do[:50, 0]), Z),
        ((Z[:50], Z_do[:50, 0], 0.3), PairedEmbeddings(Z, Z_do)),
    ):
        whole = ICMTransformer(pairs=pairs).fit(X, y)
        chunks = ICMTransformer(pairs=pairs)
        for part in np.split(np.arange(600), 4):
            chunks.partial_fit(X[part], y[part])
        merged = ICMTransformer(pairs=pairs).merge(chunks)
        assert_same_fit(chunks, whole)
        assert_same_fit(merged, whole)


def test_carried_counterparts_are_used(data):
    Z, _, Z_do, _ = data
    paired = PairedEmbeddings(Z, Z_do)
    whole = ICMTransformer().fit(paired)
    chunks = ICMTransformer().partial_fit(paired[:100]).partial_fit(paired[100:])
    assert_same_fit(chunks, whole)


def test_not_fitted_until_there_is_a_pair(data):
    Z, y, _, domains = data
    icm = ICMTransformer(pairs="domain")
    one = domains == 0
    icm.partial_fit(Z[one], y[one], domains=domains[one])
    with pytest.raises(NotFittedError):
        icm.transform(Z)
    icm.partial_fit(Z[~one], y[~one], domains=domains[~one])
    assert_same_fit(icm, clone(icm).fit(Z, y, domains=domains))


def test_merge_leaves_the_other_as_it_is(data):
    Z, _, Z_do, _ = data
    left = ICMTransformer().partial_fit(Z[:300], X_do=Z_do[:300])
    right = ICMTransformer().partial_fit(Z[300:], X_do=Z_do[300:])
    before = right.components_.copy()
    first = ICMTransformer().merge(right).merge(left)
    assert right.n_samples_seen_ == 300
    assert_array_equal(right.components_, before)
    assert_same_fit(first, clone(left).merge(left).merge(right))


def test_a_bad_chunk_changes_nothing(data):
    Z, _, Z_do, _ = data
    icm = ICMTransformer().partial_fit(Z[:300], X_do=Z_do[:300])
    broken = Z_do[300:].copy()
    broken[17, 1, 3] = np.nan
    with pytest.raises(ValueError, match="X_do: NaN or infinity in row 17"):
        icm.partial_fit(Z[300:], X_do=broken)
    with pytest.raises(ValueError, match="X: NaN or infinity in rows 0, 1"):
        icm.partial_fit(np.where(Z > 2, np.inf, Z), X_do=Z_do)
    with pytest.raises(ValueError, match="expecting 12 features"):
        icm.partial_fit(Z[:, :11], X_do=Z_do[:, :, :11])
    with pytest.raises(ValueError, match="0 sample"):
        icm.partial_fit(Z[:0], X_do=Z_do[:0])
    with pytest.raises(ValueError, match="X carries no counterparts"):
        icm.partial_fit(Z[300:], y=np.arange(300) % 3)
    other = clone(icm).partial_fit(Z[:300], X_do=Z_do[:300]).set_params(pairs="class")
    with pytest.raises(ValueError, match="so far are 'interventional'.*'class'"):
        other.partial_fit(Z[300:], y=np.arange(300) % 3)
    icm.partial_fit(Z[300:], X_do=Z_do[300:])
    assert_same_fit(icm, ICMTransformer().fit(Z, X_do=Z_do))


def test_a_chunk_that_is_rejected_leaves_no_trace(data):
    Z, y = data[0], data[1]
    frame = pd.DataFrame(Z[:, :8], columns=list("abcdefgh"))
    icm = ICMTransformer(pairs="class").partial_fit(frame[:1], y[:1])
    before = pickle.dumps(icm)
    for X, labels in (
        (frame.iloc[1:5, ::-1], y[1:5]),  # other columns, before there is a pair
        (Z[1:5, :3], y[1:5]),
        (frame[1:5].assign(c=np.nan), y[1:5]),
        (frame[1:5], None),
        (frame[1:5], y[:3]),
    ):
        with pytest.raises(ValueError):  # noqa: PT011
            icm.partial_fit(X, labels)
        assert pickle.dumps(icm) == before
    new = ICMTransformer(pairs="class")
    with pytest.raises(ValueError, match="y"):
        new.partial_fit(Z[:4, :3])
    assert vars(new) == vars(ICMTransformer(pairs="class"))
    assert new.partial_fit(Z[:40], y[:40]).n_features_in_ == 12
    with pytest.raises(ValueError, match="carries no counterparts"):
        ICMTransformer(pairs=(Z, Z, 0.5)).partial_fit(Z, np.arange(len(Z)))


def test_merge_refuses_what_does_not_fit(data):
    pd = pytest.importorskip("pandas")
    Z, y, Z_do, _ = data

    def part(X=Z, **params):
        return ICMTransformer(**params).partial_fit(X, X_do=Z_do[:, :, : X.shape[1]])

    with pytest.raises(ValueError, match="differ in lam: 1.0 here, 3 in other"):
        part().merge(part(lam=3))
    with pytest.raises(ValueError, match="other has seen 11 features"):
        part().merge(part(Z[:, :11]))
    with pytest.raises(ValueError, match="features of different names"):
        part().merge(part(pd.DataFrame(Z).add_prefix("a")))
    with pytest.raises(TypeError, match="of type ndarray, expected ICMTransformer"):
        part().merge(Z)
    with pytest.raises(ValueError, match="fitted by fit"):
        part().merge(ICMTransformer().fit(Z, X_do=Z_do))
    with pytest.raises(ValueError, match="fitted by fit"):
        ICMTransformer().fit(Z, X_do=Z_do).merge(part())
    with pytest.raises(ValueError, match="differ in pairs: 'interventional' here"):
        part().merge(ICMTransformer(pairs="class").partial_fit(Z, y))


def test_partial_fit_after_fit_says_that_it_starts_anew(data):
    Z, _, Z_do, _ = data
    icm = ICMTransformer().fit(Z, X_do=Z_do)
    with pytest.warns(UserWarning, match="fit keeps no sums"):
        icm.partial_fit(Z[:100], X_do=Z_do[:100])
    assert icm.n_samples_seen_ == 100


def test_values_that_overflow_are_refused(data):
    Z = data[0].astype(np.float64)
    with pytest.raises(ValueError, match="squares overflow float64"):
        ICMTransformer().fit(Z * 1e200, X_do=Z * 1e200)
    with pytest.raises(ValueError, match="X_do holds values whose squares overflow"):
        ICMTransformer().fit(Z, X_do=Z * 1e200)


def test_missing_labels_are_refused(data):
    Z, y, *_ = data
    with pytest.raises(ValueError, match="NaN"):
        ICMTransformer(pairs="class").fit(Z, np.where(y == 1, np.nan, y))


def test_memory_maps_give_the_same(data, tmp_path):
    Z, _, Z_do, _ = data
    for name, values in {"Z": Z, "Z_do": Z_do}.items():
        np.save(tmp_path / f"{name}.npy", values)
    mapped, mapped_do = (
        np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("Z", "Z_do")
    )
    whole = ICMTransformer().fit(Z, X_do=Z_do)
    icm = ICMTransformer().fit(mapped, X_do=mapped_do)
    assert_array_equal(icm.components_, whole.components_)
    assert_allclose(icm.transform(mapped), whole.transform(Z), atol=1e-6)
    broken = Z.copy()
    broken[3, 4] = np.nan
    np.save(tmp_path / "broken.npy", broken)
    with pytest.raises(ValueError, match="X: NaN or infinity in row"):
        icm.transform(np.load(tmp_path / "broken.npy", mmap_mode="r"))


def test_changes_to_a_copy_on_write_map_are_kept(data, tmp_path):
    Z, _, Z_do, _ = data
    np.save(tmp_path / "Z.npy", Z)
    mapped = np.load(tmp_path / "Z.npy", mmap_mode="c")
    mapped[:] = Z * 2
    ICMTransformer().fit(mapped, X_do=Z_do)
    assert_array_equal(mapped, Z * 2)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_fitting_a_file_needs_little_memory(tmp_path):
    """400 MB of embeddings and counterparts, in less than 100 MB of memory."""
    code = f"""
    import numpy as np
    from numpy.lib.format import open_memmap
    from skclip_icm import ICMTransformer

    def resident():
        lines = open("/proc/self/status").read().splitlines()
        return next(int(x.split()[1]) for x in lines if x.startswith("VmHWM")) / 1024

    path, rng = "{tmp_path}", np.random.default_rng(0)
    for name in ("Z", "Z_do"):
        shape = (400_000, 128)
        out = open_memmap(f"{{path}}/{{name}}.npy", "w+", np.float32, shape)
        for start in range(0, len(out), 20_000):
            out[start : start + 20_000] = rng.normal(size=(20_000, 128))
            out.flush()
        del out
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # start the high-water mark anew
    Z, Z_do = (np.load(f"{{path}}/{{n}}.npy", mmap_mode="r") for n in ("Z", "Z_do"))
    before = resident()
    icm = ICMTransformer(n_components=8).fit(Z, X_do=Z_do)
    icm.transform(Z)
    print(resident() - before)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(run.stdout) < 100


def test_sums_survive_a_pickle(data):
    import pickle

    Z, _, Z_do, _ = data
    part = ICMTransformer().partial_fit(Z[:100], X_do=Z_do[:100])
    again = pickle.loads(pickle.dumps(part)).partial_fit(Z[100:], X_do=Z_do[100:])
    assert_same_fit(again, ICMTransformer().fit(Z, X_do=Z_do))


ARRAY_API = """
import os
os.environ["SCIPY_ARRAY_API"] = "1"
import warnings
import array_api_strict
import numpy as np
import sklearn
import torch
from sklearn.utils.estimator_checks import check_estimator
from skclip_icm import ICMTransformer

rng = np.random.default_rng(0)
scale = np.linspace(0.3, 3, 12)
Z = (rng.normal(size=(3000, 12)) * scale).astype(np.float32)
Z_do = Z[:, None] + rng.normal(size=(3000, 2, 12)).astype(np.float32) * scale[::-1]
Z_do = Z_do.astype(np.float32)
y, domains = np.arange(3000) % 5, np.arange(3000) % 3
kinds = [
    {}, {"pairs": "class"}, {"pairs": "domain"}, {"center": False},
    {"method": "whitening"}, {"pairs": (Z[:50], Z_do[:50, 0], 0.3)},
]
for params in kinds:
    kind = params.get("pairs", "interventional")

    def given(X_do, domains):
        if kind == "domain":
            return {"domains": domains}
        return {} if kind == "class" else {"X_do": X_do}

    local = ICMTransformer(**params).fit(Z, y, **given(Z_do, domains))
    for convert in torch.from_numpy, array_api_strict.asarray:
        X, X_do, labels = convert(Z), convert(Z_do), convert(y)
        with sklearn.config_context(array_api_dispatch=True):
            icm = ICMTransformer(**params).fit(X, labels, **given(X_do, domains))
            chunks = ICMTransformer(**params)
            for s in (slice(0, 1000), slice(1000, 3000)):
                rest = given(X_do[s, ...], domains[s])
                chunks.partial_fit(X[s, ...], y[s], **rest)
            new = icm.transform(X)
            back = icm.inverse_transform(new)
        for values in icm.components_, chunks.components_, new, back:
            assert type(values) is type(X), type(values)
        for values, expected in (
            (icm.components_, local.components_),
            (chunks.components_, local.components_),
            (new, local.transform(Z)),
        ):
            np.testing.assert_allclose(np.asarray(values), expected, atol=1e-5)
        assert icm.pairs_ == local.pairs_ and icm.n_pairs_seen_ == local.n_pairs_seen_
with sklearn.config_context(array_api_dispatch=True):
    try:
        icm.transform(Z)
    except ValueError as error:
        assert "same namespace" in str(error)
    else:
        raise AssertionError("numpy rows into a transformer fitted to other arrays")
warnings.simplefilter("ignore")
bad = [
    (check["check_name"], str(check["exception"]))
    for check in check_estimator(ICMTransformer(pairs="class"), on_fail=None)
    if check["status"] == "failed" and "CUDA" not in str(check["exception"])
]
assert not bad, bad
print("done")
"""


def test_array_api_dispatch():
    """torch tensors and array-api-strict; in a process of its own, for the setting."""
    pytest.importorskip("array_api_strict")
    if find_spec("sklearn.externals.array_api_compat") is None:
        # Not in the extra: beside it, scikit-learn 1.6 cannot import its own checks.
        pytest.importorskip("array_api_compat", reason="scikit-learn < 1.8 needs it")
    run = subprocess.run(
        [sys.executable, "-c", ARRAY_API], capture_output=True, text=True
    )
    assert run.stdout.strip() == "done", run.stderr[-2000:]


def test_on_a_gpu(data):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    Z, _, Z_do, _ = data
    with config_context(array_api_dispatch=True):
        X, X_do = (torch.from_numpy(part).cuda() for part in (Z, Z_do))
        icm = ICMTransformer().fit(X, X_do=X_do)
        assert icm.transform(X).device.type == "cuda"
    local = ICMTransformer().fit(Z, X_do=Z_do)
    assert_allclose(icm.components_.cpu().numpy(), local.components_, atol=1e-5)
