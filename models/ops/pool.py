"""The 3×3 maximum of stride 2 behind the ImageNet stem; its gradient is written per platform.

GPU and TPU get XLA's own operator and its gradient. XLA:CPU expands that gradient into arrays of
indices, which takes as long as a stage of ResNet-50 does; there it is written as nine selections
(`benchmarks/step_time.md`), with the same numbers: of equal entries the first gets it all.
"""

import operator
from functools import partial, reduce

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

SIZE, STRIDE = 3, 2
TAPS = [(i, j) for i in range(SIZE) for j in range(SIZE)]


def max_pool_3x3(x, padded=True):
    """3×3 maximum with stride 2: `[b, h, w, c]` → `[b, ⌈h/2⌉, ⌈w/2⌉, c]` with a ring of padding.

    Without it (Caffe) the windows begin one pixel later and may reach over the lower and right
    edge: `[b, ⌊h/2⌋, ⌊w/2⌋, c]`. Reverse-mode gradients only, as `models.ops.conv.conv`.
    """
    padding = [(1, 1) if padded else (0, 1 - size % 2) for size in x.shape[1:3]]
    return _max_pool(x, tuple(padding))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool(x, padding):
    return nn.max_pool(x, (SIZE, SIZE), (STRIDE, STRIDE), padding)


def _max_pool_forward(x, padding):
    return _max_pool(x, padding), x


def _max_pool_backward(padding, x, dy):
    return (
        lax.platform_dependent(
            x,
            dy,
            cpu=partial(_backward_cpu, padding=padding),
            default=partial(_xla_backward, padding=padding),
        ),
    )


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _xla_backward(x, dy, padding):
    return jax.vjp(lambda x: nn.max_pool(x, (SIZE, SIZE), (STRIDE, STRIDE), padding), x)[1](dy)[0]


def _backward_cpu(x, dy, padding):
    winner = _winner(x, padding, dy.shape)
    zero = jnp.zeros((), dy.dtype)

    def spread(tap):
        """dy where this tap of the window won, on the grid of x."""
        part = jnp.where(winner == TAPS.index(tap), dy, zero)
        edges = [
            (start - low, low + size - start - _reach(out), STRIDE - 1)
            for start, (low, _), size, out in zip(
                tap, padding, x.shape[1:3], dy.shape[1:3], strict=True
            )
        ]
        return lax.pad(part, zero, ((0, 0, 0), *edges, (0, 0, 0)))

    return reduce(operator.add, map(spread, TAPS))


def _reach(out):
    """Entries from the first to the last that one tap sees in `out` windows."""
    return STRIDE * (out - 1) + 1


def _winner(x, padding, output_shape):
    """Which of `TAPS` holds the maximum of each window, the first of equal ones: uint8."""
    batch, height, width, channels = output_shape
    lowest = jnp.array(-jnp.inf, x.dtype)
    x = lax.pad(x, lowest, ((0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)))

    def seen(i, j):
        stop = (batch, i + _reach(height), j + _reach(width), channels)
        return lax.slice(x, (0, i, j, 0), stop, (1, STRIDE, STRIDE, 1))

    largest, winner = seen(*TAPS[0]), jnp.zeros(output_shape, jnp.uint8)
    for number, tap in enumerate(TAPS[1:], start=1):
        entry = seen(*tap)
        larger = entry > largest
        largest = jnp.where(larger, entry, largest)
        winner = jnp.where(larger, jnp.uint8(number), winner)
    return winner
