"""Anchors: boxes of a few sizes and forms around every position of a feature map.

The same numbers in the same order as torchvision's `AnchorGenerator`, which rounds the boxes of a
position to whole pixels and puts their centre on the upper left corner of the position's first
pixel.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

RATIOS = (0.5, 1.0, 2.0)  # height / width
FPN_SIZES = (32, 64, 128, 256, 512)  # of the levels 2 to 6 (Lin et al. 2017, section 4.1)
C4_SIZES = (128, 256, 512)  # all at stride 16 (Ren et al. 2015, section 3.1.1)


def base(sizes: Sequence[float], ratios: Sequence[float] = RATIOS) -> np.ndarray:
    """The anchors of the position 0, 0: `[ratios · sizes, 4]`, of a ratio all sizes together.

    Args:
      sizes: square roots of the areas, in pixels.
      ratios: height / width.
    """
    high = np.sqrt(np.asarray(ratios, np.float32))[:, None]
    sides = np.stack([1 / high, high], -1) * np.asarray(sizes, np.float32)[None, :, None]
    half = sides.reshape(-1, 2) / 2
    return np.concatenate([-half, half], 1).round()


def grid(
    map_shape: tuple[int, int], stride_yx: tuple[int, int], base: np.ndarray | jax.Array
) -> jax.Array:
    """The anchors of all positions of a feature map.

    Args:
      map_shape: the map's height and width.
      stride_yx: pixels from one position to the next. torchvision takes ⌊image / map⌋ of the padded
        batch, which for odd sizes is less than the network's stride.
      base: `[a, 4]`, of `base`.

    Returns:
      `[height · width · a, 4]`: row by row, the anchors of a position together.
    """
    y, x = (jnp.arange(n, dtype=jnp.float32) * s for n, s in zip(map_shape, stride_yx, strict=True))
    y, x = jnp.meshgrid(y, x, indexing="ij")
    shifts = jnp.stack([x, y, x, y], -1).reshape(-1, 1, 4)
    return (shifts + jnp.asarray(base, jnp.float32)[None]).reshape(-1, 4)
