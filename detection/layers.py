"""What the heads of detectors and segmenters are made of."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from models.ops.conv import conv, he_normal_fan_out
from models.ops.norm import batch_norm
from models.ops.relu import relu_of_norm


class Layer(nn.Module):
    """Convolution, BN or a bias in its place, and ReLU.

    Attributes:
      features, kernel_size, dilation: of the convolution.
      norm, activation: whether it has BN, and ReLU.
      kernel_init: of the convolution.
    """

    features: int
    kernel_size: int
    dilation: int = 1
    norm: bool = True
    activation: bool = True
    kernel_init: nn.initializers.Initializer = he_normal_fan_out

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Maps `[batch, height, width, channels]` to `[batch, height, width, features]`.

        With `train`, BN has the statistics of x, over all devices; otherwise running averages. The
        type of the computation is that of x.
        """
        shape = self.features, self.kernel_size, 1, self.dilation
        x = conv(
            *shape,
            use_bias=not self.norm,
            dtype=x.dtype,
            kernel_init=self.kernel_init,
            name="conv",
        )(x)
        if self.norm:
            x = batch_norm(train, sync=True, frozen=False, dtype=x.dtype, name="bn")(x)
        return relu_of_norm(x) if self.activation else x


def of_class(x: Array, labels: Array) -> Array:
    """What `[…, classes]` has for the class in int `[…]`, which is broadcast: `[…]`.

    A selection, and so is its derivative; that of a gather would be a scatter.
    """
    return jnp.where(jax.nn.one_hot(labels, x.shape[-1], dtype=bool), x, 0).sum(-1)


def dropped(x: Array, keys: Array | None, rate: float) -> Array:
    """Dropout of the numbers of each image, a function of its key; nothing without keys."""
    if keys is None:
        return x
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x / (1 - rate), 0)
