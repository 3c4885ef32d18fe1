"""What a stage tells its blocks."""

import dataclasses
from typing import Any

import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """One block's specification; fields that `config.model` has, too, are explained there.

    Attributes:
      width: channels of the 3×3 convolutions; the block returns `expansion · width`. With other
        `width_per_group` and `groups` a bottleneck's 3×3 convolution has `inner` channels instead.
      strides: of the whole block.
      dilation: of the 3×3 convolutions after the one that strides.
      dilation_before: of those up to the one that strides, or would if its stride were not
        replaced by dilation.
      activated: whether x has the activation already that a pre-activated block begins with: in
        the first block of all (Identity Mappings, appendix).
      dtype: of the computation.
    """

    width: int
    strides: int = 1
    dilation: int = 1
    dilation_before: int = 1
    activated: bool = False
    shortcut: str = "B"
    residual: bool = True
    width_per_group: int = 64
    groups: int = 1
    downsample_in: str = "1x1"
    zero_init_residual: bool = False
    gate_bias: float = 0.0
    shortcut_scale: float = 1.0
    residual_scale: float = 1.0
    sync_bn: bool = False
    frozen_bn: bool = False
    bn_group_size: int = 0
    dtype: Any = jnp.float32

    @property
    def inner(self) -> int:
        """Channels of a bottleneck's 3×3 convolution."""
        return self.width * self.width_per_group // 64 * self.groups

    def bn(self, last: bool = False) -> dict[str, Any]:
        """What a `batch_norm` of the block is given; `last`: it ends f."""
        return {
            "sync": self.sync_bn,
            "frozen": self.frozen_bn,
            "group_size": 0 if self.sync_bn else self.bn_group_size,
            "dtype": self.dtype,
            "zero_init": last and self.zero_init_residual,
        }

    def following(self) -> "BlockSpec":
        """The specification of the stage's other blocks, if this is the first one's."""
        return dataclasses.replace(self, strides=1, dilation_before=self.dilation, activated=False)
