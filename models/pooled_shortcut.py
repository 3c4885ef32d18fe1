"""ResNet-D's shortcut (He et al., "Bag of Tricks", CVPR 2019, section 4.2): option D."""

from jax import Array

from models.block import ResidualBlock
from models.ops.pool import mean_pool_2x2


class PooledShortcut(ResidualBlock):
    """Where a projection strides, it reads the mean of 2×2 pixels instead of one of the four."""

    def projects(self, x: Array) -> bool:
        return self.changes_shape(x)

    def projection(self, x: Array, train: bool) -> Array:
        x = mean_pool_2x2(x) if self.spec.strides == 2 else x
        return self.norm("bn_shortcut", train)(self.conv("shortcut_conv", self.features, 1)(x))
