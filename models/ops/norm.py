"""Batch normalisation: one factor and one summand per channel, so that only the input is kept.

The derivative of Flax's `BatchNorm` keeps the centred input as an array of its own. Here it is
JAX's own too, of a sum in another order: its parts are the input, the output of a convolution that
exists anyway, and numbers per channel.
"""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import ad

from models.ops.primitive import primitive

BN_EPSILON = 1e-5  # Caffe's and torch's default; weights move between frameworks with it.
BN_MOMENTUM = 0.9  # running ← 0.9·running + 0.1·batch, torch's momentum of 0.1.


class BatchNorm(nn.BatchNorm):
    """Flax's `BatchNorm` over all axes but the last: same parameters, statistics and numbers.

    Attributes:
      sync: statistics over all devices of the surrounding `shard_map`; without one, of x.
      group_size: statistics over groups of that many images that follow each other, the running
        averages over the groups' mean; 0, or as many as x has or more: over all of x.
    """

    sync: bool = False
    group_size: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        """Normalises `[batch, height, width, channels]`; statistics are float32."""
        shape = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale = self.param("scale", self.scale_init, shape, jnp.float32)
        bias = self.param("bias", self.bias_init, shape, jnp.float32)

        if self.use_running_average:
            return self._normalized(x, mean.value, var.value, scale, bias)
        grouped = 0 < self.group_size < x.shape[0]
        groups = x.reshape(-1, self.group_size, *x.shape[1:]) if grouped else x
        used = _statistics(groups, self.sync)
        y = self._normalized(
            groups, *used, *(jnp.broadcast_to(p, used[0].shape) for p in (scale, bias))
        )
        if not self.is_initializing():
            for average, new in zip((mean, var), used, strict=True):
                new = new.mean(0) if grouped else new
                average.value = self.momentum * average.value + (1 - self.momentum) * new
        return y.reshape(x.shape) if grouped else y

    def _normalized(self, x, mean, var, scale, bias):
        factor = lax.rsqrt(var + self.epsilon) * scale
        return _affine(x, factor, bias - mean * factor, self.dtype or x.dtype)


# Recomputed in the backward pass, where that costs nothing, so that the stacks of a loop keep x
# itself instead of its square or a float32 copy of it.
@partial(jax.checkpoint, prevent_cse=False)
def _moments(x):
    """Means of x and of x², `[…, batch, height, width, channels]`, float32: `[2, …, channels]`."""
    x = x.astype(jnp.float32)
    n = math.prod(x.shape[-4:-1])
    return jnp.stack([_sum_p.bind(x) / n, _sum_p.bind(jnp.square(x)) / n])


@partial(jax.checkpoint, prevent_cse=False, static_argnums=3)
def _affine(x, factor, summand, dtype):
    factor, summand = (_spread_p.bind(a, positions=x.shape[-4:-1]) for a in (factor, summand))
    return (x * factor + summand).astype(dtype)


# Each the transpose of the other, so that the derivatives are such sums, too.


def _sum(x):
    """Over images and positions: `[…, batch, height, width, channels]` to `[…, channels]`."""
    return x.sum((-4, -3, -2))


def _sum_cpu(x):
    # Over one axis XLA:CPU of JAX 0.10 sums up to seven times faster; the barrier keeps it from
    # making three of it.
    rows = x.reshape(*x.shape[:-4], -1, x.shape[-1])
    return lax.optimization_barrier(rows).sum(-2)


def _spread(x, *, positions):
    """`[…, channels]` to `[…, *positions, channels]`."""
    x = x.reshape(*x.shape[:-1], 1, 1, 1, x.shape[-1])
    return jnp.broadcast_to(x, (*x.shape[:-4], *positions, x.shape[-1]))


_forms = {"cpu": _sum_cpu} if jax.__version_info__ < (0, 11) else {}
_sum_p = primitive("sum_of_positions", _sum, **_forms)
_spread_p = primitive("spread_to_positions", _spread)
ad.deflinear2(_sum_p, lambda ct, x: [_spread_p.bind(ct, positions=x.aval.shape[-4:-1])])
ad.deflinear2(_spread_p, lambda ct, x, *, positions: [_sum_p.bind(ct)])


def _statistics(x, sync):
    """Mean and variance of x per channel, over the devices of the mesh too if `sync`."""
    axes = tuple(jax.sharding.get_abstract_mesh().manual_axes) if sync else ()
    mean, mean_square = lax.pmean(_moments(x), axes) if axes else _moments(x)
    # In one pass over x, at the price of a difference that rounding may take below zero.
    return mean, jnp.maximum(mean_square - jnp.square(mean), 0)


def batch_norm(
    train: bool,
    *,
    sync: bool,
    frozen: bool,
    dtype: Any,
    name: str,
    group_size: int = 0,
    zero_init: bool = False,
) -> BatchNorm:
    """BN as every network here uses it; statistics and parameters are float32.

    `sync` takes the statistics over all devices instead of over one device's images, `group_size`
    over groups of them (the paper's were over one GPU's 32); `frozen` always normalises with the
    running averages.
    """
    return BatchNorm(
        use_running_average=frozen or not train,
        momentum=BN_MOMENTUM,
        epsilon=BN_EPSILON,
        dtype=dtype,
        sync=sync,
        group_size=group_size,
        scale_init=nn.initializers.zeros if zero_init else nn.initializers.ones,
        name=name,
    )
