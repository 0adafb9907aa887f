"""An open_clip model on a device: batches in, embeddings out."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from skclip_icm._encoding.folding import fold_batch_norm
from skclip_icm._encoding.weights import (
    WeightsNotFoundError,
    create_model,
    create_tokenizer,
    find_source,
)
from skclip_icm._locks import Lock

__all__ = ["Encoder", "WeightsNotFoundError", "load_encoder", "unload_encoders"]

# Part of every fingerprint: raised when a change here moves the embeddings.
_NUMERICS_VERSION = 1
_MAX_TEXTS = 256
_DTYPES = ("auto", "float32", "bfloat16", "float16")

_encoders = {}
_lock = Lock()
_PROCESS = os.getpid()


def load_encoder(
    model_name,
    pretrained,
    *,
    device="auto",
    dtype="auto",
    compile=False,
    preprocessing=None,
):
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
    compile : bool, default=False
        Whether `torch.compile` rewrites the image tower.
    preprocessing : dict, optional
        Of "mean", "std", "interpolation" and "resize_mode", those that shall stand in
        place of what the weights say or, if they say nothing, of CLIP's own.

    Returns
    -------
    encoder : Encoder
        One object per process for the same weights, device, dtype, `compile` and
        `preprocessing`.

    Raises
    ------
    ValueError
        If a name, tag, device or dtype is unknown or not available here, if the
        weights do not fit the model, or if `preprocessing` is not as above.
    WeightsNotFoundError
        If the weights cannot be had. They are never replaced by random ones.
    RuntimeError
        If `compile` is set and torch cannot compile here.

    Examples
    --------
    >>> from skclip_icm._encoding.encoder import load_encoder
    >>> encoder = load_encoder("demo", None, device="cpu")
    >>> encoder.encode_text(["a cat", "a dog"]).shape
    (2, 1280)
    """
    source = find_source(model_name, pretrained, preprocessing)
    device = _find_device(device)
    _check_dtype(dtype, device)
    wanted = source, device, dtype, bool(compile)
    with _lock:
        if wanted not in _encoders:
            encoder = _in_usable_thread(Encoder, *wanted)
            # The same weights may have been reached by another name or dtype="auto".
            _encoders[wanted] = next(
                (
                    other
                    for other in _encoders.values()
                    if (other.fingerprint, other.device, other.compile)
                    == (encoder.fingerprint, device, encoder.compile)
                ),
                encoder,
            )
        return _encoders[wanted]


def unload_encoders():
    """Forget the models of this process, to free their memory.

    Examples
    --------
    >>> from skclip_icm._encoding.encoder import unload_encoders
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
        of the weights, architecture, activation, preprocessing and dtype. Compiling
        changes no more than rounding, as the batch size does, so it is left out.
    device : torch.device
        Where the model is.
    dtype : str
        What it computes in.
    batch_size : int
        Images per forward pass that suit the device.
    max_batch_size : int or None
        A bound found by running out of the device's memory; None as long as none was.
    compile : bool
        Whether the image tower is compiled.
    recipe : dict
        Parameters with which `load_encoder` loads the same in another process.
    logit_scale : float
        Factor of cosines between images and texts.
    logit_bias : float or None
        What is added to them, for models trained with a sigmoid loss.
    """

    def __init__(self, source, device, dtype, compile=False):
        import torch
        from open_clip.transform import PreprocessCfg, image_transform_v2

        from skclip_icm._encoding.class_token import drop_unused_tokens

        self._source = source
        self._tokenize = None
        model, identity = create_model(source)
        is_convolutional = _count(model.visual, torch.nn.Conv2d) > 1
        if dtype == "auto":
            native = _has_native_bfloat16(device) and not is_convolutional
            dtype = "bfloat16" if native else "float32"
        self.device, self.dtype, self.compile = device, dtype, compile
        # On a CPU, activations that outgrow the C library's threshold for mapped
        # memory are paged in anew on every pass: for a convolutional tower that takes
        # as long as the arithmetic from 16 images on.
        # A transformer is as fast with 8 as with 64 where a batch has a processor to
        # itself; few images should still make batches for all processors.
        on_cpu = 8 if is_convolutional else 16
        self.batch_size = on_cpu if device.type == "cpu" else 256
        self.max_batch_size = None

        preprocess = PreprocessCfg(**model.visual.preprocess_cfg)
        if isinstance(preprocess.size, list):  # height and width, from JSON
            preprocess.size = tuple(preprocess.size)
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

        example = torch.zeros(1, 3, *self.image_size)
        if _count(model.visual, torch.nn.BatchNorm2d):
            fold_batch_norm(model.visual, example)
        drop_unused_tokens(model.visual, example)
        self._layout = (
            torch.channels_last if is_convolutional else torch.contiguous_format
        )
        self._model = model.to(device, getattr(torch, dtype))
        self._model.visual.to(memory_format=self._layout)
        blank = torch.zeros(1, 3, *self.image_size, dtype=torch.uint8)
        self.n_features = self.encode_images(blank).shape[1]
        if compile:
            self._compile(blank)

    @property
    def recipe(self):
        """Parameters with which `load_encoder` loads the same in another process."""
        return {
            "model_name": self._source.name,
            "pretrained": self._source.pretrained,
            "device": str(self.device),
            "dtype": self.dtype,
            "compile": self.compile,
            "preprocessing": dict(self._source.preprocessing),
        }

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
        _check_texts(texts)
        with _lock:
            if self._tokenize is None:
                self._tokenize = create_tokenizer(self._source)
        return _in_usable_thread(self._encode_texts, texts)

    def _encode_texts(self, texts):
        import torch

        parts = []
        with torch.inference_mode():
            for start in range(0, len(texts), _MAX_TEXTS):
                tokens = self._tokenize(list(texts[start : start + _MAX_TEXTS]))
                features = self._model.encode_text(
                    tokens.to(self.device), normalize=False
                )
                parts.append(_to_numpy(features))
        return np.concatenate(parts)

    def _compile(self, blank):
        import torch
        from torch._dynamo.exc import TorchDynamoException

        # One program for all batch sizes: the last batch is smaller than the others.
        visual = torch.compile(self._model.visual, dynamic=True)
        self._model.visual = visual
        try:
            self.encode_images(blank.expand(2, -1, -1, -1))
        except (TorchDynamoException, ImportError, OSError) as error:
            raise RuntimeError(
                f"compile=True: torch cannot compile {self._source.name} here: {error}"
                "\nInstall a C++ compiler (and Triton for a GPU), or set compile=False."
            ) from error


def _in_usable_thread(function, *args):
    """Call a function that runs a model; after a fork, in a thread of its own.

    In a forked process, OpenMP waits for ever for threads that the forking thread had
    and that are not there any more. A new thread has none to wait for. Elsewhere a new
    thread would do harm: a fork while its helpers end leaves their locks locked.
    """
    if os.getpid() == _PROCESS:
        return function(*args)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *args).result()


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
