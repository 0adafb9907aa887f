"""An open_clip model on a device: batches in, embeddings out."""

import hashlib
import json
import warnings
from collections import OrderedDict

import numpy as np

from skclip_icm._containers import check_texts, printable
from skclip_icm._encoding import openvino_tower
from skclip_icm._encoding.folding import fold_batch_norm
from skclip_icm._encoding.lanes import sound
from skclip_icm._encoding.options import (
    check_backend,
    check_dtype,
    check_embedding,
    check_logits,
    find_device,
    find_shortening,
    has_native_bfloat16,
    suits_openvino,
)
from skclip_icm._encoding.quantizing import Calibration
from skclip_icm._encoding.texts import tokenized
from skclip_icm._encoding.torch_state import in_usable_thread, usual_state
from skclip_icm._encoding.torch_tower import TorchTower, on_raw_pixels
from skclip_icm._encoding.weights import (
    WeightsNotFoundError,
    create_model,
    create_tokenizer,
    find_source,
)
from skclip_icm._images.pillow_state import any_size
from skclip_icm._locks import Lock

__all__ = ["Encoder", "WeightsNotFoundError", "load_encoder", "unload_models"]

# Part of every fingerprint: raised when a change, also of decoding, moves embeddings.
_NUMERICS_VERSION = 5
_MAX_MODELS = 4

_encoders = OrderedDict()
_lock = Lock()


def load_encoder(
    model_name,
    pretrained,
    *,
    device="auto",
    dtype="auto",
    compile=False,
    preprocessing=None,
    backend="auto",
    calibration=None,
):
    """Load a model, or return it if this process has it already.

    The models that were used last are kept, up to four.

    Parameters
    ----------
    model_name, pretrained : str
        As for `CLIPFeaturizer`.
    device : str or torch.device, default="auto"
        "auto" is the first of cuda, mps and cpu that is there.
    dtype : {"auto", "float32", "bfloat16", "float16", "int8"}, default="auto"
        What the model computes in. "auto" is bfloat16 where the device computes it
        natively and the image tower is a transformer, else float32.
    compile : bool, default=False
        Whether `torch.compile` rewrites the image tower.
    preprocessing : dict, optional
        Of "mean", "std", "interpolation" and "resize_mode", those that shall stand in
        place of what the weights say or, if they say nothing, of CLIP's own.
    backend : {"auto", "torch", "openvino"}, default="auto"
        What computes the image tower. "auto" is OpenVINO on a CPU, if it is installed,
        can convert the model, and `compile` is not set; else torch.
    calibration : sequence of images or None, default=None
        For int8, what to quantise the model by. Ignored otherwise.

    Returns
    -------
    encoder : Encoder
        One object per process for the same weights, device, dtype, `compile` and
        backend, as long as it is kept.

    Raises
    ------
    ValueError
        If an option is unknown, not available here or does not go with another,
        if the weights do not fit the model, or if int8 changes the embeddings too much.
    WeightsNotFoundError
        If the weights are not found. They are never replaced by random ones.
    ImportError
        If OpenVINO is asked for, or NNCF needed, and is not installed.
    RuntimeError
        If torch cannot compile here, or OpenVINO not convert, as was asked for.

    Examples
    --------
    >>> from skclip_icm._encoding.encoder import load_encoder
    >>> encoder = load_encoder("demo", None, device="cpu")
    >>> encoder.encode_text(["a cat", "a dog"]).shape
    (2, 1280)
    """
    source = find_source(model_name, pretrained, preprocessing)
    device = find_device(device)
    check_dtype(dtype, device)
    check_backend(backend, dtype, device, compile)
    sample = Calibration(calibration) if dtype == "int8" else None
    options = source, device, dtype, bool(compile), backend
    wanted = *options, sample and sample.key
    with _lock:
        if wanted not in _encoders:
            encoder = in_usable_thread(
                usual_state(loading=True)(Encoder), *options, sample
            )
            # The same model may have been reached by another name or by "auto".
            _encoders[wanted] = next(
                (
                    other
                    for other in _encoders.values()
                    if (other.fingerprint, other.device, other.compile)
                    == (encoder.fingerprint, device, encoder.compile)
                ),
                encoder,
            )
        _encoders.move_to_end(wanted)
        while len(set(map(id, _encoders.values()))) > _MAX_MODELS:
            _encoders.popitem(last=False)
        return _encoders[wanted]


def unload_models():
    """Free the memory of the models that this process keeps.

    The four that were used last are kept. One that is needed again is loaded again;
    calls that are running finish with what they have.

    Examples
    --------
    >>> from skclip_icm import unload_models
    >>> unload_models()
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
        of the weights, architecture, activation, preprocessing, dtype and backend.
        Compiling, as the batch size, changes no more than rounding.
    device : torch.device
        Where the model is.
    dtype : str
        What it computes in.
    backend : {"torch", "openvino"}
        What computes the image tower. Texts are always torch's.
    batch_size : int
        Images per forward pass that suit the device.
    compile : bool
        Whether the image tower is compiled.
    recipe : dict
        Parameters with which `load_encoder` loads the same in another process.
    logit_scale : float
        Factor of cosines between images and texts.
    logit_bias : float or None
        What is added to them, for models trained with a sigmoid loss.
    """

    def __init__(self, source, device, dtype, compile, backend, sample):
        import torch
        from open_clip.transform import PreprocessCfg, image_transform_v2

        self._source = source
        self._tokenize = None
        model, identify = create_model(source)
        is_convolutional = _count(model.visual, torch.nn.Conv2d) > 1
        if dtype == "auto":
            # Of a convolutional tower's embeddings, too little is left in bfloat16: on
            # photographs, the demo encoder's have a cosine of 0.991.
            native = has_native_bfloat16(device) and not is_convolutional
            dtype = "bfloat16" if native else "float32"
        self.device, self.dtype, self.compile = device, dtype, compile
        self._shortening = find_shortening(device, dtype)
        # On a CPU, activations that outgrow the C library's threshold for mapped
        # memory are paged in anew on every pass, which costs convolutional towers most;
        # and few images should still make batches for all processors.
        on_cpu = 8 if is_convolutional else 16
        self.batch_size = on_cpu if device.type == "cpu" else 256

        preprocess = PreprocessCfg(**model.visual.preprocess_cfg)
        if isinstance(preprocess.size, list):  # height and width, from JSON
            preprocess.size = tuple(preprocess.size)
        transform = image_transform_v2(preprocess, is_train=False)
        # What is left out converts to RGB, to a tensor, and normalises it.
        self._geometry = transform.transforms[:-3]
        self.image_size = tuple(preprocess.input_size[1:])
        self.logit_scale = float(model.logit_scale.detach().exp())
        bias = getattr(model, "logit_bias", None)
        self.logit_bias = None if bias is None else float(bias.detach())
        check_logits(self.logit_scale, self.logit_bias, source.name)

        def settings():
            return [_NUMERICS_VERSION, identify(), vars(preprocess)]

        self._quantizer = None
        if sample is not None:
            self._quantizer = sample.quantizer(self.resize, not is_convolutional)
        self._model, self.backend, self._tower = model, "openvino", None
        if suits_openvino(backend, device, compile):
            self._tower = self._convert(preprocess, settings(), backend)
        embedding = None
        if self._tower is None:
            self.backend = "torch"
            if _count(model.visual, torch.nn.BatchNorm2d):
                grey = torch.zeros(1, 3, *self.image_size)
                embedding = fold_batch_norm(model.visual, grey).numpy()

        # Texts are quick, and there is no int8 for them.
        model.to(device, getattr(torch, "float32" if dtype == "int8" else dtype))
        if self.backend == "torch":
            kinds = torch.contiguous_format, torch.channels_last
            layout = kinds[is_convolutional]
            model.visual.to(memory_format=layout)
            self._tower = TorchTower(model, preprocess, device, dtype, layout)
        black = torch.zeros(1, 3, *self.image_size, dtype=torch.uint8)
        embedding = self.encode_images(black) if embedding is None else embedding
        self.fingerprint = _digest([*settings(), *self._numerics()])
        check_embedding(embedding, source.name)
        self.n_features = embedding.shape[1]
        if compile:
            self._tower.compile(source.name, black)

    @property
    def recipe(self):
        """Parameters for `load_encoder`, see the class."""
        return {
            "model_name": self._source.name,
            "pretrained": self._source.pretrained,
            "device": str(self.device),
            "dtype": self.dtype,
            "compile": self.compile,
            "preprocessing": dict(self._source.preprocessing),
            "backend": self.backend,
            "calibration": self._quantizer and self._quantizer.pixels,
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
        with any_size():
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
        return self._tower.encode(pixels)

    def encode_text(self, texts):
        """Embed texts.

        Parameters
        ----------
        texts : sequence of str, length m
            Cut by the tokenizer where longer than the model's context, with a warning.

        Returns
        -------
        embeddings : ndarray of shape (m, n_features), float32
            As the model gives them, not of unit length.

        Raises
        ------
        ValueError
            If there are no texts, or one is blank.
        TypeError
            If `texts` is one string, or an entry is not a string.
        WeightsNotFoundError
            If the tokenizer's files are not found.
        """
        # Names of files may hold what no tokenizer reads.
        texts = list(map(printable, check_texts(texts, "texts")))
        with _lock:
            if self._tokenize is None:
                self._tokenize = create_tokenizer(self._source)
        return in_usable_thread(self._encode_texts, texts)

    def _encode_texts(self, texts):
        import torch

        parts = []
        with usual_state(self.device.type), torch.inference_mode():
            for tokens in tokenized(texts, self._tokenize):
                features = self._model.encode_text(
                    tokens.to(self.device), normalize=False
                )
                parts.append(_to_numpy(features))
        name = lambda index: f"texts[{index}], {texts[index]!r}"  # noqa: E731
        return sound(np.concatenate(parts), self, name)

    def _numerics(self):
        """Return what decides the embeddings beside model and preprocessing."""
        if self.backend == "torch":
            return [self.dtype, *self._shortening]
        sample = self._quantizer.identity if self._quantizer else []
        return [self.dtype, *self._shortening, *openvino_tower.numerics(), *sample]

    def _convert(self, preprocess, settings, backend):
        """Return the converted tower; None where "auto" has to stay with torch."""
        import torch

        tower = on_raw_pixels(self._model, preprocess)
        key = _digest([*settings, *openvino_tower.numerics()])
        try:
            converted = openvino_tower.OpenVINOTower(
                tower,
                self.image_size,
                key,
                self.dtype,
                quantize=self._quantizer,
                quantized_key=_digest([*settings, *self._numerics()]),
            )
        except openvino_tower.ConversionError as error:
            black = torch.zeros(1, *self.image_size, 3, dtype=torch.uint8)
            check_embedding(tower(black).detach().numpy(), self._source.name)
            problem = f"OpenVINO cannot convert {self._source.name}: {error}"
            if backend == "openvino" or self.dtype == "int8":
                raise RuntimeError(f"{problem}\nSet backend='torch'.") from error
            warnings.warn(
                f"{problem}\nThe model runs in torch, which is slower; "
                "backend='torch' avoids this warning.",
                stacklevel=2,
            )
            return None
        self._model.visual = torch.nn.Identity()  # its weights are not needed twice
        return converted


def _digest(settings):
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def _count(module, kind):
    return sum(isinstance(child, kind) for child in module.modules())


def _to_numpy(features):
    return features.float().cpu().numpy()
