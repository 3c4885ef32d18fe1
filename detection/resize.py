"""Bilinear resizing as torch does it by default: not antialiased, centres of pixels on one grid."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def sources(count: int, old: Any, new: Any, xp: ModuleType = np) -> tuple[Any, Any, Any]:
    """Of which two old positions each of `count` new ones is a mean, and the second's share.

    Args:
      old, new: the axis' sizes, of which the new one may be less than `count`.
      xp: NumPy, or jax.numpy when a size is known only inside a compiled program.
    """
    scale = xp.float32(old) / xp.float32(new)
    place = xp.maximum((xp.arange(count, dtype=np.float32) + 0.5) * scale - 0.5, 0)
    first = xp.minimum(place.astype(np.int32), old - 1)
    return first, xp.minimum(first + 1, old - 1), (place - first).astype(np.float32)


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """A float32 image `[h, w, …]` as `[height, width, …]`, on the host."""
    for axis, size in enumerate((height, width)):
        first, second, share = sources(size, image.shape[axis], size)
        share = share.reshape(-1, *[1] * (image.ndim - axis - 1))
        a, b = image.take(first, axis), image.take(second, axis)
        image = a * (1 - share) + b * share
    return image


def resized_batch(maps: Array, own: list[Array], shape: Sequence[int], sizes: Array) -> Array:
    """Maps of own sizes in `[batch, h, w, c]` at `sizes`, int `[batch, 2]`: `[batch, *shape, c]`.

    As products with the weights of every pair of positions: no gathers, and every size in one
    compiled program.
    """
    for axis in (1, 2):
        count, columns = shape[axis - 1], jnp.arange(maps.shape[axis])[None]

        def weights(old: Array, new: Array, count: int = count, columns: Array = columns) -> Array:
            first, second, share = (x[:, None] for x in sources(count, old, new, jnp))
            return jnp.where(columns == first, 1 - share, 0) + jnp.where(
                columns == second, share, 0
            )

        product = "bij,bjwc->biwc" if axis == 1 else "bij,bhjc->bhic"
        both = jax.vmap(weights)(own[axis - 1], sizes[:, axis - 1]), maps
        maps = jnp.einsum(product, *both, precision=jax.lax.Precision.HIGHEST)
    return maps
