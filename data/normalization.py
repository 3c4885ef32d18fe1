"""Normalisation of images: the constants of a run, and applying them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from errors import UserError


class Normalization(NamedTuple):
    """`(pixel - mean) / std`, both in pixel values [0, 255], broadcastable to [height, width, c].

    A per-pixel mean (the paper's, section 3.4) has the shape of an image; a per-channel mean has
    shape [c] and fits every image size. This class owns the constants of a run: they are saved
    with the checkpoint as `to_dict()`.
    """

    mean: np.ndarray
    std: np.ndarray

    def to_dict(self) -> dict:
        """Nested lists of floats, for JSON; `from_dict` is the exact inverse."""
        return {"mean": np.asarray(self.mean).tolist(), "std": np.asarray(self.std).tolist()}

    @classmethod
    def from_dict(cls, constants: dict) -> "Normalization":
        """The inverse of `to_dict`."""
        return cls(
            np.asarray(constants["mean"], np.float32), np.asarray(constants["std"], np.float32)
        )

    @classmethod
    def from_images(cls, images: np.ndarray, *, per_pixel: bool) -> "Normalization":
        """Statistics of uint8 images [number, height, width, c], summed exactly.

        The mean is per pixel ([height, width, c]) or per channel ([c]); the standard deviation is
        per channel, taken around the per-channel mean, and 1 for a constant channel.
        """
        number, height, width, channels = images.shape
        if number == 0:
            raise UserError("normalisation needs at least one image; the training split is empty")
        sums = images.sum(axis=0, dtype=np.int64)
        squares = np.zeros(channels, np.int64)
        for start in range(0, number, 1024):  # int64 squares of a whole set would take gigabytes
            chunk = images[start : start + 1024].astype(np.int32)
            squares += np.square(chunk).sum(axis=(0, 1, 2), dtype=np.int64)
        pixels = number * height * width
        mean = sums.sum(axis=(0, 1)) / pixels
        std = np.sqrt(np.maximum(squares / pixels - mean**2, 0))
        std[std == 0] = 1
        chosen = sums / number if per_pixel else mean
        return cls(chosen.astype(np.float32), std.astype(np.float32))


# ImageNet's channel statistics, by the names that `config.data.normalization` has for them.
CONSTANTS = {
    # What torchvision's and timm's weights were trained with: 255 × (.485, .456, .406) and
    # 255 × (.229, .224, .225).
    "imagenet": Normalization(
        mean=np.array([123.675, 116.28, 103.53], np.float32),
        std=np.array([58.395, 57.12, 57.375], np.float32),
    ),
    # What the authors' Caffe weights and Keras' copies of them were trained with: RGB, undivided.
    "caffe": Normalization(
        mean=np.array([123.68, 116.779, 103.939], np.float32), std=np.ones(3, np.float32)
    ),
}


def by_name(name: str, images: Callable[[], np.ndarray]) -> Normalization:
    """What `config.data.normalization` names.

    Args:
      name: one of `CONSTANTS`, or 'per_pixel' or 'per_channel' for the statistics of `images`.
      images: gives uint8 training images `[number, height, width, channels]`, if need be.
    """
    if name in CONSTANTS:
        return CONSTANTS[name]
    return Normalization.from_images(images(), per_pixel=name == "per_pixel")


def normalize(
    images: jax.typing.ArrayLike, mean: jax.typing.ArrayLike, std: jax.typing.ArrayLike
) -> jax.Array:
    """`(images - mean) / std`, float32.

    Args:
      images: [batch, height, width, channels], pixel values [0, 255], uint8 or float.
      mean, std: [channels] or [height, width, channels], in pixel values (`Normalization`).
    Raises:
      UserError: when the constants do not fit the images (a per-pixel mean of another size).
    """
    images, mean, std = (jnp.asarray(a, jnp.float32) for a in (images, mean, std))
    image_shape = images.shape[1:]
    for name, constant in (("mean", mean), ("std", std)):
        if constant.shape not in (image_shape, image_shape[-1:]):
            raise UserError(
                f"normalisation: {name} of shape {constant.shape} does not fit images of shape "
                f"{image_shape}; use a per-channel mean for images of another size"
            )
    mean, std = (c.reshape((1,) * (images.ndim - c.ndim) + c.shape) for c in (mean, std))
    return (images - mean) / std
