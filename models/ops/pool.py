"""The 3×3 maximum of stride 2 behind the ImageNet stem, as selections; the mean of 2×2 pixels."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

SIZE, STRIDE = 3, 2


def max_pool_3x3(x: jax.Array, padded: bool = True) -> jax.Array:
    """3×3 maximum with stride 2: `[b, h, w, c]` → `[b, ⌈h/2⌉, ⌈w/2⌉, c]` with a ring of padding.

    Without it (Caffe) the windows begin one pixel later and may reach over the lower and right
    edge: `[b, ⌊h/2⌋, ⌊w/2⌋, c]`. Of equal entries the first, row by row, gets the gradient.
    """
    # XLA's reduce_window has a gradient that takes as long as a stage of ResNet-50 on a CPU and is
    # a sum in free order on a GPU. That of selections is selections and sums in a fixed order.
    padding = [(1, 1) if padded else (0, 1 - size % 2) for size in x.shape[1:3]]
    x = lax.pad(
        x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), *((*p, 0) for p in padding), (0, 0, 0))
    )
    return _largest_of_three(_largest_of_three(x, axis=2), axis=1)


def mean_pool_2x2(x: jax.Array) -> jax.Array:
    """Means of 2×2 pixels, at an odd edge of two: `[b, h, w, c]` → `[b, ⌈h/2⌉, ⌈w/2⌉, c]`."""
    batch, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return x.reshape(batch, (height + 1) // 2, 2, (width + 1) // 2, 2, channels).mean((2, 4))


def _largest_of_three(x, axis):
    """Maximum of entries 0, 1, 2, of 2, 3, 4, … of one axis; the first of equal ones."""
    stop = STRIDE * ((x.shape[axis] - SIZE) // STRIDE) + 1
    entries = [lax.slice_in_dim(x, i, i + stop, STRIDE, axis) for i in range(SIZE)]
    # Not `b > a`: a NaN is the largest, as it is to XLA.
    return functools.reduce(lambda a, b: jnp.where((a >= b) | jnp.isnan(a), a, b), entries)
