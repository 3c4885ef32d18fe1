"""The feature pyramid network (Lin et al. 2017) over a backbone's four stages."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from detection.layers import Layer

# No ReLU follows; Detectron's and torchvision's.
KEEPS_VARIANCE = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class FeaturePyramid(nn.Module):
    """Levels of equal width at strides 4, 8, 16, 32 and 64.

    Attributes:
      width: channels of every level.
      norm: BN after each convolution instead of a bias.
    """

    width: int = 256
    norm: bool = False

    @nn.compact
    def __call__(self, stages: Sequence[Array], train: bool = False) -> list[Array]:
        """Maps four stages, the finest first, to five levels `[batch, h, w, width]`.

        `train` is of the BN: `Layer`'s.
        """
        inner, levels = None, []
        for i in reversed(range(len(stages))):
            lateral = self._layer(f"inner{i + 1}", 1)(stages[i], train)
            inner = lateral if inner is None else lateral + _enlarged(inner, lateral.shape[1:3])
            levels.insert(0, self._layer(f"output{i + 1}", 3)(inner, train))
        return [*levels, levels[-1][:, ::2, ::2]]  # of a 1×1 maximum, the stride remains

    def _layer(self, name, kernel_size):
        form = {"norm": self.norm, "activation": False, "kernel_init": KEEPS_VARIANCE}
        return Layer(self.width, kernel_size, **form, name=name)


def _enlarged(x: Array, shape: Sequence[int]) -> Array:
    """The nearest neighbour at each position of a larger map; of no exact double, torch's."""
    for axis, size in enumerate(shape, start=1):
        if size == 2 * x.shape[axis]:
            x = jnp.repeat(x, 2, axis)
        else:
            place = np.arange(size, dtype=np.float32) * np.float32(x.shape[axis] / size)
            x = x.take(np.minimum(place.astype(int), x.shape[axis] - 1), axis)
    return x
