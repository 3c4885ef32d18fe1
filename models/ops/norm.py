"""Batch normalisation: one factor and one summand per channel, so that only the input is kept.

The derivative of Flax's `BatchNorm` keeps the centred input as an array of its own. Here it is
JAX's own too, of a sum in another order: its parts are the input, the output of a convolution that
exists anyway, and numbers per channel.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

BN_EPSILON = 1e-5  # Caffe's and torch's default; weights move between frameworks with it.
BN_MOMENTUM = 0.9  # running ← 0.9·running + 0.1·batch, torch's momentum of 0.1.


class BatchNorm(nn.BatchNorm):
    """Flax's `BatchNorm` over all axes but the last: same parameters, statistics and numbers.

    Attributes:
      sync: statistics over all devices of the surrounding `shard_map`; without one, of x.
    """

    sync: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        """Normalises `[batch, height, width, channels]`; statistics are float32."""
        shape = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale = self.param("scale", self.scale_init, shape, jnp.float32)
        bias = self.param("bias", self.bias_init, shape, jnp.float32)
        if self.use_running_average:
            used_mean, used_var = mean.value, var.value
        else:
            used_mean, used_var = _statistics(x, self.sync)
            if not self.is_initializing():
                mean.value = _average(self.momentum, mean.value, used_mean)
                var.value = _average(self.momentum, var.value, used_var)
        factor = lax.rsqrt(used_var + self.epsilon) * scale
        return _affine(x, factor, bias - used_mean * factor, self.dtype or x.dtype)


# Recomputed in the backward pass, where that costs nothing, so that the stacks of a loop keep x
# itself instead of its square or a float32 copy of it.
@functools.partial(jax.checkpoint, prevent_cse=False)
def _moments(x):
    """Means of x and of x² over all axes but the last, float32: `[2, channels]`."""
    x = x.astype(jnp.float32)
    return jnp.stack([x.mean((0, 1, 2)), jnp.square(x).mean((0, 1, 2))])


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=3)
def _affine(x, factor, summand, dtype):
    return (x * factor.reshape((1, 1, 1, -1)) + summand.reshape((1, 1, 1, -1))).astype(dtype)


def _statistics(x, sync):
    """Mean and variance of x per channel, over the devices of the mesh too if `sync`."""
    axes = tuple(jax.sharding.get_abstract_mesh().manual_axes) if sync else ()
    mean, mean_square = lax.pmean(_moments(x), axes) if axes else _moments(x)
    # In one pass over x, at the price of a difference that rounding may take below zero.
    return mean, jnp.maximum(mean_square - jnp.square(mean), 0)


def _average(momentum, old, new):
    return momentum * old + (1 - momentum) * new


def batch_norm(
    train: bool, *, sync: bool, frozen: bool, dtype: Any, name: str, zero_init: bool = False
) -> BatchNorm:
    """BN as every network here uses it; statistics and parameters are float32.

    `sync` takes the statistics over all devices instead of over one device's images (the paper's
    were over one GPU's 32); `frozen` always normalises with the running averages.
    """
    return BatchNorm(
        use_running_average=frozen or not train,
        momentum=BN_MOMENTUM,
        epsilon=BN_EPSILON,
        dtype=dtype,
        sync=sync,
        scale_init=nn.initializers.zeros if zero_init else nn.initializers.ones,
        name=name,
    )
