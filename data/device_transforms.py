"""Device transforms: augmentation and normalisation of whole batches inside the compiled step.

Every random transform takes `keys`, one JAX key per example (`example_keys`). What happens to an
example depends on its key alone — hence on the seed, the step and its global position — and never
on how the batch is sharded. Each transform folds its own purpose into the keys, so that one array
of keys serves all of them without correlating, say, the flip with the colour.

Order of use: `pad_crop_flip` (uint8) → `pca_noise` (pixel values) → `normalize` → `random_erasing`
→ `mix` (float).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from errors import UserError

# Eigenvalues and eigenvectors (columns) of the covariance of ImageNet's RGB values in [0, 1], as
# Krizhevsky et al. (NIPS 2012, section 4.1) use them; the paper applies "the standard color
# augmentation in [21]" (section 3.4).
PCA_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045], np.float32)
PCA_EIGENVECTORS = np.array(
    [
        [-0.5675, 0.7192, 0.4009],
        [-0.5808, -0.0045, -0.8140],
        [-0.5836, -0.6948, 0.4203],
    ],
    np.float32,
)

# Purposes folded into the keys; changing a number changes every run.
CROP_FLIP, PCA, MIX, ERASE = range(4)


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


def example_keys(key: jax.Array, positions: jax.Array) -> jax.Array:
    """One key per example: `key` (seed and step already folded in) with the global position.

    Args:
      key: one typed or raw JAX key.
      positions: int [batch], the examples' positions in the global batch.
    Returns:
      Keys [batch].
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, positions)


def for_purpose(keys: jax.Array, purpose: int) -> jax.Array:
    """Keys [batch] of one purpose, from the examples' keys."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, purpose)


def _per_example(values: jax.Array) -> jax.Array:
    """[batch] → [batch, 1, 1, 1]."""
    return values.reshape(values.shape[0], 1, 1, 1)


def pad_crop_flip(
    keys: jax.Array, images: jax.Array, *, pad: int, flip: bool, fill: int = 0
) -> jax.Array:
    """Pads, crops at random to the original size, mirrors half of the images (section 4.2).

    Written as one gather with clipped indices: no padded copy of the batch exists.

    Args:
      keys: one key per example, [batch].
      images: [batch, height, width, channels], any dtype.
      pad: pixels added on each side, ≥ 0.
      flip: whether to mirror left-right with probability 1/2.
      fill: value of the padding, in pixel values.
    Returns:
      Images of the same shape and dtype.
    """
    batch, height, width, _ = images.shape

    def draw(key):
        crop_key, flip_key = jax.random.split(key)
        offset = jax.random.randint(crop_key, (2,), -pad, pad + 1)
        return offset, jax.random.bernoulli(flip_key)

    offsets, mirrored = jax.vmap(draw)(for_purpose(keys, CROP_FLIP))
    rows = jnp.arange(height)[None, :] + offsets[:, :1]
    columns = jnp.arange(width)[None, :] + offsets[:, 1:]
    if flip:
        columns = jnp.where(mirrored[:, None], columns[:, ::-1], columns)
    cropped = images[
        jnp.arange(batch)[:, None, None],
        jnp.clip(rows, 0, height - 1)[:, :, None],
        jnp.clip(columns, 0, width - 1)[:, None, :],
    ]
    inside_rows = (rows >= 0) & (rows < height)
    inside_columns = (columns >= 0) & (columns < width)
    inside = inside_rows[:, :, None, None] & inside_columns[:, None, :, None]
    return jnp.where(inside, cropped, jnp.asarray(fill, images.dtype))


def random_resized_crop(
    keys: jax.Array,
    images: jax.Array,
    *,
    area: tuple[float, float],
    aspect: tuple[float, float],
    flip: bool,
) -> jax.Array:
    """A random box of each image, resized to the whole (Szegedy et al. 2015), for resident images.

    Args:
      keys: one key per example, [batch].
      images: [batch, height, width, channels], pixel values [0, 255].
      area: range of the box's area in units of the image's, above 0. Boxes of more than 1 reach
        beyond the image, where it is black: the image shrinks.
      aspect: range of the box's width / height in units of the image's, drawn on a logarithmic
        scale; while areas are at most 1, a side that would exceed the image is cut.
      flip: whether to mirror left-right with probability 1/2.
    Returns:
      float32 pixel values of the same shape, bilinear and antialiased.
    Raises:
      UserError: ranges that cannot work.
    """
    if not (0 < area[0] <= area[1] and 0 < aspect[0] <= aspect[1]):
        raise UserError(
            f"augment.area={tuple(area)}, augment.aspect={tuple(aspect)}: expected increasing "
            "ranges above 0"
        )
    longest = 1.0 if area[1] <= 1 else np.inf

    def crop(key, image):
        area_key, aspect_key, place_key, flip_key = jax.random.split(key, 4)
        share = jax.random.uniform(area_key, minval=area[0], maxval=area[1])
        log_aspect = jax.random.uniform(
            aspect_key, minval=np.log(aspect[0]), maxval=np.log(aspect[1])
        )
        sides = jnp.sqrt(share * jnp.exp(log_aspect * jnp.array([-1.0, 1.0])))
        scale = 1 / jnp.minimum(sides, longest)
        offset = jax.random.uniform(place_key, (2,)) * (1 - 1 / scale)
        shape = jnp.array(image.shape[:2], jnp.float32)
        resized = jax.image.scale_and_translate(
            image.astype(jnp.float32), image.shape, (0, 1), scale, -offset * shape * scale, "linear"
        )
        mirrored = flip & jax.random.bernoulli(flip_key)
        return jnp.where(mirrored, resized[:, ::-1], resized)

    return jax.vmap(crop)(for_purpose(keys, CROP_FLIP), images)


def normalize(images: jax.Array, mean, std, dtype=jnp.float32) -> jax.Array:
    """`(images - mean) / std`, computed in float32, returned in `dtype`.

    Args:
      images: [batch, height, width, channels], pixel values [0, 255], uint8 or float.
      mean, std: broadcastable to [height, width, channels], in pixel values (`Normalization`).
      dtype: of the result.
    Raises:
      UserError: when the constants do not fit the images (a per-pixel mean of another size).
    """
    mean, std = (jnp.asarray(constant, jnp.float32) for constant in (mean, std))
    for name, constant in (("mean", mean), ("std", std)):
        trailing = images.shape[images.ndim - constant.ndim :] if constant.ndim <= 3 else ()
        fits = constant.ndim <= 3 and all(
            size in (1, expected) for size, expected in zip(constant.shape, trailing, strict=True)
        )
        if not fits:
            raise UserError(
                f"normalisation: {name} of shape {constant.shape} does not fit images of shape "
                f"{tuple(images.shape[1:])}; use a per-channel mean for images of another size"
            )
    mean, std = (c.reshape((1,) * (images.ndim - c.ndim) + c.shape) for c in (mean, std))
    return ((images.astype(jnp.float32) - mean) / std).astype(dtype)


def pca_noise(keys: jax.Array, images: jax.Array, *, std: float = 0.1) -> jax.Array:
    """AlexNet's colour augmentation: one random shift along the principal axes per image.

    Adds `eigenvectors @ (alpha * eigenvalues)` with alpha ~ N(0, std²) to every pixel, in units of
    [0, 1]; nothing is clipped, so apply it to pixel values right before `normalize`.

    Args:
      keys: one key per example, [batch].
      images: RGB [batch, height, width, 3], pixel values [0, 255], uint8 or float.
      std: standard deviation of alpha; 0.1 in the paper.
    Returns:
      float32 images of the same shape, pixel values.
    """
    if images.shape[-1] != 3:
        raise UserError(
            f"pca_noise is defined for 3 colour channels, not for {images.shape[-1]}; "
            "set config.augment.pca_noise = 0"
        )
    alphas = jax.vmap(lambda key: jax.random.normal(key, (3,)))(for_purpose(keys, PCA))
    # A sum, not a matmul: accelerators may run float32 matmuls in lower precision.
    scaled = alphas * (255 * std * jnp.asarray(PCA_EIGENVALUES))[None, :]
    shifts = (scaled[:, None, :] * jnp.asarray(PCA_EIGENVECTORS)[None]).sum(axis=-1)
    return images.astype(jnp.float32) + shifts[:, None, None, :]
