"""A user's function, called reproducibly and described for cache keys."""

import enum
import functools
import inspect
import random
import sys
from collections import OrderedDict
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType

import numpy as np

from skclip_icm._locks import Lock

# Calls that draw from the global generators take turns with them.
_GLOBAL_GENERATORS = Lock()

# Packages whose code changes only with their version; so does the standard library.
_VERSIONED = ("PIL", "cv2", "numpy", "scipy", "skimage", "torch", "torchvision")
_CONSTANTS = (type(None), type(...), bool, int, float, complex, str, bytes)


def call_reproducibly(function, argument, seed):
    """Call a function so that its random numbers depend on the seed alone.

    Parameters
    ----------
    function : callable
        Called as ``function(argument, rng)`` if it has a second positional parameter
        that is required or called ``rng``, else as ``function(argument)``. In the
        latter case the global generators of `random`, NumPy and torch (CPU) are
        seeded for the call and restored after it, one call at a time.
    argument : object
        What is passed.
    seed : int
        Below 2**64.

    Returns
    -------
    object
        What the function returns.

    Examples
    --------
    >>> add = lambda x, rng: x + float(rng.random())
    >>> call_reproducibly(add, 1, seed=7) == call_reproducibly(add, 1, seed=7)
    True
    """
    if _takes_generator(function):
        return function(argument, np.random.default_rng(seed))
    import torch

    with _GLOBAL_GENERATORS:
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        random.seed(seed)
        np.random.seed(seed % 2**32)
        # Not torch.manual_seed, which seeds the GPUs for good as well.
        torch.default_generator.manual_seed(seed)
        try:
            return function(argument)
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])


def describe_callable(function):
    """Text that changes when what a function does changes.

    Parameters
    ----------
    function : callable
        A function (with its defaults, enclosed values and what it refers to), a
        partial, or a torchvision transform.

    Returns
    -------
    str or None
        The same in every process of one Python version; None where the behaviour
        cannot be known for certain, for instance if the function refers to an object
        or to a module under development.

    Examples
    --------
    >>> describe_callable(lambda x: x + 1) == describe_callable(lambda x: x + 1)
    True
    >>> describe_callable(lambda x: x + 1) == describe_callable(lambda x: x + 2)
    False
    """
    try:
        return _describe(function, ())
    except _UnknownError:
        return None


def _takes_generator(function):
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some builtins have no signature
        return False
    positional = [p for p in parameters if p.kind <= p.POSITIONAL_OR_KEYWORD]
    if len(positional) < 2:
        return False
    second = positional[1]
    return second.name == "rng" or second.default is second.empty


class _UnknownError(Exception):
    """Something whose behaviour cannot be written down."""


def _describe(value, within):
    if any(value is outer for outer in within):
        return "itself"
    within = (*within, value)
    if type(value) in _CONSTANTS:
        return repr(value)
    if type(value) in (tuple, list, set) and (type(value) is not set or not value):
        return f"{type(value).__name__}{[_describe(v, within) for v in value]}"
    if type(value) in (dict, OrderedDict):
        return f"dict{[_describe(pair, within) for pair in value.items()]}"
    if isinstance(value, CodeType):
        # Code that it encloses is among the constants; line numbers do not count.
        parts = value.co_code, value.co_names, value.co_consts, value.co_exceptiontable
        return _describe(parts, within)
    if type(value) is functools.partial:
        return _describe((value.func, value.args, value.keywords), within)
    return _describe_code(value, within)


def _describe_code(value, within):
    if isinstance(value, ModuleType):
        return _version(value.__name__)
    if isinstance(value, FunctionType | BuiltinFunctionType | type):
        version = _version(value.__module__, required=type(value) is not FunctionType)
        if version:
            return f"{version} {value.__qualname__}"
        return _describe_function(value, within)
    version = _version(type(value).__module__)
    if isinstance(value, enum.Enum):
        return f"{version} {value}"
    if version.startswith("torchvision"):
        return f"{version} {type(value).__qualname__} {_describe(vars(value), within)}"
    raise _UnknownError


def _version(module, required=True):
    package = (module or "").partition(".")[0]
    if package in _VERSIONED:
        return f"{module} {sys.modules[package].__version__}"
    if package in sys.stdlib_module_names and package != "__main__":
        return module
    if required:
        raise _UnknownError
    return ""


def _describe_function(function, within):
    try:
        enclosed = [cell.cell_contents for cell in function.__closure__ or ()]
    except ValueError as exc:  # not yet filled
        raise _UnknownError from exc
    refers_to = {
        name: function.__globals__[name]
        for name in _names(function.__code__)
        if name in function.__globals__
    }
    defaults = function.__defaults__, function.__kwdefaults__
    return _describe((function.__code__, defaults, enclosed, refers_to), within)


def _names(code):
    """Names that code, or code it encloses, may look up globally."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names.update(_names(constant))
    return sorted(names)
