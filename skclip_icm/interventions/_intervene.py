"""Interventions, do(.): change what should not matter, keep what should.

An intervention turns an image into a counterpart of the same content. Its parameters
are drawn from a generator seeded by the image's own pixels, so a counterpart depends
on the image, the seed and the draw alone: not on order, batch, threads or the global
random state.
"""

import difflib
import functools
import hashlib
import json
import numbers

import numpy as np
import PIL
from PIL import Image

from skclip_icm._images.decoding import ImageError, decode, digest, read_content
from skclip_icm.interventions._callables import call_reproducibly
from skclip_icm.interventions._captions import captions
from skclip_icm.interventions._recipes import (
    PHOTOMETRIC,
    RANDOM_CHOICE,
    RANGES,
    RECIPES,
)

__all__ = ["captions", "intervene", "intervention_key", "resolve_interventions"]

# Part of every key: raised when what a named intervention does to an image changes.
_VERSION = 1


def intervene(image, intervention="photometric", *, random_state=0, draw=0):
    """Return the counterpart of one image under an intervention.

    Parameters
    ----------
    image : PIL image or uint8 tensor (3, H, W)
        The image; it is not modified. A PIL image is taken as RGB.
    intervention : str or callable, default="photometric"
        A name from `IMAGE_INTERVENTIONS`, or a callable that is given a PIL image of
        mode "RGB" and returns an image (PIL, array or tensor) of any size. If it has
        a second positional parameter that is required or called ``rng``, it is also
        given a `numpy.random.Generator`. Otherwise the global generators of
        `random`, NumPy and torch (CPU) are seeded for the call and restored after
        it, so torchvision's random transforms are reproducible; such calls run one
        at a time. Embeddings of what a callable makes are kept by its pixels, so it
        is called anew whenever they are needed; if it has a string ``cache_key``,
        that stands for what it does and saves the call.
    random_state : int, default=0
        Seed.
    draw : int, default=0
        Number of the counterpart: other draws have other random parameters.

    Returns
    -------
    PIL image of mode "RGB" or uint8 tensor (3, H, W)
        As the input. Named interventions keep the size.

    Raises
    ------
    TypeError
        If ``image`` is no image, or the callable returns none.
    ValueError
        If the name is unknown.

    Notes
    -----
    Seven interventions are those of the CLIP-ICM paper: "color_jitter", "grayscale",
    "gaussian_blur", "invert", "posterize", "solarize" and "equalize"; "random_choice"
    draws one of them, each as likely, as the authors' script does. Not from the paper
    are "photometric", which composes "color_jitter", "gaussian_blur", "posterize" and
    "solarize" at random and leaves the others for validation, and "hue", which turns
    all hues by a sixth to five sixths of the circle and keeps the rest. Each is
    torchvision's functional transform (v2, on PIL images), except the blur, which is
    Pillow's: in integers, so equal on all machines. The ranges are in `RANGES`, the
    composition in `PHOTOMETRIC`. "grayscale" and "hue" leave a grey image unchanged.

    Examples
    --------
    >>> from PIL import Image
    >>> from skclip_icm.interventions import intervene
    >>> image = Image.new("RGB", (8, 8), (255, 0, 10))
    >>> intervene(image, "invert").getpixel((0, 0))
    (0, 255, 245)
    >>> intervene(image, lambda image: image.rotate(90)).size
    (8, 8)
    """
    if isinstance(image, Image.Image):
        as_tensor = False
        rgb = image if image.mode == "RGB" else decode(image)
    elif hasattr(image, "permute"):
        as_tensor = True
        rgb = decode(read_content(image))
    else:
        raise TypeError(
            f"image is of type {type(image).__name__}, expected a PIL image or a uint8 "
            "tensor (3, H, W). Open a file with PIL.Image.open, and make an image of "
            "an array with PIL.Image.fromarray."
        )
    for name, value in (("random_state", random_state), ("draw", draw)):
        if not isinstance(value, numbers.Integral):
            raise TypeError(f"{name} is {value!r}, expected an int.")
    [(name, recipe)] = _named([intervention])
    seed = _seed(random_state, digest(rgb), name, draw)
    if isinstance(intervention, str):
        result = recipe(rgb, np.random.default_rng(seed))
    else:
        result = _call(recipe, name, rgb.copy(), seed)
    return _to_tensor(result) if as_tensor else result


def resolve_interventions(spec):
    """Turn what a user may pass as interventions into named functions.

    Parameters
    ----------
    spec : str, callable, or list or tuple of these
        Each entry is an intervention of its own, with a counterpart of its own.

    Returns
    -------
    list of (str, callable)
        Distinct names, and `intervene` with the intervention filled in: call
        ``function(image, random_state=..., draw=...)``. Callables of equal names are
        told apart by a number.

    Raises
    ------
    ValueError
        If the list is empty, a name is unknown (close matches are listed), or an
        entry occurs twice.
    TypeError
        If an entry is neither a name nor callable.

    Examples
    --------
    >>> [name for name, _ in resolve_interventions(["invert", "solarize"])]
    ['invert', 'solarize']
    """
    entries = list(spec) if isinstance(spec, list | tuple) else [spec]
    if not entries:
        raise ValueError(
            "interventions is empty, expected at least one name or callable, such as "
            "'photometric'."
        )
    for position, entry in enumerate(entries):
        if any(entry is other or entry == other for other in entries[:position]):
            raise ValueError(
                f"interventions holds {_name(entry)!r} twice. For several random "
                "counterparts by one intervention, raise n_interventions."
            )
    taken, resolved = {}, []
    for entry, (name, _) in zip(entries, _named(entries), strict=True):
        taken[name] = taken.get(name, 0) + 1
        unique = name if taken[name] == 1 else f"{name}-{taken[name]}"
        resolved.append((unique, functools.partial(intervene, intervention=entry)))
    return resolved


def intervention_key(intervention):
    """Text that changes when what an intervention does changes, for cache keys.

    Parameters
    ----------
    intervention : str or callable
        A name from `IMAGE_INTERVENTIONS` or a user's callable.

    Returns
    -------
    str or None
        For a name, the name, the ranges of its parameters, the version of this code,
        and those of Pillow and torchvision. For a callable, its attribute ``cache_key``
        together with its name, on which its random numbers depend. None where it has
        none: what it does is known by its results only.

    Raises
    ------
    TypeError
        If ``cache_key`` is no string.

    Examples
    --------
    >>> from skclip_icm.interventions import intervention_key
    >>> def turn(image):
    ...     return image.rotate(90)
    >>> intervention_key(turn) is None
    True
    >>> turn.cache_key = "turned by a right angle, version 1"
    >>> intervention_key(turn)
    'callable/turn/turned by a right angle, version 1'
    """
    [(name, _)] = _named([intervention])
    if not isinstance(intervention, str):
        key = _own_cache_key(intervention, name)
        return None if key is None else f"callable/{name}/{key}"
    import torchvision

    parameters = json.dumps([RANGES, PHOTOMETRIC])
    made_by = f"{_VERSION}/{PIL.__version__}/{torchvision.__version__}"
    description = hashlib.sha256(f"{parameters}/{made_by}".encode()).hexdigest()
    return f"name/{name}/{description[:32]}"


def parts_of(spec):
    """Return what interventions consist of: the name of each name and callable.

    Names stand for themselves, composed ones for their parts, callables for themselves.
    """
    entries = spec if isinstance(spec, list | tuple) else [spec]
    composed = {"photometric": PHOTOMETRIC, "random_choice": RANDOM_CHOICE}
    parts = {}
    for entry in entries:
        if isinstance(entry, str):
            parts |= {name: name for name in (entry, *composed.get(entry, ()))}
        else:
            parts[id(entry)] = _name(entry)
    return parts


#: The names of the interventions on images.
IMAGE_INTERVENTIONS = tuple(RECIPES)


# Names and seeds


def _named(entries):
    """Pair each entry with its name; a recipe takes the place of a name."""
    named = []
    for entry in entries:
        if isinstance(entry, str):
            if entry not in RECIPES:
                raise ValueError(_unknown_name(entry))
            named.append((entry, RECIPES[entry]))
        elif callable(entry):
            named.append((_name(entry), entry))
        else:
            raise TypeError(
                f"{entry!r} is not an intervention, expected one of "
                f"{', '.join(IMAGE_INTERVENTIONS)}, or a callable."
            )
    return named


def _name(entry):
    if isinstance(entry, str):
        return entry
    while isinstance(entry, functools.partial):
        entry = entry.func
    return getattr(entry, "__name__", None) or type(entry).__name__


def _unknown_name(name):
    close = difflib.get_close_matches(name.lower(), IMAGE_INTERVENTIONS)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return (
        f"{name!r} is not an intervention, expected one of "
        f"{', '.join(IMAGE_INTERVENTIONS)}, or a callable.{hint}"
    )


def _seed(random_state, pixels, name, draw):
    text = f"{random_state} {name} {draw} ".encode()
    return int.from_bytes(hashlib.sha256(text + pixels).digest()[:8], "little")


# User callables and tensors


def _own_cache_key(function, name):
    key = getattr(function, "cache_key", None)
    if key is not None and not isinstance(key, str):
        raise TypeError(
            f"the intervention {name!r} has the cache_key {key!r}, expected a string "
            "that you change whenever what it does changes."
        )
    # `functools.wraps` copies the attributes of another function.
    wrapped = getattr(function, "__wrapped__", None)
    return None if key is getattr(wrapped, "cache_key", None) else key


def _call(function, name, image, seed):
    try:
        output = call_reproducibly(function, image, seed)
    except Exception as exc:
        exc.add_note(f"This was raised by the intervention {name!r}.")
        raise
    try:
        return decode(read_content(output))
    except ImageError as exc:
        raise TypeError(
            f"the intervention {name!r} returned a {type(output).__name__} that is no "
            f"image ({exc}) Return a PIL image, a uint8 array (H, W, 3) or a uint8 "
            "tensor (3, H, W)."
        ) from exc


def _to_tensor(image):
    import torch

    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
