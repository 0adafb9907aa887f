"""What a model's configuration says: read, and checked before a model is built."""

import json
from pathlib import Path

HUB_CONFIG = "open_clip_config.json"
_KEYS = ("embed_dim", "vision_cfg", "text_cfg")
# Of a wrong or hostile number, building alone would take all memory, or for ever.
_MOST = {"image_size": 4096, "layers": 1000}
# What open_clip knows of how to bring an image to the size of the model.
_CHOICES = {
    "interpolation": ("bicubic", "bilinear"),
    "resize_mode": ("shortest", "longest", "squash"),
}
_PREPROCESSING = ("mean", "std", *_CHOICES)


def read_config(name):
    """Return a model's architecture, or raise ValueError if its file has none."""
    import open_clip

    if not name.startswith("local-dir:"):
        return open_clip.get_model_config(name)
    path = Path(name.removeprefix("local-dir:"), HUB_CONFIG)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
        missing = [key for key in _KEYS if key not in config]
        towers = [config[key] for key in _KEYS[1:] if key not in missing]
        if missing or not all(isinstance(tower, dict) for tower in towers):
            raise KeyError(f"model_cfg without {missing}" if missing else "model_cfg")
        for tower in towers:
            _check_sizes(tower)
    except (KeyError, OSError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not the configuration of an open_clip model "
            f"({type(error).__name__}: {error}). Expected is JSON, "
            '{"model_cfg": {"embed_dim": …, "vision_cfg": {…}, "text_cfg": {…}}, '
            '"preprocess_cfg": {…}}, as beside the weights in their hub repository.'
        ) from error
    return config


def check_preprocessing(given):
    """Return pairs of key and value, or raise an error that lists what is possible."""
    possible = (
        "Possible are 'mean' and 'std', three numbers each, for red, green and blue "
        "from 0 to 1; 'interpolation', "
        f"{' or '.join(map(repr, _CHOICES['interpolation']))}; and 'resize_mode', "
        f"one of {_CHOICES['resize_mode']}."
    )
    if not isinstance(given, dict):
        raise ValueError(f"preprocessing={given!r}, expected a dict. {possible}")
    checked = {}
    for key, value in given.items():
        if key in _CHOICES:
            fits = isinstance(value, str) and value in _CHOICES[key]
        elif key in ("mean", "std"):
            try:
                value = tuple(float(number) for number in value)
            except (TypeError, ValueError):
                value = ()
            least = 0 if key == "mean" else 1e-6
            fits = len(value) == 3 and all(least <= number <= 1 for number in value)
        else:
            raise ValueError(f"preprocessing has the unknown key {key!r}. {possible}")
        if not fits:
            raise ValueError(f"preprocessing[{key!r}] is {given[key]!r}. {possible}")
        checked[key] = value
    return tuple(sorted(checked.items()))


def check_own_preprocessing(preprocess, name):
    """Raise ValueError if weights say of their preprocessing what cannot be."""
    from open_clip.transform import PreprocessCfg

    try:
        check_preprocessing({key: preprocess[key] for key in _PREPROCESSING})
        PreprocessCfg(**preprocess)
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(
            f"What the weights of {name} say of preprocessing cannot be: "
            f"{error or preprocess} CLIPFeaturizer(preprocessing=...) takes its place."
        ) from error


def _check_sizes(tower):
    for key, most in _MOST.items():
        value = tower.get(key)
        for size in value if isinstance(value, list) else [value]:
            if isinstance(size, int) and not 0 <= size <= most:
                raise ValueError(f"{key} is {value!r}, expected at most {most}")
