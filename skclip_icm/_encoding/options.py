"""What a model computes on and in: what is asked for, against what is there."""

import os
import warnings

import numpy as np

from skclip_icm._encoding import openvino_tower
from skclip_icm._encoding.lanes import have_length

_DTYPES = ("auto", "float32", "bfloat16", "float16", "int8")
_BACKENDS = ("auto", "torch", "openvino")

# What oneDNN reads, the first that is set, before it computes for torch or OpenVINO.
_FPMATH_MODES = ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")


def find_device(device):
    """Return the device that is meant, or raise ValueError if it is not here."""
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


def check_dtype(dtype, device):
    """Raise ValueError if a device cannot compute in it."""
    if dtype not in _DTYPES:
        raise ValueError(f"dtype={dtype!r}, expected one of {_DTYPES}.")
    if dtype == "float16" and device.type == "cpu":
        raise ValueError(
            "dtype='float16' needs a GPU, found device='cpu'. Use 'auto', 'bfloat16' "
            "or 'float32'."
        )


def find_shortening(device, dtype):
    """Return what in the environment shortens float32 on a CPU, and warn of it.

    Nothing in torch or OpenVINO takes it back, so it is part of what embeddings are.
    """
    name = next((name for name in _FPMATH_MODES if os.environ.get(name)), None)
    mode = os.environ.get(name, "").lower() if name else "strict"
    if mode == "strict" or device.type != "cpu" or dtype not in ("float32", "int8"):
        return []
    warnings.warn(
        f"{name}={os.environ[name]} in the environment lets oneDNN shorten float32: "
        "embeddings differ from those elsewhere in the second or third digit, and are "
        "kept apart. Unset it before Python starts.",
        UserWarning,
        stacklevel=2,
    )
    return [mode]


def check_backend(backend, dtype, device, compile):
    """Raise ValueError or ImportError if a backend is not available."""
    if backend not in _BACKENDS:
        raise ValueError(f"backend={backend!r}, expected one of {_BACKENDS}.")
    if backend == "torch" and dtype == "int8":
        raise ValueError(
            "dtype='int8' is computed by OpenVINO, found backend='torch'. Set "
            "backend='auto', or another dtype."
        )
    if backend != "openvino" and dtype != "int8":
        return
    asked = "dtype='int8'" if dtype == "int8" else "backend='openvino'"
    if device.type != "cpu":
        raise ValueError(
            f"{asked} is for CPUs, found device={str(device)!r}. Set device='cpu', or "
            "backend='torch' and another dtype."
        )
    if compile:
        raise ValueError(
            f"compile=True is for backend='torch', found {asked}, which is OpenVINO's "
            "and compiles anyway. Set compile=False."
        )
    if not openvino_tower.is_installed():
        raise ImportError(
            f"{asked} needs the package openvino, which is not installed. Run: "
            'pip install "skclip-icm[openvino]"'
        )


def suits_openvino(backend, device, compile):
    """Whether OpenVINO is asked for, or what "auto" is."""
    if backend != "auto":
        return backend == "openvino"
    return device.type == "cpu" and not compile and openvino_tower.is_installed()


def has_native_bfloat16(device):
    """Whether bfloat16 is quick there."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # Older torch cannot tell instructions from emulation, which is slow.
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        names = ("avx512_bf16", "amx_bf16", "bf16")
        return any(capabilities.get(name, False) for name in names)
    return False


def check_embedding(embedding, name):
    """Raise ValueError if a model's embedding of a blank image says that it is broken.

    Parameters
    ----------
    embedding : ndarray of shape (1, n_features)
        Of an image of one colour.
    name : str
        The model's, for the error.
    """
    if not have_length(embedding).all():
        raise ValueError(
            f"The weights of {name} are damaged or not those of the model: the "
            f"embedding of a blank image begins {embedding[0, :3]}, expected finite "
            "numbers that are not all zero, nor too small or large for a length."
        )


def check_logits(scale, bias, name):
    """Raise ValueError if no probabilities come of a model's scale and bias."""
    if not (0 < scale < np.inf and np.isfinite(bias or 0)):
        raise ValueError(
            f"The weights of {name} are damaged or not those of the model: cosines are "
            f"scaled by {scale}, and {bias} is added, expected finite numbers."
        )
