"""The networks: Stem → Stages of Blocks → Head, and the depth tables.

Every network returns `(logits, endpoints)`: the float32 logits `[batch, classes]` and a dictionary
of named activations (`stem`, `stage1` …, `pooled`, `logits_map`), so that detection heads,
activation maps and fully convolutional testing need no hooks.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from errors import UserError
from models.block import BasicBlock, BottleneckBlock, ResidualBlock
from models.block_spec import BlockSpec
from models.identity_mappings import block_class
from models.initial import HEAD_DEVIATION
from models.ops.conv import conv
from models.ops.norm import batch_norm
from models.ops.pool import max_pool_3x3
from models.ops.relu import relu, relu_of_norm
from models.scanned import Stage


class Architecture(NamedTuple):
    """Blocks per stage together with their form: one cannot be chosen without the other."""

    stage_sizes: tuple[int, ...]
    block: type[ResidualBlock]


# Table 1 of the paper.
IMAGENET = {
    18: Architecture((2, 2, 2, 2), BasicBlock),
    34: Architecture((3, 4, 6, 3), BasicBlock),
    50: Architecture((3, 4, 6, 3), BottleneckBlock),
    101: Architecture((3, 4, 23, 3), BottleneckBlock),
    152: Architecture((3, 8, 36, 3), BottleneckBlock),
    200: Architecture((3, 24, 36, 3), BottleneckBlock),  # Identity Mappings, section 4.2
}
BLOCKS: dict[str, type[ResidualBlock]] = {"basic": BasicBlock, "bottleneck": BottleneckBlock}
# Layers of one block in each of the three stages of a CIFAR network; table 6 of the paper has these
# depths of basic blocks that both forms could have.
CIFAR_LAYERS = {"basic": 6, "bottleneck": 9}
TABLE_6 = (20, 56, 110)
# Share of the width, kernel size and strides of the first layers; 'deep' is ResNet-C's and -D's.
STEMS = {
    "imagenet": ((1.0, 7, 2),),
    "cifar": ((1.0, 3, 1),),
    "deep": ((0.5, 3, 2), (0.5, 3, 1), (1.0, 3, 1)),
}
MAX_CIFAR_BLOCKS = 2000  # in a stage


def architecture(stem: str, depth: int, block: str = "") -> Architecture:
    """The stages of a network of `depth` weighted layers.

    ImageNet depths are table 1's, and 200; a CIFAR network has 6n+2 layers in three stages of n
    basic blocks (section 4.2), or 9n+2 in stages of bottlenecks (Identity Mappings).

    Args:
      block: '' (what the depth tells), 'basic' or 'bottleneck'.

    Raises:
      UserError: for a depth that no such network has, or that two have and `block` does not choose.
    """
    if stem == "cifar":
        return _cifar(depth, block)
    if depth not in IMAGENET:
        raise UserError(
            f"model.depth={depth}: with model.stem={stem!r} the depth is one of "
            f"{', '.join(map(str, IMAGENET))} (table 1 of the paper, and ResNet-200)."
        )
    if block and IMAGENET[depth].block is not BLOCKS[block]:
        raise UserError(
            f"model.block={block!r}: with model.stem={stem!r}, ResNet-{depth} has the other form "
            "of block; leave model.block empty."
        )
    return IMAGENET[depth]


def _cifar(depth, block):
    blocks = {
        form: (depth - 2) // layers
        for form, layers in CIFAR_LAYERS.items()
        if (depth - 2) % layers == 0
        and 1 <= (depth - 2) // layers <= MAX_CIFAR_BLOCKS
        and block in ("", form)
    }
    if not blocks:
        layers = CIFAR_LAYERS[block or "basic"]
        near = layers * min(max(1, round((depth - 2) / layers)), MAX_CIFAR_BLOCKS) + 2
        raise UserError(
            f"model.depth={depth}, model.block={block!r}: with model.stem='cifar' the depth is "
            "6n+2 of basic blocks (8, 14, 20, 32, 44, 56, 110, …) or 9n+2 of bottlenecks (11, 29, "
            f"164, 1001, …), 1 ≤ n ≤ {MAX_CIFAR_BLOCKS}; the nearest is {near}."
        )
    if len(blocks) == 2 and depth not in TABLE_6:
        raise UserError(
            f"model.depth={depth} could be {blocks['basic']} basic blocks a stage (6n+2) or "
            f"{blocks['bottleneck']} bottlenecks (9n+2); set model.block=basic or bottleneck, or "
            f"name the recipe resnet{depth},bottleneck (with shortcut B)."
        )
    form, n = next(iter(blocks.items()))
    return Architecture((n, n, n), BLOCKS[form])


class ResNet(nn.Module):
    """A residual network or its plain twin; the fields are those of `config.model`.

    Attributes:
      num_classes: width of the head; 0: none, for those who want the endpoints.
      depth: weighted layers (`architecture` lists the possible ones).
      block: 'basic' or 'bottleneck' where both have the depth (CIFAR); '': what the depth tells.
      residual: False builds the plain twin, which has the parameters of the option-A network.
      shortcut: 'A', 'B' or 'C' (section 3.3 and 4.1), or 'D': B after a mean of 2×2 pixels.
      stem: 'imagenet' (7×7/2, 3×3/2 max pool, four stages), 'deep' (the same with three 3×3 layers)
        or 'cifar' (3×3, three stages).
      stem_pool: 'padded' (torch, Keras) or 'unpadded', as the authors' Caffe release pools.
      space_to_depth: compute the 7×7/2 stem as 4×4/1 on 12 channels; same parameters and numbers.
      width: channels of the first stage; doubled at each next one (64 and 16 in the paper).
      width_per_group, groups: a bottleneck's 3×3 convolution has `groups` groups, each of
        `width_per_group` / 64 of its width (Wide ResNet-50-2: 128, 1; ResNeXt-50 32×4d: 4, 32).
      preactivation: BN-ReLU-conv blocks (Identity Mappings, figure 4(e)).
      variant: 'none', or a design that Identity Mappings tried and rejected
        (`models.identity_mappings.VARIANTS`).
      gate_bias: initial bias of the gating variants.
      downsample_in: '1x1' (paper) or '3x3' ("v1.5"): where a bottleneck strides.
      zero_init_residual: the last BN scale of each branch starts at 0 (Goyal et al., section 5.1).
      shortcut_scale, residual_scale: the block adds `shortcut_scale·shortcut + residual_scale·f`.
      output_stride: 8, 16 or 32 (ImageNet stem); stages beyond it are dilated instead of strided.
      sync_bn: BN statistics over all devices instead of one device's images.
      bn_group_size: BN statistics over groups of that many of a device's images; 0, or as many as
        the device has or more: over all of them. With `sync_bn` it does not count.
      frozen_bn: normalise with the running averages also in training.
      dtype: 'float32' or 'bfloat16', of the computation; parameters, BN statistics and logits stay
        float32.
      remat: 'none', 'block' or 'segments'; scan_blocks: see `models.scanned`.
    """

    num_classes: int
    depth: int = 50
    block: str = ""
    residual: bool = True
    shortcut: str = "B"
    stem: str = "imagenet"
    stem_pool: str = "padded"
    space_to_depth: bool = False
    width: int = 64
    width_per_group: int = 64
    groups: int = 1
    preactivation: bool = False
    variant: str = "none"
    gate_bias: float = 0.0
    downsample_in: str = "1x1"
    zero_init_residual: bool = False
    shortcut_scale: float = 1.0
    residual_scale: float = 1.0
    output_stride: int = 32
    sync_bn: bool = False
    bn_group_size: int = 0
    frozen_bn: bool = False
    dtype: str = "float32"
    remat: str = "none"
    scan_blocks: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Classifies float images `[batch, height, width, channels]` of any size.

        Args:
          images: normalised images.
          train: take BN statistics from the batch and update the running averages (collection
            `batch_stats` must then be mutable).

        Returns:
          `(logits, endpoints)`: logits float32 `[batch, num_classes]`; endpoints maps `stem`,
          `stage1` … to `[batch, h, w, c]`, `pooled` to `[batch, c]` and `logits_map` to the head
          applied at every position, float32 `[batch, h, w, num_classes]`, whose mean is `logits`.
        """
        table = architecture(self.stem, self.depth, self.block)
        x = self._stem(images, train)
        endpoints = {"stem": x}
        if self.stem != "cifar":
            x = max_pool_3x3(x, padded=self.stem_pool == "padded")
        for i in range(1, len(table.stage_sizes) + 1):
            x = endpoints[f"stage{i}"] = self.stage(i, name=f"stage{i}")(x, train)
        x = endpoints[f"stage{i}"] = self._last_activation(x, train)
        if not self.num_classes:
            return jnp.zeros((len(images), 0)), endpoints
        x = x.astype(jnp.float32)
        pooled = x.mean((1, 2))
        init = nn.initializers.normal(HEAD_DEVIATION)
        head = nn.Dense(self.num_classes, kernel_init=init, name="head")
        logits = head(pooled)
        return logits, endpoints | {"pooled": pooled, "logits_map": head(x)}

    def stage(self, number: int, **where: Any) -> Stage:
        """Stage `number` (from 1), of the variables `stage<number>`; alone with `parent=None`."""
        table = architecture(self.stem, self.depth, self.block)
        size, spec = list(self._stages(table.stage_sizes))[number - 1]
        block = block_class(table.block, self)
        return Stage(block, spec, size, self.scan_blocks, self.remat, **where)

    def _stem(self, images, train):
        """Convolution, BN and ReLU, of 'deep' stems three times: before the first shortcut."""
        x, layers = images, STEMS[self.stem]
        for i, (share, kernel_size, strides) in enumerate(layers, start=1):
            number = str(i) if len(layers) > 1 else ""
            x = conv(
                int(share * self.width),
                kernel_size,
                strides,
                space_to_depth=self.space_to_depth,
                dtype=jnp.dtype(self.dtype),
                name=f"stem_conv{number}",
            )(x)
            x = relu_of_norm(self._norm(f"stem_bn{number}", train)(x))
        return x

    def _last_activation(self, x, train):
        """What the last pre-activated block leaves to do."""
        if self.preactivation:
            return relu_of_norm(self._norm("final_bn", train)(x))
        return relu(x) if self.variant == "relu_only_preactivation" else x

    def _norm(self, name, train):
        return batch_norm(train, name=name, **self._spec().bn())

    def _spec(self) -> BlockSpec:
        """What all blocks share."""
        return BlockSpec(
            self.width,
            shortcut=self.shortcut,
            residual=self.residual,
            width_per_group=self.width_per_group,
            groups=self.groups,
            downsample_in=self.downsample_in,
            zero_init_residual=self.zero_init_residual,
            gate_bias=self.gate_bias,
            shortcut_scale=self.shortcut_scale,
            residual_scale=self.residual_scale,
            sync_bn=self.sync_bn,
            frozen_bn=self.frozen_bn,
            bn_group_size=self.bn_group_size,
            dtype=jnp.dtype(self.dtype),
        )

    def _stages(self, sizes) -> Iterator[tuple[int, BlockSpec]]:
        """Yields each stage's number of blocks and the specification of its first block."""
        stride_so_far = 1 if self.stem == "cifar" else 4
        dilation = 1
        for i, size in enumerate(sizes):
            strides, dilation_before = 1 if i == 0 else 2, dilation
            if stride_so_far * strides > self.output_stride:
                dilation, strides = dilation * strides, 1
            stride_so_far *= strides
            yield (
                size,
                dataclasses.replace(
                    self._spec(),
                    width=self.width * 2**i,
                    strides=strides,
                    dilation=dilation,
                    dilation_before=dilation_before,
                    activated=self.preactivation and i == 0,
                ),
            )
