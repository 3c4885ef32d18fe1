"""Batch normalisation and ReLU, whose gradients keep as little of the forward pass as they need.

JAX's derivative of Flax's `BatchNorm` keeps the centred input as an array of its own, and that of
`nn.relu` the value before it. Here normalisation keeps its input, the output of a convolution that
exists anyway, and ReLU a byte per number. It is less to hold, and less to copy in the loop over
blocks, which has to put away what each block keeps (`benchmarks/memory.md`).
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from models.ops.varying import vary_alike

BN_EPSILON = 1e-5  # Caffe's and torch's default; weights move between frameworks with it.
BN_MOMENTUM = 0.9  # running ← 0.9·running + 0.1·batch, torch's momentum of 0.1.
DATA_AXIS = "data"  # the mesh axis over which synchronised BN takes its statistics


class BatchNorm(nn.BatchNorm):
    """Flax's `BatchNorm` over all axes but the last: same parameters, statistics and numbers."""

    @nn.compact
    def __call__(self, x):
        """Normalises `[batch, height, width, channels]`; statistics are float32."""
        shape = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale = self.param("scale", self.scale_init, shape, jnp.float32)
        bias = self.param("bias", self.bias_init, shape, jnp.float32)
        dtype = self.dtype or x.dtype
        if self.use_running_average:
            factor = lax.rsqrt(var.value + self.epsilon) * scale
            return _affine(x, mean.value, factor, bias, dtype)
        axis = None if self.is_initializing() else self.axis_name
        x, scale, bias = vary_alike(x, scale, bias)
        y, batch_mean, batch_var = _normalize(x, scale, bias, self.epsilon, axis, dtype)
        if not self.is_initializing():
            mean.value = self.momentum * mean.value + (1 - self.momentum) * batch_mean
            var.value = self.momentum * var.value + (1 - self.momentum) * batch_var
        return y


def _per_channel(a):
    return a.reshape((1, 1, 1, -1))


def _affine(x, mean, factor, bias, dtype):
    y = (x - _per_channel(mean)) * _per_channel(factor) + _per_channel(bias)
    return y.astype(dtype)


def _sums(*arrays):
    """Each array's sum over all axes but the last: `[arrays, channels]`."""
    return jnp.stack([a.sum((0, 1, 2)) for a in arrays])


def _means(sums, x, axis):
    """`_sums` over arrays like x as means, over the devices of `axis` if there is one."""
    positions = x.size // x.shape[-1]
    return lax.psum(sums, axis) / (positions * lax.axis_size(axis)) if axis else sums / positions


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _normalize(x, scale, bias, epsilon, axis, dtype):
    """(normalised x, mean, variance); gradients flow through the first alone."""
    return _normalize_forward(x, scale, bias, epsilon, axis, dtype)[0]


def _normalize_forward(x, scale, bias, epsilon, axis, dtype):
    exact = x.astype(jnp.float32)
    mean, mean_square = _means(_sums(exact, jnp.square(exact)), x, axis)
    # In one pass over x, at the price of a difference that rounding may take below zero.
    var = jnp.maximum(mean_square - jnp.square(mean), 0)
    inverse = lax.rsqrt(var + epsilon)
    y = _affine(exact, mean, inverse * scale, bias, dtype)
    return (y, mean, var), (x, scale, mean, inverse)


def _normalize_backward(epsilon, axis, dtype, residuals, cotangents):
    del epsilon, dtype
    x, scale, mean, inverse = residuals
    # Else XLA:CPU would keep what it computed of x in the forward pass as one more array.
    x = lax.optimization_barrier(x)
    dy = cotangents[0].astype(jnp.float32)
    centred = x.astype(jnp.float32) - _per_channel(mean)
    local = _sums(dy, dy * centred)
    dy_mean, covariance = _means(local, x, axis)
    slope = jnp.square(inverse) * covariance
    # In this order XLA:CPU computes dx once: a function of one array it would compute again in each
    # consumer, and the centred x would be kept for a second use.
    of_x = x * _per_channel(slope) + _per_channel(dy_mean - mean * slope)
    factor = _per_channel(inverse * scale)
    dx = dy * factor - of_x * factor
    return dx.astype(x.dtype), local[1] * inverse, local[0]


_normalize.defvjp(_normalize_forward, _normalize_backward)


@jax.custom_vjp
def relu(x):
    """`max(x, 0)`, of any shape; the gradient at 0 is 0, as `nn.relu`'s."""
    # As a selection, a function of two arrays: XLA:CPU would compute a maximum again, and with it
    # the sums of all blocks before it, in every consumer that it can.
    return jnp.where(x < 0, jnp.zeros_like(x), x)


def _relu_forward(x):
    y = relu(x)
    return y, y > 0


def _relu_backward(positive, dy):
    return (jnp.where(positive, dy, jnp.zeros_like(dy)),)


relu.defvjp(_relu_forward, _relu_backward)


def batch_norm(train, *, sync, frozen, dtype, name, zero_init=False):
    """BN as every network here uses it; statistics and parameters are float32.

    `sync` takes the statistics over the mesh axis `data` instead of over one device's images (the
    paper's were over one GPU's 32); `frozen` always normalises with the running averages.
    """
    return BatchNorm(
        use_running_average=frozen or not train,
        momentum=BN_MOMENTUM,
        epsilon=BN_EPSILON,
        dtype=dtype,
        axis_name=DATA_AXIS if sync else None,
        scale_init=nn.initializers.zeros if zero_init else nn.initializers.ones,
        name=name,
    )
