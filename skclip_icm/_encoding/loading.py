"""Weights into a model without random ones first, and what identifies them."""

import hashlib
import re
from contextlib import contextmanager

_LFS = b"version https://git-lfs"


@contextmanager
def without_random_numbers():
    """Let modules be made with the memory of their weights, but nothing drawn for it.

    Weights are read from a file right after, all of them; drawing them first takes
    longer than reading. The state of torch's generators is left alone. Numbers that
    stand for others, such as the integers of quantised weights, are refused.

    Examples
    --------
    >>> import torch
    >>> from skclip_icm._encoding.loading import without_random_numbers
    >>> with without_random_numbers():
    ...     torch.zeros(2).normal_()
    tensor([0., 0.])
    """
    import torch
    from torch.overrides import TorchFunctionMode

    names = ("uniform_", "normal_", "erfinv_")
    drawing = {getattr(torch.Tensor, name) for name in names}
    drawing |= {torch.nn.init.uniform_, torch.nn.init.normal_}
    drawing |= {torch.nn.init.kaiming_uniform_, torch.nn.init.kaiming_normal_}

    class WithoutDrawing(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            if function in drawing:
                return args[0] if args else kwargs["tensor"]
            if function is torch.Tensor.copy_:
                _check_kind(*args[:2])
            return function(*args, **kwargs)

    with torch.random.fork_rng(devices=[]), WithoutDrawing():
        yield


def hash_weights(state):
    """Return the SHA-256 in hex of a state dict: names, shapes, types and values."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def why_unreadable(paths, error):
    """Say what files are in place of weights; if that is not plain, what was met."""
    for path in paths:
        if found := _found_instead(path):
            return f"{path} is {found}"
    kind, text = type(error).__name__, str(error).strip()
    # torch goes on with how to run what is in the file.
    if inside := re.search(r"WeightsUnpickler error: (.+?)(\. |\n|$)", text):
        return f"there is more in the file than tensors ({inside[1]})."
    text = text.partition(" In PyTorch 2.6")[0]
    return text if text and isinstance(error, RuntimeError) else f"{kind}: {text}"


def _found_instead(path):
    with open(path, "rb") as file:
        start = file.read(64)
    is_safetensors = path.suffix == ".safetensors"
    if not start:
        return "empty. Copy or download it again."
    if start.startswith(_LFS):
        return "a pointer of Git LFS, not the file itself. Run: git lfs pull"
    if start.lstrip().startswith(b"<"):
        return "a web page, such as one to log in. Download the file again."
    if is_safetensors and start.startswith((b"PK", b"\x80")):
        return "a file of torch. Let its name end in .bin."
    if not is_safetensors and start[8:10] == b'{"':
        return "a safetensors file. Let its name end in .safetensors."
    return None


def _check_kind(weights, values):
    if weights.is_floating_point() and not values.is_floating_point():
        raise TypeError(
            f"the values are {values.dtype}, expected floating point. Quantised "
            "weights cannot be used."
        )
