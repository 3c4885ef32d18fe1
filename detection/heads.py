"""What is computed of each region: its class and box, and the mask of what is in it."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from detection.layers import Layer, of_class
from models.ops.conv import conv, he_normal_fan_out
from models.ops.relu import relu_of_norm


class BoxHead(nn.Module):
    """Two hidden layers (Lin et al. 2017), or convolutions and one hidden layer.

    Attributes:
      num_classes: with the background, class 0.
      hidden: width of the hidden layers.
      convs: 3×3 convolutions with BN before the one hidden layer; 0: two hidden layers.
      context: `siblings`'.
    """

    num_classes: int
    hidden: int = 1024
    convs: int = 0
    context: bool = False

    @nn.compact
    def __call__(self, pooled: Array, train: bool = False) -> tuple[Array, Array]:
        """Regions `[batch, n, 7, 7, c]` to `siblings`' results.

        `train` is of the BN: `Layer`'s.
        """
        x = pooled.reshape(-1, *pooled.shape[2:])
        for i in range(self.convs):
            x = Layer(x.shape[-1], 3, name=f"layer{i + 1}")(x, train)
        x = x.reshape(len(x), -1)
        for name in ("hidden",) if self.convs else ("hidden1", "hidden2"):
            x = relu_of_norm(nn.Dense(self.hidden, dtype=x.dtype, name=name)(x))
        return siblings(self.num_classes, x.reshape(*pooled.shape[:2], -1), self.context)


class Siblings(nn.Module):
    """Class and box by one layer each (Girshick 2015), as `siblings` makes them."""

    num_classes: int
    context: bool = False

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Regions `[batch, n, c]` to `siblings`' results."""
        return siblings(self.num_classes, x, self.context)


def siblings(num_classes: int, x: Array, context: bool) -> tuple[Array, Array]:
    """The two last layers of the module that calls it.

    Args:
      num_classes: with the background.
      x: regions `[batch, n, c]`.
      context: the last region is the whole image, and beside what is in each of the others, its
        classes and boxes depend on what is in that one (global context: appendix B).

    Returns:
      Logits `[batch, n, classes]` and deltas `[batch, n, classes, 4]`, with context of one less.
    """
    if context:
        x, whole = x[:, :-1], x[:, -1:]
        x = jnp.concatenate([x, jnp.broadcast_to(whole, x.shape)], -1)
    normal = nn.initializers.normal  # deviations of Girshick 2015, section 2.3
    logits = nn.Dense(num_classes, kernel_init=normal(0.01), name="scores")(x)
    deltas = nn.Dense(4 * num_classes, kernel_init=normal(0.001), name="deltas")(x)
    return logits, deltas.reshape(*x.shape[:-1], -1, 4)


class MaskHead(nn.Module):
    """Convolutions, twice the resolution, and a mask for every class (He et al. 2017).

    Attributes:
      num_classes: with the background.
      convs: 3×3 convolutions.
      norm: BN after them instead of a bias.
    """

    num_classes: int
    convs: int = 4
    norm: bool = False

    @nn.compact
    def __call__(self, pooled: Array, labels: Array, train: bool = False) -> Array:
        """Regions `[n, s, s, c]` to logits `[n, 2s, 2s]` of the mask of their `labels`.

        `train` is of the BN: `Layer`'s.
        """
        x = pooled
        for i in range(self.convs):
            x = Layer(x.shape[-1], 3, norm=self.norm, name=f"layer{i + 1}")(x, train)
        x = relu_of_norm(Doubled(x.shape[-1], name="upsampled")(x))
        small = nn.initializers.normal(0.001)  # Detectron's: 1/2 everywhere at first
        logits = conv(self.num_classes, 1, use_bias=True, kernel_init=small, name="logits")(x)
        return of_class(logits, labels[:, None, None])


class Doubled(nn.Module):
    """A transposed 2×2 convolution of stride 2: of every position four, none of which overlap."""

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `[n, h, w, c]` to `[n, 2h, 2w, features]`."""
        kernel = self.param("kernel", he_normal_fan_out, (2, 2, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        n, height, width, _ = x.shape
        four = jnp.einsum("nhwi,yxio->nhywxo", x, kernel.astype(x.dtype))
        return four.reshape(n, 2 * height, 2 * width, -1) + bias.astype(x.dtype)[None, None, None]
