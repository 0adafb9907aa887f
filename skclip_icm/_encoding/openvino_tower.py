"""An image tower computed by OpenVINO, on a CPU.

OpenVINO starts threads of its own, and what is compiled waits for them. A fork copies a
process without them: so it waits until no call is running, and the child leaves alone
what the parent has compiled, and compiles anew when it next needs it.
"""

import ctypes
import importlib.util
import os
import sys
import threading
import warnings
import weakref
from collections import OrderedDict
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version

import numpy as np

from skclip_icm._encoding.converted_models import read_model, write_model
from skclip_icm._encoding.lanes import share
from skclip_icm._locks import Lock

# Compiled forms of a model that are kept: for a single batch, and for many.
_MAX_PROGRAMS = 2
MIN_COSINE = 0.999  # to what torch computes in float32
_HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}


class ConversionError(RuntimeError):
    """OpenVINO cannot compute this model, or computes something else."""


def is_installed():
    """Whether there is a package openvino, without importing it."""
    return importlib.util.find_spec("openvino") is not None


def numerics():
    """Return what decides the embeddings beside the model, for fingerprints."""
    return ["openvino", version("openvino")]


class OpenVINOTower:
    """The image tower of a model, converted.

    Parameters
    ----------
    tower : torch.nn.Module
        From uint8 pixels (b, height, width, 3) to embeddings, in float32.
    image_size : (int, int)
        Height and width.
    key : str
        Digest of all that decides what the tower computes.
    dtype : {"float32", "bfloat16", "int8"}
        What to compute in.
    quantize : callable or None
        For int8, ``quantize(model, run)`` returns the quantised model; ``run(model)``
        computes a model in float32.
    quantized_key : str or None
        As `key`, of the quantised model.

    Raises
    ------
    ConversionError
        If the converted tower computes something else, or there is none.
    """

    def __init__(
        self, tower, image_size, key, dtype, *, quantize=None, quantized_key=None
    ):
        self._hint = _HINTS[dtype]
        self._programs = OrderedDict()
        self._lock = Lock()
        with _running(), _without_telemetry():
            float_model = partial(_kept, key, partial(_convert, tower, image_size))
            if quantize is None:
                self._model = float_model()
            else:
                make = lambda: quantize(float_model(), _run)  # noqa: E731
                self._model = _kept(quantized_key, make)
        _towers.add(self)

    def encode(self, pixels):
        """Embed pixels, uint8 (b, 3, height, width), best in channels-last order."""
        batch = np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())
        with _running():
            program = self._program(*share())
            return program(batch)

    def forget_programs(self):
        """Compile anew at the next use, in a process forked from this one."""
        for program in self._programs.values():
            _keep_for_ever(program)
        self._programs.clear()

    def _program(self, n_lanes, n_threads):
        wanted = n_lanes, n_threads
        with self._lock:
            if wanted not in self._programs:
                self._programs[wanted] = _Program(self._model, self._hint, *wanted)
            self._programs.move_to_end(wanted)
            if len(self._programs) > _MAX_PROGRAMS:
                self._programs.popitem(last=False)
            return self._programs[wanted]


class _Program:
    """A compiled model: batches in, embeddings out, from many threads at once."""

    def __init__(self, model, hint, n_lanes, n_threads):
        settings = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": n_lanes * n_threads,
            "NUM_STREAMS": n_lanes,
        }
        self._compiled = _get_core().compile_model(model, "CPU", settings)
        self._idle = []  # requests, each with its memory for activations

    def __call__(self, batch):
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        embeddings = request.infer([batch], share_inputs=True)[0]
        self._idle.append(request)  # not one that has failed
        return np.asarray(embeddings, dtype=np.float32)


def _kept(key, make):
    """Return a model from disk, or make it and keep it there."""
    import openvino

    parts = read_model(key)
    if parts is None:
        model = make()
        write_model(key, partial(openvino.save_model, model, compress_to_fp16=False))
        # As other processes read it, which differs in rounding.
        parts = read_model(key)
        if parts is None:  # the folder cannot be written to
            return model
    xml, weights = parts
    return _get_core().read_model(xml, openvino.Tensor(weights))


def _convert(tower, image_size):
    import openvino
    import torch

    def example(n_images):
        shape = n_images, *image_size, 3
        ramp = torch.arange(int(np.prod(shape)), dtype=torch.int64) * 97 // 64 % 256
        return ramp.to(torch.uint8).view(shape)

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it cannot be traced
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            # Tracing is deprecated, and it is what OpenVINO takes.
            warnings.simplefilter("ignore")
            expected = tower(example(3)).numpy()
            traced = torch.jit.trace(tower, example(2), check_trace=False, strict=False)
            sizes = [-1, *image_size, 3]
            model = openvino.convert_model(traced, input=[(sizes, openvino.Type.u8)])
        found = _run(model)(example(3).numpy())
    except Exception as error:  # whatever a converter says of a foreign model
        raise ConversionError(f"{type(error).__name__}: {error}") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    # Also a trace that has taken the number of images for a constant shows here.
    if not (cosine := min_cosine(found, expected)) >= MIN_COSINE:
        raise ConversionError(f"the cosine to torch's embeddings is {cosine:.4f}")
    return model


def _run(model):
    return _Program(model, "f32", *share())


def min_cosine(a, b):
    """Return the smallest cosine of rows of `a` with those of `b`; NaN if one is 0."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore"):
        return float((np.vecdot(a, b) / norms).min())


@contextmanager
def _without_telemetry():
    """Let OpenVINO and NNCF report nothing to their makers, whatever was agreed to.

    Both send events when imported, converting and quantising, and make folders in the
    user's home. Without the package openvino_telemetry they do neither; where they have
    been imported with it, its sender is replaced meanwhile.
    """
    name = "openvino_telemetry"
    if name not in sys.modules:
        sys.modules[name] = None  # as if it were not installed
        try:
            yield
        finally:
            del sys.modules[name]
        return
    sender = sys.modules[f"{name}.utils.sender"].TelemetrySender
    send = sender.send
    sender.send = lambda self, backend, message: None
    try:
        yield
    finally:
        sender.send = send


# Forks

_towers = weakref.WeakSet()
_core = None
_condition = threading.Condition()
_callers = {}  # threads inside OpenVINO, each with the depth of its calls
_n_forks = 0  # forks that wait for them


def _get_core():
    global _core

    if _core is None:
        import openvino

        _core = openvino.Core()
        # It holds on to TBB, which a child of a fork would else end: and crash, as the
        # helpers are not there. In the child, this core stays for ever.
        _core.set_property({"FORCE_TBB_TERMINATE": True})
    return _core


@contextmanager
def _running():
    """Hold forks off."""
    me = threading.get_ident()
    with _condition:
        _condition.wait_for(lambda: not _n_forks or me in _callers)
        _callers[me] = _callers.get(me, 0) + 1
    try:
        yield
    finally:
        with _condition:
            _callers[me] -= 1
            if not _callers[me]:
                del _callers[me]
            _condition.notify_all()


def _before_fork():
    global _n_forks

    _condition.acquire()
    _n_forks += 1
    me = threading.get_ident()
    _condition.wait_for(lambda: not _callers.keys() - {me})
    if _core is not None:
        # OpenVINO keeps threads of models that are gone, for the next model. A core
        # that ends stops them; the child would count on them.
        type(_core)().get_versions("CPU")


def _after_fork():
    global _n_forks

    _n_forks -= 1
    _condition.notify_all()
    _condition.release()


def _after_fork_in_child():
    global _condition, _core, _n_forks

    _n_forks, _condition = 0, threading.Condition()
    for tower in list(_towers):
        tower.forget_programs()
    _keep_for_ever(_core)
    _core = None


def _keep_for_ever(item):
    """Let an object outlive Python: its end would wait for threads of the parent."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(item))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork,
        after_in_child=_after_fork_in_child,
    )
