"""Device transforms: augmentation of whole batches inside the compiled step.

Every random transform takes `keys`, one JAX key per example (`data.keys.example_keys`). What
happens to an example depends on its key alone — hence on the seed, the step and its global
position — and never on how the batch is sharded. Each transform folds its own purpose into the
keys, so that one array of keys serves all of them without correlating, say, the flip with the
colour.

Order of use: `random_resized_crop`, `pca_noise` (pixel values) → `data.normalization.normalize` →
`pad_crop_flip` → `data.mixup.random_erasing` → `data.mixup.mix` (normalised values).
"""

import jax
import jax.numpy as jnp
import numpy as np

from data.keys import Augmentation, keys_for
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


def pad_crop_flip(keys: jax.Array, images: jax.Array, *, pad: int, flip: bool) -> jax.Array:
    """Pads, crops at random to the original size, mirrors half of the images (section 4.2).

    Apply it after `normalize`: the paper subtracts the per-pixel mean first and pads what is left,
    so that the border is 0, which is the mean, and a moved pixel keeps the mean of its place.
    Written as one gather with clipped indices: no padded copy of the batch exists.

    Args:
      keys: one key per example, [batch].
      images: [batch, height, width, channels], normalised, any dtype.
      pad: zeros added on each side, ≥ 0.
      flip: whether to mirror left-right with probability 1/2.
    Returns:
      Images of the same shape and dtype.
    """
    batch, height, width, _ = images.shape

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        crop_key, flip_key = jax.random.split(key)
        offset = jax.random.randint(crop_key, (2,), -pad, pad + 1)
        return offset, jax.random.bernoulli(flip_key)

    offsets, mirrored = jax.vmap(draw)(keys_for(keys, Augmentation.CROP_FLIP))
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
    return jnp.where(inside, cropped, jnp.zeros((), images.dtype))


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
    """
    longest = 1.0 if area[1] <= 1 else np.inf

    def crop(key: jax.Array, image: jax.Array) -> jax.Array:
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

    return jax.vmap(crop)(keys_for(keys, Augmentation.CROP_FLIP), images)


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
    alphas = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys_for(keys, Augmentation.COLOUR))
    # A sum, not a matmul: accelerators may run float32 matmuls in lower precision.
    scaled = alphas * (255 * std * jnp.asarray(PCA_EIGENVALUES))[None, :]
    shifts = (scaled[:, None, :] * jnp.asarray(PCA_EIGENVECTORS)[None]).sum(axis=-1)
    return images.astype(jnp.float32) + shifts[:, None, None, :]
