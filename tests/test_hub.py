"""Weights from a hub, as a user with a network gets them; and every way to fail."""

import argparse
import hashlib
import inspect
import json
import os
import re
import shutil
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")
pytest.importorskip("resource")  # full disks are played with it

from hub import Hub, User  # noqa: E402
from huggingface_hub import constants, file_download, hf_hub_download  # noqa: E402
from open_clip.transform import PreprocessCfg, image_transform_v2  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file, save, save_file  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from small_models import (  # noqa: E402
    random_weights,
    registered,
    save_folder,
    tokenizer_files,
    write_configs,
)

from skclip_icm import CLIPFeaturizer, WeightsNotFoundError  # noqa: E402
from skclip_icm._encoding import hub as hub_module  # noqa: E402
from skclip_icm._encoding.encoder import load_encoder  # noqa: E402

OPENAI = ("ViT-B-16", "openai")
LAION = ("ViT-B-32", "laion2b_s34b_b79k")
SIGLIP = ("ViT-B-16-SigLIP", "webli")
HUB_NAME = ("hf-hub:org/some-clip",)
TOKEN = "hf_secret"
OF_OPENAI = "timm/vit_base_patch16_clip_224.openai"
OWN_PREPROCESSING = {"mean": [0.4] * 3, "std": [0.2] * 3, "resize_mode": "squash"}
FIND_IN_CACHE = hub_module._find_in_cache  # which fixtures replace
QUICK = {"HF_HUB_ETAG_TIMEOUT": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    return write_configs(tmp_path_factory.mktemp("configs"))


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory):
    """A model of no built-in name."""
    folder = tmp_path_factory.mktemp("own")
    save_folder(folder, "ViT-B-32", OWN_PREPROCESSING)
    return folder


@pytest.fixture(scope="module")
def repositories(configs, own_folder):
    with registered(configs):
        weights = {name: random_weights(name) for name, _ in (OPENAI, LAION, SIGLIP)}
    name = "open_clip_model.safetensors"
    try:
        tokenizer = tokenizer_files()
    except ImportError:
        tokenizer = {}
    return {
        OF_OPENAI: {name: weights["ViT-B-16"]},
        "laion/CLIP-ViT-B-32-laion2B-s34B-b79K": {name: weights["ViT-B-32"]},
        "timm/ViT-B-16-SigLIP": {name: weights["ViT-B-16-SigLIP"], **tokenizer},
        "org/some-clip": {f.name: f.read_bytes() for f in own_folder.iterdir()},
    }


@pytest.fixture
def hub(repositories):
    with Hub(repositories) as hub:
        yield hub


@pytest.fixture(scope="module")
def patient_hub(repositories):
    """A hub with a user whose process lasts for several tests."""
    with Hub(repositories) as hub:
        yield hub


@pytest.fixture(scope="module")
def lasting_user(patient_hub, configs, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    with User(patient_hub.endpoint, home, configs, HF_TOKEN=TOKEN, **QUICK) as user:
        user.home = home
        yield user


@pytest.fixture
def user(patient_hub, lasting_user):
    """A user with an empty cache, and a hub with no fault yet."""
    patient_hub.fault = None
    shutil.rmtree(lasting_user.home / "hub", ignore_errors=True)
    patient_hub.requests.clear()
    return lasting_user


def open_clips_own(name, tag, weights, configs, folder):
    """Embeddings of the session's pictures by open_clip's own pipeline."""
    pictures = np.random.default_rng(0).integers(0, 256, (3, 70, 90, 3), np.uint8)
    path = folder / "reference.safetensors"
    path.write_bytes(weights)
    entry = open_clip.get_pretrained_cfg(name, tag)
    with registered(configs):
        model = open_clip.create_model(
            name,
            str(path),
            force_quick_gelu=entry.get("quick_gelu", False),
            force_preprocess_cfg={k: v for k, v in entry.items() if k != "size"},
        ).eval()
    cfg = PreprocessCfg(**model.visual.preprocess_cfg)
    transform = image_transform_v2(cfg, is_train=False)
    with torch.inference_mode():
        batch = torch.stack([transform(Image.fromarray(p)) for p in pictures])
        return model.encode_image(batch, normalize=True).numpy()


def is_large(path):
    return ".safetensors" in path


def test_first_use_downloads_once_and_later_ones_ask_nothing(
    hub, repositories, configs, tmp_path
):
    models = [OPENAI, LAION, HUB_NAME, (*SIGLIP, None)]
    if "tokenizer.json" in repositories["timm/ViT-B-16-SigLIP"]:
        models.append((*SIGLIP, ["a cat", "a dog"]))
    with User(hub.endpoint, tmp_path, configs, HF_TOKEN=TOKEN) as user:
        first = user.load(*models)
    assert "error" not in first, first["message"]
    large = [path for path in hub.asked(method="GET") if is_large(path)]
    assert len(large) == len(set(large)) == 4
    # The token is for the hub, and files are elsewhere.
    sent = {
        (request.server, request.headers.get("authorization"))
        for request in hub.requests
        if is_large(request.path)
    }
    assert sent == {("hub", f"Bearer {TOKEN}"), ("files", None)}

    hub.requests.clear()
    with User(hub.endpoint, tmp_path, configs) as user:
        second = user.load(*models)
    # The client's own question, which programs it is used from, has no part in this.
    assert [path for path in hub.asked() if "agent" not in path] == []
    del first["seconds"], second["seconds"]
    assert first == second

    weights = repositories[OF_OPENAI]["open_clip_model.safetensors"]
    expected = open_clips_own(*OPENAI, weights, configs, tmp_path)
    assert (np.array(first["ViT-B-16"]) * expected).sum(axis=1).min() >= 0.99999


FAULTS = {
    "404": "has no open_clip_model.safetensors or open_clip_pytorch_model.bin",
    "401": "RepositoryNotFoundError: 401 Client Error",
    "403": "403",
    "429": "asks to come back in 3600 s",
    "file 403": "403",
    "file 503": "503",
    "truncated": "Consistency check failed",
    "longer": "Consistency check failed",
    "zeroed": "is damaged: its SHA-256 is .* It was removed; the next call downloads",
    "silent": "timed out",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_download_that_fails_says_why_and_leaves_nothing(fault, user, patient_hub):
    patient_hub.fault = fault
    failed = user.load(OPENAI)
    assert failed.get("error") == "WeightsNotFoundError", failed
    assert re.search(f"(?s){FAULTS[fault]}", failed["message"]), failed["message"]
    # Not that of another file, for which open_clip asks next.
    assert fault == "404" or "pytorch_model.bin" not in failed["message"]
    assert TOKEN not in failed["message"]
    patient_hub.fault = None
    assert "error" not in user.load(OPENAI)


def test_a_full_disk_is_told_and_leaves_nothing(user):
    user.limit_files(1 << 20)
    failed = user.load(OPENAI)
    user.limit_files(None)
    assert failed.get("error") == "WeightsNotFoundError", failed
    assert "File too large" in failed["message"]
    assert "error" not in user.load(OPENAI)


def test_a_download_that_breaks_off_is_taken_up_again(user, patient_hub):
    patient_hub.fault = "dropped"
    loaded = user.load(OPENAI)
    if "error" in loaded:  # early clients go on when they are called again
        assert "IncompleteRead" in loaded["message"]
        assert "error" not in user.load(OPENAI)
    assert len(patient_hub.asked(server="files")) == 2


def test_a_slow_hub_is_waited_for(user, patient_hub):
    patient_hub.fault = "slow"
    assert "error" not in user.load(OPENAI)


@pytest.mark.slow
def test_a_download_that_stalls_ends(hub, configs, tmp_path):
    hub.fault = "stalled"
    with User(hub.endpoint, tmp_path, configs, **QUICK) as user:
        failed = user.load(OPENAI)
    assert failed.get("error") == "WeightsNotFoundError", failed
    assert re.search("(?i)timed? ?out", failed["message"])


@pytest.mark.slow
@pytest.mark.skipif(
    "tqdm_class" not in inspect.signature(hf_hub_download).parameters,
    reason="huggingface_hub before 1.1 cannot be told",
)
@pytest.mark.parametrize(
    ("fault", "message"),
    [("trickling", "at least 1000 a second"), ("breaking", "cannot be resumed")],
)
def test_a_download_that_never_ends_is_given_up(fault, message, hub, configs, tmp_path):
    hub.fault = fault
    with User(hub.endpoint, tmp_path, configs, **QUICK) as user:
        failed = user.load(OPENAI)
    assert failed.get("error") == "WeightsNotFoundError", failed
    assert message in failed["message"]
    hub.fault = None
    with User(hub.endpoint, tmp_path, configs, **QUICK) as user:
        assert "error" not in user.load(OPENAI)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "by"), [("slow", signal.SIGKILL), ("trickling", signal.SIGINT)]
)
def test_a_download_that_is_killed_is_made_good(fault, by, hub, configs, tmp_path):
    """Ctrl-C ends one from a server that sends just enough not to be given up."""
    hub.fault = fault
    with User(hub.endpoint, tmp_path, configs, **QUICK) as user:
        user.kill_once(lambda: hub.asked(server="files"), OPENAI, by=by)
    hub.fault = None
    with User(hub.endpoint, tmp_path, configs, **QUICK) as user:
        assert "error" not in user.load(OPENAI)


def test_damage_in_the_cache_is_found_and_mended(user, patient_hub):
    fresh = user.load(OPENAI)
    [blob] = (user.home / "hub").glob("models--*/blobs/*")
    content = bytearray(blob.read_bytes())
    content[-100_000:] = bytes(100_000)
    blob.write_bytes(content)
    patient_hub.requests.clear()
    failed = user.load(OPENAI)
    assert failed.get("error") == "WeightsNotFoundError", failed
    assert f"expected {blob.name}" in failed["message"]
    assert patient_hub.asked() == []
    mended = user.load(OPENAI)
    assert mended["ViT-B-16"] == fresh["ViT-B-16"]


def test_a_damaged_configuration_in_the_cache_is_mended(user):
    fresh = user.load(HUB_NAME)
    [link] = (user.home / "hub").glob("models--*/snapshots/*/open_clip_config.json")
    blob = link.resolve()
    blob.write_bytes(blob.read_bytes()[:-20])
    failed = user.load(HUB_NAME)
    assert failed.get("error") == "WeightsNotFoundError", failed
    assert f"expected {blob.name}" in failed["message"]
    mended = user.load(HUB_NAME)
    assert mended[HUB_NAME[0]] == fresh[HUB_NAME[0]]


def test_a_link_to_a_file_named_by_its_digest_is_checked(own_folder, tmp_path):
    """Which is a link to what is named by its SHA-256, and that is checked."""
    content = (own_folder / "open_clip_model.safetensors").read_bytes()
    blob = tmp_path / "blobs" / hashlib.sha256(content).hexdigest()
    blob.parent.mkdir()
    blob.write_bytes(content)
    path = tmp_path / "open_clip_model.safetensors"
    path.symlink_to(blob)
    shutil.copy(own_folder / "open_clip_config.json", tmp_path)
    assert load_encoder(f"local-dir:{tmp_path}", None, device="cpu").n_features == 32
    blob.write_bytes(content[:-1000] + bytes(1000))
    with pytest.raises(WeightsNotFoundError, match=f"damaged.*expected {blob.name}"):
        load_encoder(f"local-dir:{tmp_path}", None, device="cpu")
    assert not path.exists()


def test_damage_on_the_way_is_found_in_a_cache_without_links(
    hub, asked, tmp_path, monkeypatch
):
    """There, as on Windows, no name says later what a file's digest is."""
    monkeypatch.setattr(file_download, "are_symlinks_supported", lambda *folder: False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    asked(hub.endpoint)
    hub.fault = "zeroed"
    with pytest.raises(WeightsNotFoundError, match="damaged: its SHA-256 is"):
        load_encoder(*OPENAI, device="cpu")
    assert not [path for path in tmp_path.rglob("*.safetensors") if path.exists()]


def test_several_that_download_at_once_do_it_once(hub, asked, tmp_path, monkeypatch):
    """Also without links, where the client alone would have each do it."""
    monkeypatch.setattr(hub_module, "_find_in_cache", FIND_IN_CACHE)
    monkeypatch.setattr(file_download, "are_symlinks_supported", lambda *folder: False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    asked(hub.endpoint)

    def find(_):
        return hub_module.find_file(OF_OPENAI, "open_clip_model.safetensors")

    hub.fault = "truncated"
    with pytest.raises(OSError, match="Consistency check") as raised:
        find(0)
    hub.requests.clear()
    hub.fault = "slow"  # the error, which is kept, keeps no lock
    with ThreadPoolExecutor(3) as threads:
        assert len(set(threads.map(find, range(3)))) == 1
    assert len(hub.asked(server="files", method="GET")) == 1
    assert raised.value.__cause__ is not None


def test_proxies_of_the_environment_are_used(hub, configs, tmp_path):
    proxy = {"ALL_PROXY": hub.endpoint, "NO_PROXY": "localhost"}
    with User("http://hub.invalid", tmp_path, configs, **proxy) as user:
        loaded = user.load(OPENAI)
    assert "error" not in loaded, loaded["message"]


@pytest.fixture
def asked(monkeypatch):
    """Where this process's hub is, a function; with nothing on disk."""

    def set_endpoint(endpoint):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        for module in (constants, file_download):
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, False)

    monkeypatch.setattr(hub_module, "_find_in_cache", lambda *file: None)
    monkeypatch.setattr(hub_module, "_failures", {})
    return set_endpoint


def test_a_dead_hub_is_an_error_at_once(asked):
    with socket.socket() as closed:  # bound, and not listening
        closed.bind(("127.0.0.1", 0))
        asked(f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(WeightsNotFoundError, match="[Rr]efused"):
            load_encoder(*OPENAI, device="cpu")


def test_an_endpoint_without_a_scheme_is_told(asked):
    asked("hub.example.org")
    with pytest.raises(WeightsNotFoundError, match="HF_ENDPOINT is 'hub.example.org'"):
        load_encoder(*OPENAI, device="cpu")


def test_a_search_waits_once_for_a_silent_hub(hub, asked, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
    monkeypatch.setattr(hub_module, "_LONG", 0.5)
    asked(hub.endpoint)
    hub.fault = "silent"
    clip = CLIPFeaturizer(*OPENAI, interventions=None, device="cpu")
    pipe = make_pipeline(clip, LogisticRegression())
    search = GridSearchCV(pipe, {"logisticregression__C": [0.1, 1.0, 10.0]}, cv=2)
    pictures = list(np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="(?s)timed out.* is asked again in"):
        search.fit(pictures, [0, 1, 0, 1])
    assert len(hub.asked()) == 1
    # Not for ever.
    hub.fault = "401"
    monkeypatch.setattr(hub_module.time, "monotonic", lambda: float("inf"))
    with pytest.raises(WeightsNotFoundError, match="401"):
        load_encoder(*OPENAI, device="cpu")


def whole_config(folder):
    return json.loads((folder / "open_clip_config.json").read_text())


BROKEN = {
    "no JSON": lambda config: "{",
    "not an object": lambda config: "[]",
    "no model_cfg": lambda config: json.dumps(config["model_cfg"]),
    "no vision_cfg": lambda config: json.dumps({"model_cfg": {"embed_dim": 3}}),
    "text_cfg of a kind": lambda config: json.dumps(
        {"model_cfg": {**config["model_cfg"], "text_cfg": 3}}
    ),
    "not text": lambda config: "\udcff",
    "too deep": lambda config: '{"model_cfg":' + "[" * 100_000,
    # Which would take all memory, or for ever, to build.
    "huge images": lambda config: with_vision(config, image_size=100_000),
    "very many layers": lambda config: with_vision(config, layers=10_000_000),
}


def with_vision(config, **changes):
    vision = {**config["model_cfg"]["vision_cfg"], **changes}
    return json.dumps({"model_cfg": {**config["model_cfg"], "vision_cfg": vision}})


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_configuration_is_named_and_explained(what, own_folder, tmp_path):
    text = BROKEN[what](whole_config(own_folder))
    shutil.copytree(own_folder, tmp_path / "model")
    path = tmp_path / "model" / "open_clip_config.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match="(?s)open_clip_config.json.*model_cfg"):
        load_encoder(f"local-dir:{path.parent}", None, device="cpu")


@pytest.mark.parametrize(
    ("key", "value"), [("mean", [0.5]), ("std", 3 * [0]), ("mode", "L")]
)
def test_preprocessing_that_cannot_be_is_told(key, value, own_folder, tmp_path):
    shutil.copytree(own_folder, tmp_path / "model")
    path = tmp_path / "model" / "open_clip_config.json"
    config = whole_config(own_folder)
    config["preprocess_cfg"][key] = value
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"say of preprocessing cannot be.*takes its"):
        load_encoder(f"local-dir:{path.parent}", None, device="cpu")


@pytest.mark.parametrize("tower", ["text tower", "image tower"])
def test_a_tower_that_the_hub_has_is_told(tower, own_folder, tmp_path, asked):
    if tower == "text tower":
        pytest.importorskip("transformers")
    asked("http://127.0.0.1:9")
    config = whole_config(own_folder)
    if tower == "text tower":
        config["model_cfg"]["text_cfg"] = {"hf_model_name": "org/no-such-tower"}
    else:
        config["model_cfg"]["vision_cfg"]["timm_model_name"] = "hf-hub:org/no-such"
    shutil.copytree(own_folder, tmp_path / "model")
    path = tmp_path / "model" / "open_clip_config.json"
    path.write_text(json.dumps(config))
    with pytest.raises(WeightsNotFoundError, match=f"(?s){tower}.*[Rr]efused"):
        load_encoder(f"local-dir:{path.parent}", None, device="cpu")


def test_a_tokenizer_that_a_folder_lacks_is_told(own_folder, tmp_path):
    pytest.importorskip("transformers")
    config = whole_config(own_folder)
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "org/tokenizer"
    shutil.copytree(own_folder, tmp_path / "model")
    path = tmp_path / "model" / "open_clip_config.json"
    path.write_text(json.dumps(config))
    encoder = load_encoder(f"local-dir:{path.parent}", None, device="cpu")
    with pytest.raises(WeightsNotFoundError, match="tokenizer.json"):
        encoder.encode_text(["a cat"])


def pickled_settings(state):
    return {**state, "args": argparse.Namespace(lr=1)}


OTHER_FILES = {
    "empty": (b"", ".bin", "is empty"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\n", ".bin", "git lfs pull"),
    "HTML": (b"\n<!doctype html>", ".safetensors", "is a web page"),
    "torch": (lambda state: state, ".safetensors", "Let its name end in .bin"),
    "safetensors": (save, ".bin", "Let its name end in .safetensors"),
    "settings": (pickled_settings, ".bin", r"more in the file than .*argparse\.Name"),
    "integers": (
        lambda state: {k: (100 * v).to(torch.int8) for k, v in state.items()},
        ".bin",
        "int8, expected floating point",
    ),
}


@pytest.mark.parametrize("what", OTHER_FILES)
def test_a_file_that_holds_other_things_is_told(what, own_folder, tmp_path):
    content, suffix, message = OTHER_FILES[what]
    shutil.copy(own_folder / "open_clip_config.json", tmp_path)
    path = tmp_path / f"weights{suffix}"
    if callable(content):
        content = content(load_file(own_folder / "open_clip_model.safetensors"))
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message) as caught:
        load_encoder(f"local-dir:{tmp_path}", None, device="cpu").encode_text(["a cat"])
    # torch says how to run what is in the file.
    assert "to `False`" not in str(caught.value)


def test_a_folder_may_be_an_address_of_this_machine(own_folder, tmp_path):
    folder, cache = f"local-dir:{own_folder.as_uri()}", (tmp_path / "cache").as_uri()
    clip = CLIPFeaturizer(folder, None, cache=cache, interventions=None, device="cpu")
    assert clip.transform(np.zeros((1, 9, 9, 3), np.uint8)).shape == (1, 32)
    assert (tmp_path / "cache").is_dir()


@pytest.mark.parametrize("kind", ["FIFO", "folder", "link to nothing"])
def test_what_is_no_file_is_not_read(kind, own_folder, tmp_path):
    path = tmp_path / "weights.safetensors"
    shutil.copy(own_folder / "open_clip_config.json", tmp_path)
    {
        "FIFO": os.mkfifo,
        "folder": os.mkdir,
        "link to nothing": lambda path: path.symlink_to("nowhere"),
    }[kind](path)
    (tmp_path / "more.json").symlink_to("nowhere")
    with pytest.raises(WeightsNotFoundError, match=r"weights.safetensors \(not a file"):
        load_encoder(f"local-dir:{tmp_path}", None, device="cpu")


@pytest.mark.parametrize("name", ["local-dir:\0", "local-dir:" + 5000 * "a"])
def test_a_name_that_no_folder_can_have_is_told(name):
    with pytest.raises(WeightsNotFoundError, match="local-dir:"):
        load_encoder(name, None, device="cpu")


@pytest.mark.parametrize("number", [0.0, float("nan")])
@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_weights_that_give_nothing_are_refused(number, backend, own_folder, tmp_path):
    shutil.copytree(own_folder, tmp_path / "model")
    path = tmp_path / "model" / "open_clip_model.safetensors"
    state = load_file(path)
    for tensor in state.values():
        tensor.fill_(number)
    save_file(state, path)
    with pytest.raises(ValueError, match="are damaged or not those of the model"):
        load_encoder(f"local-dir:{path.parent}", None, device="cpu", backend=backend)
