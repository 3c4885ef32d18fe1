"""The 3×3 maximum of stride 2 behind the ImageNet stem, as selections; the mean of 2×2 pixels.

And the maximum of bins that the data chooses.
"""

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


@jax.custom_vjp
def largest_in_bins(x: jax.Array, first: jax.Array, behind: jax.Array) -> jax.Array:
    """The largest number in each bin along an axis, as the regions have bins.

    Of equal ones the first gets the gradient. It is added by products with one-hot weights, where
    that of a gather would be a scatter.

    Args:
      x: `[rows, length, channels]`, the same for all regions, or `[n, rows, length, channels]`.
      first, behind: int `[n, bins]`, where a bin begins and the place behind its last; from 0 to
        the length.

    Returns:
      `[n, rows, bins, channels]`; the type's least number where a bin has no place.
    """
    return _with_places(x, first, behind)[0]


def _with_places(x, first, behind):
    """And how far from its bin's beginning each is found; -1 where there is none."""
    taken = jax.vmap(lambda x, at: x.take(at, 1, mode="clip"), (None if x.ndim == 3 else 0, 0))

    def look(i, found):
        value = taken(x, first + i)
        better = (first + i < behind)[:, None, :, None] & (value > found[0])
        return jnp.where(better, value, found[0]), jnp.where(better, i, found[1])

    shape = (len(first), x.shape[-3], first.shape[1], x.shape[-1])
    nothing = jnp.full(shape, jnp.finfo(x.dtype).min, x.dtype), jnp.full(shape, -1, jnp.int32)
    return lax.fori_loop(0, (behind - first).max(initial=0), look, nothing)


def _kept_places(x, first, behind):
    largest, places = _with_places(x, first, behind)
    return largest, (x, first, behind, places)


def _to_places(kept, gradient):
    x, first, behind, places = kept  # of x only its shape
    to = "rlc" if x.ndim == 3 else "nrlc"

    def add(i, total):
        weights = jax.nn.one_hot(first + i, x.shape[-2], dtype=gradient.dtype)
        part = jnp.where(places == i, gradient, 0), weights
        return total + jnp.einsum(f"nrbc,nbl->{to}", *part, precision=lax.Precision.HIGHEST)

    count = (behind - first).max(initial=0)
    return lax.fori_loop(0, count, add, jnp.zeros_like(x)), None, None


largest_in_bins.defvjp(_kept_places, _to_places)
