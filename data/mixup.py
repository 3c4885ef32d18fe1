"""Device transforms of the modern recipes: mixup, CutMix and random erasing of whole batches.

Keys as in `data.device_transforms`: one per example.
"""

import jax
import jax.numpy as jnp
import numpy as np

from data.keys import Augmentation, keys_for

# Random erasing's boxes: share of the image, and height / width.
ERASE_ATTEMPTS = 10
ERASE_AREA = (0.02, 1 / 3)
ERASE_ASPECT = (0.3, 3.3)


def _cut_box(key: jax.Array, height: int, width: int, fraction: jax.Array) -> jax.Array:
    """Boolean [height, width]: a box of about `fraction` of the area, clipped to the image."""
    centre = jax.random.uniform(key, (2,))
    shape = jnp.array([height, width], jnp.float32)
    half = 0.5 * jnp.sqrt(fraction) * shape
    start = jnp.round(jnp.clip(centre * shape - half, 0, shape))
    stop = jnp.round(jnp.clip(centre * shape + half, 0, shape))
    return _box_mask(height, width, start, stop)


def _box_mask(height: int, width: int, start: jax.Array, stop: jax.Array) -> jax.Array:
    rows, columns = jnp.arange(height), jnp.arange(width)
    in_rows = (rows >= start[0]) & (rows < stop[0])
    in_columns = (columns >= start[1]) & (columns < stop[1])
    return in_rows[:, None] & in_columns[None, :]


def mix(
    keys: jax.Array,
    images: jax.Array,
    targets: jax.Array,
    valid: jax.Array,
    *,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019); with both on, each image takes one.

    Examples 2i and 2i+1 are partners, so that the result is the same on every sharding into even
    parts (positions in a shuffled batch are random, so the partner is as well). Each example has a
    lambda of its own. CutMix weighs the labels by the area really pasted. An example whose partner
    is not valid stays as it is.

    Args:
      keys: one key per example, [batch].
      images: float [batch, height, width, channels], batch even (mixing is linear: before or
        after `normalize` is the same).
      targets: soft labels [batch, classes], for example one-hot or smoothed.
      valid: bool [batch].
      mixup, cutmix: the alpha of Beta(alpha, alpha) of each; 0 turns it off.
    Returns:
      (images, targets), same shapes; each row of the targets keeps its sum.
    """
    if mixup == 0 and cutmix == 0:
        return images, targets
    batch, height, width, _ = images.shape
    choose_cutmix = 0.5 if mixup and cutmix else float(cutmix > 0)

    def draw(key: jax.Array, has_partner: jax.Array) -> tuple[jax.Array, jax.Array]:
        lambda_key, box_key, choice_key = jax.random.split(key, 3)
        use_cutmix = jax.random.uniform(choice_key) < choose_cutmix
        alpha = jnp.where(use_cutmix, cutmix, mixup)
        keep = jax.random.beta(lambda_key, alpha, alpha)
        pasted = _cut_box(box_key, height, width, 1 - keep)
        weights = jnp.where(use_cutmix, 1 - pasted.astype(jnp.float32), keep)
        weights = jnp.where(has_partner, weights, 1.0)
        return weights, jnp.mean(weights)

    def partner(values: jax.Array) -> jax.Array:
        return values.reshape(batch // 2, 2, *values.shape[1:])[:, ::-1].reshape(values.shape)

    weights, kept = jax.vmap(draw)(keys_for(keys, Augmentation.MIX), partner(valid))
    weights = weights[..., None].astype(images.dtype)
    images = weights * images + (1 - weights) * partner(images)
    kept = kept[:, None].astype(targets.dtype)
    return images, kept * targets + (1 - kept) * partner(targets)


def random_erasing(keys: jax.Array, images: jax.Array, *, probability: float) -> jax.Array:
    """Random erasing (Zhong et al. 2020): a random box of some images is set to 0.

    Apply it after `normalize`, where 0 is the mean. Of ten drawn boxes the first that fits is
    taken; when none fits, the image stays as it is. Aspects are drawn on a logarithmic scale.

    Args:
      keys: one key per example, [batch].
      images: float [batch, height, width, channels], normalised.
      probability: of erasing a box of an image, in [0, 1].
    Returns:
      Images of the same shape and dtype.
    """
    _, height, width, _ = images.shape

    def draw(key: jax.Array) -> jax.Array:
        apply_key, area_key, aspect_key, place_key = jax.random.split(key, 4)
        attempts = (ERASE_ATTEMPTS,)
        share = jax.random.uniform(area_key, attempts, jnp.float32, *ERASE_AREA)
        log_aspect = jax.random.uniform(aspect_key, attempts, jnp.float32, *np.log(ERASE_ASPECT))
        size = jnp.sqrt(share * height * width)
        heights = jnp.round(size * jnp.exp(log_aspect / 2))
        widths = jnp.round(size * jnp.exp(-log_aspect / 2))
        fits = (heights >= 1) & (heights <= height) & (widths >= 1) & (widths <= width)
        first = jnp.argmax(fits)
        box = jnp.stack([heights[first], widths[first]])
        room = jnp.array([height, width], jnp.float32) - box + 1
        start = jnp.floor(jax.random.uniform(place_key, (2,)) * room)
        erase = fits.any() & (jax.random.uniform(apply_key) < probability)
        return erase & _box_mask(height, width, start, start + box)

    erased = jax.vmap(draw)(keys_for(keys, Augmentation.ERASE))
    return jnp.where(erased[..., None], jnp.zeros((), images.dtype), images)
