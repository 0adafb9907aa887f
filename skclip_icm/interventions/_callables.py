"""A user's function, called reproducibly."""

import inspect
import random

import numpy as np

from skclip_icm._locks import Lock

# Calls that draw from the global generators take turns with them.
_GLOBAL_GENERATORS = Lock()


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
