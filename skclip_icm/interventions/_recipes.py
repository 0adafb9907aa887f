"""The named interventions: (PIL image of mode "RGB", generator) -> the same."""

from PIL import ImageFilter

#: Parameter ranges, each drawn uniformly. Brightness, contrast and saturation are
#: factors; hue is in turns; sigma in pixels of an image whose shorter side is 224,
#: scaled with that side; bits per channel are kept; a solarized pixel is inverted
#: where it reaches the threshold.
RANGES = {
    "brightness": (0.4, 1.6),
    "contrast": (0.4, 1.6),
    "saturation": (0.4, 1.6),
    "hue": (-0.5, 0.5),
    "sigma": (0.5, 2.5),
    "bits": (3, 4),
    "threshold": (64, 192),
    "hue_rotation": (1 / 6, 5 / 6),
}

#: Probability with which "photometric" applies each of its parts, in this order. If
#: none is drawn, one is picked, so that an image is hardly ever its own counterpart.
PHOTOMETRIC = {
    "color_jitter": 0.8,
    "gaussian_blur": 0.3,
    "posterize": 0.2,
    "solarize": 0.2,
}

#: What "random_choice" draws from: the interventions of the CLIP-ICM paper.
RANDOM_CHOICE = (
    "color_jitter",
    "grayscale",
    "gaussian_blur",
    "invert",
    "posterize",
    "solarize",
    "equalize",
)


def _transforms():
    from torchvision.transforms.v2 import functional

    return functional


def _uniform(rng, name):
    return float(rng.uniform(*RANGES[name]))


def _color_jitter(image, rng):
    transforms = _transforms()
    image = transforms.adjust_brightness(image, _uniform(rng, "brightness"))
    image = transforms.adjust_contrast(image, _uniform(rng, "contrast"))
    image = transforms.adjust_saturation(image, _uniform(rng, "saturation"))
    return transforms.adjust_hue(image, _uniform(rng, "hue"))


def _grayscale(image, rng):
    return _transforms().rgb_to_grayscale(image, 3)


def _gaussian_blur(image, rng):
    # Not torchvision's: its two-dimensional convolution takes two to five times as
    # long, and its threads compete with those that decode.
    sigma = _uniform(rng, "sigma") * min(image.size) / 224
    return image.filter(ImageFilter.GaussianBlur(sigma))


def _invert(image, rng):
    return _transforms().invert(image)


def _posterize(image, rng):
    low, high = RANGES["bits"]
    return _transforms().posterize(image, int(rng.integers(low, high + 1)))


def _solarize(image, rng):
    return _transforms().solarize(image, _uniform(rng, "threshold"))


def _equalize(image, rng):
    return _transforms().equalize(image)


def _photometric(image, rng):
    names = list(PHOTOMETRIC)
    chosen = [name for name in names if rng.random() < PHOTOMETRIC[name]]
    for name in chosen or [names[rng.integers(len(names))]]:
        image = RECIPES[name](image, rng)
    return image


def _random_choice(image, rng):
    return RECIPES[RANDOM_CHOICE[rng.integers(len(RANDOM_CHOICE))]](image, rng)


def _hue(image, rng):
    turn = _uniform(rng, "hue_rotation")
    return _transforms().adjust_hue(image, turn if turn <= 0.5 else turn - 1)


RECIPES = {
    "color_jitter": _color_jitter,
    "grayscale": _grayscale,
    "gaussian_blur": _gaussian_blur,
    "invert": _invert,
    "posterize": _posterize,
    "solarize": _solarize,
    "equalize": _equalize,
    "photometric": _photometric,
    "hue": _hue,
    "random_choice": _random_choice,
}
