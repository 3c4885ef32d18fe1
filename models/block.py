"""The paper's residual blocks, `relu(shortcut(x) + f(x))`: equations 1 and 2, figures 2 and 5."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from models.block_spec import BlockSpec
from models.ops.conv import conv
from models.ops.norm import batch_norm
from models.ops.relu import relu, relu_of_norm


class ResidualBlock(nn.Module):
    """A block without its f. All arrays are `[batch, height, width, channels]`."""

    spec: BlockSpec
    expansion = 1  # channels that the block returns, in spec.widths

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = self.f(x, train)
        if not self.spec.residual:
            return relu(y)  # the plain twin
        shortcut = self.shortcut(x, train)
        return relu(shortcut + y)

    def shortcut(self, x: Array, train: bool) -> Array:
        """The identity; where the shape changes, zero-padded (A) or projected (B, C)."""
        if self.projects(x):
            return self.projection(x, train)
        if not self.changes_shape(x):
            return x
        x = x[:, :: self.spec.strides, :: self.spec.strides]
        return jnp.pad(x, [(0, 0)] * 3 + [(0, self.features - x.shape[-1])])

    @property
    def features(self) -> int:
        return self.expansion * self.spec.width

    def changes_shape(self, x: Array) -> bool:
        return self.spec.strides > 1 or x.shape[-1] != self.features

    def projects(self, x: Array) -> bool:
        return self.spec.shortcut == "C" or (self.spec.shortcut == "B" and self.changes_shape(x))

    def projection(self, x: Array, train: bool) -> Array:
        conv = self.conv("shortcut_conv", self.features, 1, self.spec.strides)
        return self.norm("bn_shortcut", train)(conv(x))

    def weight_layer(self, i: int, x: Array, train: bool, *conv: int, last: bool = False) -> Array:
        """Convolution (features, size, strides, dilation, groups), BN, and unless `last` ReLU."""
        y = self.norm(f"bn{i}", train, last)(self.conv(f"conv{i}", *conv)(x))
        return y if last else relu_of_norm(y)

    def conv(self, name: str, *shape: int, use_bias: bool = False) -> nn.Module:
        return conv(*shape, use_bias=use_bias, dtype=self.spec.dtype, name=name)

    def norm(self, name: str, train: bool, last: bool = False) -> nn.Module:
        return batch_norm(train, name=name, **self.spec.bn(last))


class BasicBlock(ResidualBlock):
    def f(self, x: Array, train: bool) -> Array:
        """3×3, 3×3 (figure 5, left)."""
        s = self.spec
        y = self.weight_layer(1, x, train, s.width, 3, s.strides, s.dilation_before)
        return self.weight_layer(2, y, train, s.width, 3, 1, s.dilation, last=True)


class BottleneckBlock(ResidualBlock):
    expansion = 4

    def f(self, x: Array, train: bool) -> Array:
        """1×1, 3×3, 1×1 (figure 5, right); strides in the first, or in the 3×3 ("v1.5")."""
        s = self.spec
        middle = (s.strides, s.dilation_before) if s.downsample_in == "3x3" else (1, s.dilation)
        y = self.weight_layer(1, x, train, s.inner, 1, s.strides // middle[0])
        y = self.weight_layer(2, y, train, s.inner, 3, *middle, s.groups)
        return self.weight_layer(3, y, train, self.features, 1, last=True)
