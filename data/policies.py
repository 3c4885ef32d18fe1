"""TrivialAugment and RandAugment: random operations on one uint8 image, on the host.

The operations are Pillow's, as in the recipes that were published with them. What is drawn comes
from the generator that is handed in, hence from the seed and the image's position in the run.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

WIDE_LEVELS = 31  # strengths of TrivialAugment's wide space
RAND_OPERATIONS = 2  # drawn by RandAugment for each image
RAND_PROBABILITY = 0.5  # of applying each of them
RAND_DEVIATION = 0.5  # of the magnitude, of 10
SOLARIZE_ADD_BELOW = 128

# (image, strength in [0, 1], sign −1 or 1) → image
Operation = Callable[[Image.Image, float, int], Image.Image]


class Border(NamedTuple):
    """How geometric operations interpolate, and the colour outside the image."""

    resample: Image.Resampling
    fill: tuple[int, int, int]


NEAREST_BLACK = Border(Image.Resampling.NEAREST, (0, 0, 0))
BICUBIC_MEAN = Border(Image.Resampling.BICUBIC, (124, 116, 104))  # ImageNet's mean colour


def apply(
    policy: str, image: np.ndarray, generator: np.random.Generator, magnitude: float
) -> np.ndarray:
    """A randomly changed copy of an image.

    Args:
      policy: 'trivial_augment' (Müller & Hutter 2021, the wide space: one operation of a random
        strength) or 'rand_augment' (Cubuk et al. 2020: two operations, each applied with
        probability 1/2, as timm's `rand-m6-mstd0.5-inc1`, where a larger magnitude always means a
        stronger change).
      image: uint8 [height, width, 3].
      generator: source of the randomness.
      magnitude: of RandAugment, in [0, 10]; its deviation is 0.5.

    Returns:
      uint8 of the same shape.
    """
    changed = Image.fromarray(image)
    if policy == "trivial_augment":
        level = int(generator.integers(WIDE_LEVELS))
        changed = _drawn(WIDE, generator)(changed, level / (WIDE_LEVELS - 1), _sign(generator))
        return np.asarray(changed)
    for _ in range(RAND_OPERATIONS):
        operation = _drawn(INCREASING, generator)
        strength = np.clip(generator.normal(magnitude, RAND_DEVIATION), 0, 10) / 10
        sign, applies = _sign(generator), generator.random() < RAND_PROBABILITY
        changed = operation(changed, float(strength), sign) if applies else changed
    return np.asarray(changed)


def _drawn(table, generator):
    return list(table.values())[generator.integers(len(table))]


def _sign(generator):
    return 1 if generator.random() < 0.5 else -1


def _shear_x(scale, border):
    return lambda image, m, sign: _affine(image, (1, sign * scale * m, 0, 0, 1, 0), border)


def _shear_y(scale, border):
    return lambda image, m, sign: _affine(image, (1, 0, 0, sign * scale * m, 1, 0), border)


def _affine(image, coefficients, border):
    """(x, y) of the result shows (a·x + b·y + c, d·x + e·y + f) of the image."""
    method = Image.Transform.AFFINE
    return image.transform(image.size, method, coefficients, border.resample, fillcolor=border.fill)


def _rotate(degrees, border):
    return lambda image, m, sign: image.rotate(
        sign * degrees * m, border.resample, fillcolor=border.fill
    )


def _enhanced(kind, scale):
    return lambda image, m, sign: kind(image).enhance(1 + sign * scale * m)


def _solarize_add(image, m, sign):
    added = int(110 * m)
    table = [min(255, i + added) if i < SOLARIZE_ADD_BELOW else i for i in range(256)]
    return image.point(table * 3)


WIDE: dict[str, Operation] = {
    "identity": lambda image, m, sign: image,
    "shear_x": _shear_x(0.99, NEAREST_BLACK),
    "shear_y": _shear_y(0.99, NEAREST_BLACK),
    "translate_x": lambda image, m, sign: _affine(
        image, (1, 0, -int(sign * 32 * m), 0, 1, 0), NEAREST_BLACK
    ),
    "translate_y": lambda image, m, sign: _affine(
        image, (1, 0, 0, 0, 1, -int(sign * 32 * m)), NEAREST_BLACK
    ),
    "rotate": _rotate(135, NEAREST_BLACK),
    "brightness": _enhanced(ImageEnhance.Brightness, 0.99),
    "colour": _enhanced(ImageEnhance.Color, 0.99),
    "contrast": _enhanced(ImageEnhance.Contrast, 0.99),
    "sharpness": _enhanced(ImageEnhance.Sharpness, 0.99),
    "posterize": lambda image, m, sign: ImageOps.posterize(image, 8 - round(6 * m)),
    "solarize": lambda image, m, sign: ImageOps.solarize(image, math.ceil(255 * (1 - m))),
    "autocontrast": lambda image, m, sign: ImageOps.autocontrast(image),
    "equalize": lambda image, m, sign: ImageOps.equalize(image),
}
INCREASING: dict[str, Operation] = {
    "autocontrast": WIDE["autocontrast"],
    "equalize": WIDE["equalize"],
    "invert": lambda image, m, sign: ImageOps.invert(image),
    "rotate": _rotate(30, BICUBIC_MEAN),
    "posterize": lambda image, m, sign: ImageOps.posterize(image, max(1, 4 - int(4 * m))),
    "solarize": lambda image, m, sign: ImageOps.solarize(image, 256 - int(256 * m)),
    "solarize_add": _solarize_add,
    "colour": _enhanced(ImageEnhance.Color, 0.9),
    "contrast": _enhanced(ImageEnhance.Contrast, 0.9),
    "brightness": _enhanced(ImageEnhance.Brightness, 0.9),
    "sharpness": _enhanced(ImageEnhance.Sharpness, 0.9),
    "shear_x": _shear_x(0.3, BICUBIC_MEAN),
    "shear_y": _shear_y(0.3, BICUBIC_MEAN),
    "translate_x": lambda image, m, sign: _affine(
        image, (1, 0, sign * 0.45 * m * image.width, 0, 1, 0), BICUBIC_MEAN
    ),
    "translate_y": lambda image, m, sign: _affine(
        image, (1, 0, 0, 0, 1, sign * 0.45 * m * image.height), BICUBIC_MEAN
    ),
}
