"""The image tower in OpenVINO: torch's embeddings, nobody told, after any fork."""

import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from skclip_icm import CLIPFeaturizer, unload_models  # noqa: E402
from skclip_icm._encoding import converted_models, openvino_tower  # noqa: E402
from skclip_icm._encoding.encoder import load_encoder  # noqa: E402
from skclip_icm._encoding.lanes import start_lanes  # noqa: E402

LONG = 120  # seconds after which a process is taken to hang


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder of converted models, and no model in memory."""
    monkeypatch.setenv("SKCLIP_ICM_MODELS", str(tmp_path / "models"))
    unload_models()
    yield tmp_path / "models"
    unload_models()


@pytest.fixture
def small(small_model):
    """A small vision transformer, as the parameters of a featurizer."""
    return {"model_name": small_model, "interventions": None}


def pixels(n_images):
    shape = n_images, 224, 224, 3
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def demo(**options):
    return load_encoder("demo", None, device="cpu", **options)


def python(code, **environment):
    """Run code in a new process, which must not hang, and return what it printed."""
    paths = str(Path(__file__).parents[1])
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


def test_auto_is_openvino_where_it_is_installed(monkeypatch):
    assert openvino_tower.is_installed(), "the extra openvino is part of the extra test"
    assert demo().backend == "openvino"
    assert demo(compile=False, backend="torch").backend == "torch"
    monkeypatch.setattr(openvino_tower, "is_installed", lambda: False)
    unload_models()
    assert demo().backend == "torch"
    with pytest.raises(ImportError, match=r'pip install "skclip-icm\[openvino\]"'):
        demo(backend="openvino")
    unload_models()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_embeddings_as_torch(dtype):
    images = pixels(5)
    found = demo(dtype=dtype, backend="openvino").encode_images(images)
    expected = demo(dtype=dtype, backend="torch").encode_images(images)
    bound = 0.99999 if dtype == "float32" else 0.99
    assert openvino_tower.min_cosine(found, expected) >= bound
    assert found.dtype == np.float32 and found.flags.writeable


def test_embeddings_do_not_depend_on_the_batch_size():
    encoder, images = demo(), pixels(7)
    together = encoder.encode_images(images)
    for size in (1, 2, 3):
        parts = [encoder.encode_images(images[i : i + size]) for i in range(0, 7, size)]
        assert openvino_tower.min_cosine(np.concatenate(parts), together) >= 0.9999


def test_the_backend_is_part_of_fingerprint_and_recipe():
    by = {name: demo(backend=name) for name in ("torch", "openvino")}
    assert by["torch"].fingerprint != by["openvino"].fingerprint
    for name, encoder in by.items():
        assert encoder.recipe["backend"] == name
        assert load_encoder(**encoder.recipe) is encoder
    assert demo() is by["openvino"]


def test_backends_that_cannot_be(monkeypatch):
    with pytest.raises(ValueError, match="backend='tensorflow'.*openvino"):
        demo(backend="tensorflow")
    with pytest.raises(ValueError, match="compile=True.*openvino"):
        demo(backend="openvino", compile=True)
    device = lambda device: torch.device("cuda:0")  # noqa: E731
    monkeypatch.setattr("skclip_icm._encoding.encoder.find_device", device)
    with pytest.raises(ValueError, match="for CPUs, found device='cuda:0'"):
        load_encoder("demo", None, backend="openvino")


def test_a_model_that_cannot_be_converted(folder, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no such operation")

    monkeypatch.setattr("openvino.convert_model", fail)
    with pytest.warns(UserWarning, match="cannot convert demo.*no such operation"):
        encoder = demo()
    assert encoder.backend == "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert demo() is encoder is demo(backend="torch")
    with pytest.raises(RuntimeError, match="(?s)cannot convert demo.*backend='torch'"):
        demo(backend="openvino")


def test_a_conversion_that_computes_something_else_is_not_used(folder, monkeypatch):
    import openvino

    convert = openvino.convert_model

    class Other(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :1280].float() - 128

    def other(traced, **kwargs):
        example = torch.zeros(2, 224, 224, 3, dtype=torch.uint8)
        return convert(torch.jit.trace(Other(), example), **kwargs)

    monkeypatch.setattr("openvino.convert_model", other)
    with pytest.warns(UserWarning, match="cosine to torch's embeddings is -?0.0"):
        assert demo().backend == "torch"
    assert torch.backends.mha.get_fastpath_enabled()


# On disk


@pytest.mark.slow
def test_a_second_process_does_not_convert(folder):
    code = """
import sys, torch
if sys.argv[0] == "second":
    import openvino
    openvino.convert_model = None
from skclip_icm._encoding.encoder import load_encoder
encoder = load_encoder("demo", None, device="cpu", backend="openvino")
images = torch.arange(2 * 3 * 224 * 224).view(2, 3, 224, 224) % 251
print(encoder.fingerprint, encoder.encode_images(images.byte()).tobytes().hex())
"""
    first = python(code)
    assert len(list(folder.iterdir())) == 1
    # Not even a rounding error from the way over the disk.
    assert python(f"import sys; sys.argv[0] = 'second'\n{code}") == first


@pytest.mark.parametrize("damage", ["flipped", "short", "empty"])
def test_a_damaged_file_is_made_again(folder, damage):
    expected = demo().encode_images(pixels(2))
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "flipped": whole[:middle]
            + bytes([whole[middle] ^ 1])
            + whole[middle + 1 :],
            "short": whole[:middle],
            "empty": b"",
        }[damage]
    )
    unload_models()
    with pytest.warns(UserWarning, match="is damaged"):
        encoder = demo()
    np.testing.assert_allclose(encoder.encode_images(pixels(2)), expected, atol=1e-5)
    assert converted_models.read_model(path.name) is not None


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SKCLIP_ICM_MODELS", str(tmp_path / "file" / "models"))
    unload_models()
    with pytest.warns(UserWarning, match="not kept.*SKCLIP_ICM_MODELS") as caught:
        assert demo().backend == "openvino"
    assert len(caught) == 1
    unload_models()


def test_the_folder_is_bounded_and_the_least_used_go(folder, monkeypatch):
    def save(path):
        path.write_bytes(b"x" * 10)
        path.with_suffix(".bin").write_bytes(b"y" * 990)

    monkeypatch.setattr(converted_models, "MAX_BYTES", 3500)
    for number, name in enumerate("abc"):
        converted_models.write_model(name, save)
        os.utime(folder / name, (number, number))
    (folder / "part-of-a-killed-process").mkdir()
    os.utime(folder / "part-of-a-killed-process", (0, 0))
    xml, weights = converted_models.read_model("a")  # which is a use
    assert xml == b"x" * 10 and weights.tobytes() == b"y" * 990
    converted_models.write_model("d", save)
    assert sorted(path.name for path in folder.iterdir()) == ["a", "c", "d"]
    assert converted_models.read_model("b") is None


def test_the_folder_is_in_the_users_cache(monkeypatch):
    monkeypatch.delenv("SKCLIP_ICM_MODELS")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert converted_models.models_folder() == Path("/somewhere/skclip-icm/models")
    monkeypatch.delenv("XDG_CACHE_HOME")
    expected = Path.home() / ".cache/skclip-icm/models"
    assert converted_models.models_folder() == expected


# Nobody is told

TELEMETRY = """
import os, socket, sys
from pathlib import Path

def refuse(*args, **kwargs):
    os.write(2, b"a connection was tried")
    os._exit(3)

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
if "imported" in sys.argv[0]:
    from openvino_telemetry.utils import sender
    sender.TelemetrySender.send = lambda *args: None  # what others send is theirs
    import openvino
    def refuse_sender(self, backend, message):
        refuse()
    sender.TelemetrySender.send = refuse_sender
def noted():  # where telemetry keeps consent and a number of the user
    return sorted(path for path in Path.home().rglob("*") if "intel" in path.parts)
before = noted()
from skclip_icm._encoding.encoder import load_encoder
import numpy as np
sample = np.arange(2 * 32 * 32 * 3, dtype=np.uint8).reshape(2, 32, 32, 3)
load_encoder(os.environ["MODEL"], None, dtype="int8", calibration=sample)
assert noted() == before
if "imported" not in sys.argv[0]:
    import openvino_telemetry  # is there for others
import time
time.sleep(1)
"""


@pytest.mark.parametrize("order", ["first", "imported before"])
@pytest.mark.parametrize("consent", [None, "1"])
def test_nothing_is_sent_and_nothing_is_written_at_home(
    order, consent, small, folder, tmp_path
):
    """By converting and quantising."""
    pytest.importorskip("openvino_telemetry")
    pytest.importorskip("nncf")
    home = tmp_path / "home"
    home.mkdir()
    if consent:
        (home / "intel").mkdir()
        (home / "intel" / "openvino_telemetry").write_text(consent)
    environment = {"HOME": str(home), "SKCLIP_ICM_MODELS": str(folder)}
    environment["MODEL"] = small["model_name"]
    environment |= dict.fromkeys(("CI", "TF_BUILD", "JENKINS_URL"), "")
    python(f"import sys; sys.argv[0] = {order!r}\n{TELEMETRY}", **environment)


# Threads and processes


def test_threads_are_as_many_as_the_lanes_have(monkeypatch):
    made = []
    program = openvino_tower._Program

    def noted(model, hint, n_lanes, n_threads):
        made.append((n_lanes, n_threads))
        return program(model, hint, n_lanes, n_threads)

    monkeypatch.setattr(openvino_tower, "_Program", noted)
    encoder = demo()
    encoder._tower._programs.clear()
    made.clear()
    images, total = pixels(2), torch.get_num_threads()
    for n_threads in (1, 1, total):
        pool, n_lanes = start_lanes(encoder, 100, n_threads)
        futures = [pool.submit(encoder.encode_images, images) for _ in range(6)]
        for future in futures:
            future.result()
        pool.shutdown()
    expected = [(1, 1), (n_lanes, total // n_lanes)]
    assert made == expected[: len(set(expected))]


def test_few_programs_are_kept():
    encoder = demo()
    for n_threads in range(1, 6):
        encoder._tower._program(1, n_threads)
    assert len(encoder._tower._programs) == 2


def test_many_threads_at_once():
    encoder, images = demo(), pixels(6)
    expected = encoder.encode_images(images)
    with ThreadPoolExecutor(6) as pool:
        parts = list(
            pool.map(lambda i: encoder.encode_images(images[i : i + 1]), range(6))
        )
    assert openvino_tower.min_cosine(np.concatenate(parts), expected) >= 0.9999


FORK = """
import os, sys, threading, time
import numpy as np, torch
from skclip_icm._encoding.encoder import load_encoder
from skclip_icm._encoding.lanes import start_lanes
from skclip_icm import CLIPFeaturizer

images = np.random.default_rng(0).integers(0, 256, (40, 224, 224, 3), np.uint8)
how = sys.argv[0]
encoder = load_encoder("demo", None, device="cpu", backend="openvino")
embed = lambda: CLIPFeaturizer("demo", cache="memory").transform(images)
expected = embed()
stop = threading.Event()

def encode_on_and_on():
    while not stop.is_set():
        encoder.encode_images(torch.from_numpy(images[:4]).permute(0, 3, 1, 2))

if how == "after another use":
    encoder._tower._programs.clear()
if how == "beside a model of one's own":
    import openvino
    model = encoder._tower._model
    own = openvino.compile_model(model, "CPU", {"NUM_STREAMS": 2})
    own([images[:2]])
programs = list(encoder._tower._programs.values())
threads = [threading.Thread(target=encode_on_and_on) for _ in range(2)]
for thread in threads if how == "while in use" else ():
    thread.start()
for attempt in range(3):
    child = os.fork()
    if not child:
        from skclip_icm._encoding.stores import open_cache
        open_cache("memory").clear()
        np.testing.assert_allclose(embed(), expected, atol=1e-5)
        if how == "beside a model of one's own":
            os._exit(0)  # as multiprocessing does, for the sake of that model
        sys.exit(0)  # through the interpreter's own end
    until = time.monotonic() + 60
    while not (found := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > until:
            os.kill(child, 9)
            sys.exit("the child hangs")
        time.sleep(0.02)
    assert found[1] == 0, found
stop.set()
if how == "after use":  # nothing is compiled anew
    assert list(encoder._tower._programs.values()) == programs
np.testing.assert_allclose(embed(), expected, atol=1e-5)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    "how",
    ["after use", "after another use", "while in use", "beside a model of one's own"],
)
def test_forks(how):
    """Threads of OpenVINO are not there in the child, where it would wait for them."""
    python(f"import sys; sys.argv[0] = {how!r}\n{FORK}")


@pytest.mark.slow
def test_worker_processes_embed_as_this_one_does(photographs):
    joblib = pytest.importorskip("joblib")
    images = np.stack([np.roll(photographs, i, axis=1) for i in range(4)])
    images = images.reshape(-1, *photographs.shape[1:])
    expected = CLIPFeaturizer("demo", backend="openvino").transform(images)
    with joblib.parallel_config("loky", n_jobs=2):
        featurizer = CLIPFeaturizer("demo", backend="openvino", cache="memory")
        found = featurizer.transform(images)
    np.testing.assert_allclose(found, expected, atol=1e-5)


# Memory


def test_models_that_were_not_used_for_long_are_freed(monkeypatch):
    import gc
    import weakref

    monkeypatch.setattr("skclip_icm._encoding.encoder._MAX_MODELS", 2)
    unload_models()
    first = weakref.ref(demo(backend="torch"))
    second = weakref.ref(demo(backend="openvino"))
    tower = weakref.ref(second()._tower)
    assert demo(backend="torch") is first()  # now used last
    demo(dtype="bfloat16")
    gc.collect()
    assert first() is not None and second() is None and tower() is None
    unload_models()
    gc.collect()
    assert first() is None


def test_running_out_of_memory_halves_the_batch(monkeypatch):
    encoder = demo()
    images = [np.asarray(image) for image in pixels(6).permute(0, 2, 3, 1).numpy()]
    expected = encoder.encode_images(pixels(6))
    encode = type(encoder._tower).encode

    def full(self, batch):
        if len(batch) > 2:
            raise RuntimeError("Exception from src/inference: std::bad_alloc")
        return encode(self, batch)

    monkeypatch.setattr(type(encoder._tower), "encode", full)
    from skclip_icm._encoding.lanes import encode_batch

    _, found = encode_batch([(i, 0) for i in range(6)], images, encoder)
    assert openvino_tower.min_cosine(found, expected) >= 0.9999


# int8


def test_int8_is_near_float32_and_the_same_in_another_process(
    small, photographs, folder
):
    pytest.importorskip("nncf")
    int8 = CLIPFeaturizer(
        **small, dtype="int8", calibration=photographs, cache="memory"
    )
    found = int8.transform(photographs)
    exact = CLIPFeaturizer(**small, dtype="float32").transform(photographs)
    assert 0.999 <= openvino_tower.min_cosine(found, exact) < 0.9999999
    encoder = int8._encoder()
    assert encoder.dtype == "int8" and encoder.backend == "openvino"
    assert len(list(folder.iterdir())) == 2
    assert load_encoder(**encoder.recipe) is encoder
    unload_models()  # read again from disk, by the pixels of the recipe
    again = load_encoder(**encoder.recipe)
    assert again is not encoder and again.fingerprint == encoder.fingerprint
    images = torch.from_numpy(encoder.recipe["calibration"]).permute(0, 3, 1, 2)
    np.testing.assert_array_equal(
        again.encode_images(images), encoder.encode_images(images)
    )
    others = CLIPFeaturizer(**small, dtype="int8", calibration=photographs[:3])
    assert others._encoder().fingerprint != encoder.fingerprint
    assert encoder.encode_text(["a cat"]).shape == (1, 16)


def test_int8_is_refused_where_it_changes_too_much(small, photographs, monkeypatch):
    pytest.importorskip("nncf")
    monkeypatch.setattr("skclip_icm._encoding.quantizing.MIN_COSINE", 0.9999999)
    featurizer = CLIPFeaturizer(**small, dtype="int8", calibration=photographs)
    with pytest.raises(ValueError, match=r"smallest cosine.* is 0\.\d{4} on the 6 im"):
        featurizer.transform(photographs)


def test_int8_that_cannot_be(small, photographs, monkeypatch):
    with pytest.raises(ValueError, match="needs calibration, found none"):
        CLIPFeaturizer(**small, dtype="int8").fit(photographs)
    for wrong in (["gone.jpg"], [], "cat.jpg", [b"no image"]):
        int8 = CLIPFeaturizer(**small, dtype="int8", calibration=wrong)
        with pytest.raises((TypeError, ValueError), match=r"^calibration: (X|row 0)"):
            int8.fit(photographs)
    int8 = CLIPFeaturizer(**small, dtype="int8", calibration=photographs)
    with pytest.raises(ValueError, match="int8.*backend='torch'"):
        int8.set_params(backend="torch").fit(photographs)
    int8.set_params(backend="auto")
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ImportError, match=r"skclip-icm\[openvino\]"):
            int8.fit(photographs)
