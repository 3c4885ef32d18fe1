"""A convolution with what follows it, as the heads of detectors and segmenters have it."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from models.ops.conv import conv, he_normal_fan_out
from models.ops.norm import batch_norm
from models.ops.relu import relu_of_norm


class Layer(nn.Module):
    """Convolution, BN with running averages or a bias in its place, and ReLU.

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
    def __call__(self, x: Array) -> Array:
        """Maps `[batch, height, width, channels]` to `[batch, height, width, features]`."""
        shape = self.features, self.kernel_size, 1, self.dilation
        x = conv(*shape, use_bias=not self.norm, kernel_init=self.kernel_init, name="conv")(x)
        if self.norm:
            x = batch_norm(False, sync=False, frozen=True, dtype=jnp.float32, name="bn")(x)
        return relu_of_norm(x) if self.activation else x
