"""What a user has set in torch, kept away from our models and left as it is."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from operator import attrgetter

from skclip_icm._locks import Flag

_PROCESS = os.getpid()


@contextmanager
def usual_state(device_type="cpu", *, loading=False):
    """Let torch compute as it comes, whatever is set in this process.

    The default device and autocast are those of a thread. The default dtype is that of
    the process, which gives models theirs when they are built; so it is set for
    `loading` alone, and only where it is another one. A choice of kernels, which round
    differently, stays the user's.

    Parameters
    ----------
    device_type : str, default="cpu"
        Where a model computes, such as "cuda".
    loading : bool, default=False
        Whether a model is built here.

    Examples
    --------
    >>> import torch
    >>> from skclip_icm._encoding.torch_state import usual_state
    >>> with torch.device("meta"), usual_state():
    ...     print(torch.empty(0).device)
    cpu
    """
    import torch

    with ExitStack() as stack, full_float32(device_type):
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in {"cpu", device_type}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if loading:
            # Tensors made in inference mode could not be traced.
            stack.enter_context(torch.inference_mode(False))
            dtype = torch.get_default_dtype()
            if dtype != torch.float32:
                stack.callback(torch.set_default_dtype, dtype)
                torch.set_default_dtype(torch.float32)
        yield


def in_usable_thread(function, *args):
    """Call a function that runs a model; after a fork, in a thread of its own.

    In a forked process, OpenMP waits for ever for threads that the forking thread had
    and that are not there any more. A new thread has none to wait for. Elsewhere a new
    thread would do harm: a fork while its helpers end leaves their locks locked.
    """
    if os.getpid() == _PROCESS:
        return function(*args)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *args).result()


@contextmanager
def full_float32(device_type):
    """Let nothing shorten float32, to TF32 on a GPU or to bfloat16 on a CPU."""
    with ExitStack() as stack:
        stack.enter_context(_PRODUCTS.held())
        if device_type == "cuda":
            stack.enter_context(_CONVOLUTIONS.held())
        yield


def _precision_flag(read, write, exact, kinds):
    """Return the flag of what torch has as one setting and, since 2.9, by the kind.

    Parameters
    ----------
    read, write : callable
        Of the one setting, of which `exact` shortens nothing.
    kinds : callable
        Returns the objects whose ``fp32_precision`` is that of a kind of operation;
        "none" stands for what a more general one says.
    """

    def read_all():
        try:
            whole = read()
        except RuntimeError:  # so it says where a kind of operation disagrees
            whole = None
        return whole, tuple(kind.fp32_precision for kind in kinds())

    def write_all(state):
        whole, values = state
        if whole is not None:
            write(whole)
        for kind, value in zip(kinds(), values, strict=True):
            if kind.fp32_precision != value:
                kind.fp32_precision = "none"
            if kind.fp32_precision != value:
                kind.fp32_precision = "ieee" if value == "none" else value

    def wanted(state):
        whole, values = state
        full = ("none" if value in _SHORT else value for value in values)
        return whole if whole is None else exact, tuple(full)

    return Flag(read_all, write_all, wanted)


def _read_products():
    import torch

    return torch.get_float32_matmul_precision()


def _write_products(value):
    import torch

    torch.set_float32_matmul_precision(value)


def _read_convolutions():
    import torch

    return torch.backends.cudnn.allow_tf32


def _write_convolutions(value):
    import torch

    torch.backends.cudnn.allow_tf32 = value


def _kinds(*names):
    from torch import backends

    known = hasattr(backends.mkldnn, "matmul")  # since torch 2.9
    return [attrgetter(name)(backends) for name in names] if known else []


_SHORT = ("tf32", "bf16", "fp16")
_PRODUCTS = _precision_flag(
    _read_products,
    _write_products,
    "highest",
    # The CPU's convolutions have no other setting.
    partial(_kinds, "cuda.matmul", "mkldnn.matmul", "mkldnn.conv"),
)
_CONVOLUTIONS = _precision_flag(
    _read_convolutions, _write_convolutions, False, partial(_kinds, "cudnn.conv")
)
