"""Weights into a model without random ones first, and what identifies them."""

import hashlib
from contextlib import contextmanager


@contextmanager
def without_random_numbers():
    """Let modules be made with the memory of their weights, but nothing drawn for it.

    Weights are read from a file right after, all of them; drawing them first takes
    longer than reading. The state of torch's generators is left alone.

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
