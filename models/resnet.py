"""The networks: Stem → Stages of Blocks → Head, and the depth tables.

Every network returns `(logits, endpoints)`: the float32 logits `[batch, classes]` and a dictionary
of named activations (`stem`, `stage1` …, `pooled`, `logits_map`), so that detection heads,
activation maps and fully convolutional testing need no hooks.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from errors import UserError
from models import blocks
from models.ops.conv import Conv
from models.ops.norm import batch_norm, relu
from models.ops.pool import max_pool_3x3


class Architecture(NamedTuple):
    """Blocks per stage together with their type: one cannot be chosen without the other."""

    stage_sizes: tuple[int, ...]
    layers: Any  # blocks.basic_layers or blocks.bottleneck_layers


# Table 1 of the paper.
IMAGENET = {
    18: Architecture((2, 2, 2, 2), blocks.basic_layers),
    34: Architecture((3, 4, 6, 3), blocks.basic_layers),
    50: Architecture((3, 4, 6, 3), blocks.bottleneck_layers),
    101: Architecture((3, 4, 23, 3), blocks.bottleneck_layers),
    152: Architecture((3, 8, 36, 3), blocks.bottleneck_layers),
}
MAX_CIFAR_DEPTH = 6 * 2000 + 2
MIN_SCANNED_STAGE = 3  # blocks; a loop over fewer than two saves nothing
# Arrays of its input's size that a block of a recomputed segment holds; of 3, 4, 5, 7 and 8 the one
# that needs least memory in ResNet-110 to -1202 (`benchmarks/memory.md`).
KEPT_PER_BLOCK = 3

HEAD_INIT = nn.initializers.normal(0.01)  # Goyal et al., section 5.1; the paper does not say.

# The designs that Identity Mappings compares with the paper's (tables 1 and 2).
VARIANTS = {
    "none": blocks.ORIGINAL,
    "bn_after_addition": blocks.BN_AFTER_ADDITION,
    "relu_before_addition": blocks.RELU_BEFORE_ADDITION,
    "relu_only_preactivation": blocks.RELU_ONLY_PREACTIVATION,
    "exclusive_gating": blocks.ORIGINAL,
    "shortcut_gating": blocks.ORIGINAL,
    "dropout_shortcut": blocks.ORIGINAL,
}
GATING = {"exclusive_gating": "exclusive", "shortcut_gating": "shortcut"}


def architecture(stem, depth):
    """The stages of a network of `depth` weighted layers.

    ImageNet depths are table 1's; a CIFAR network has 6n+2 layers in three stages of n basic blocks
    (section 4.2).

    Raises:
      UserError: for a depth that no such network has.
    """
    if stem == "imagenet":
        if depth not in IMAGENET:
            raise UserError(
                f"model.depth={depth}: with model.stem='imagenet' the depth is one of "
                f"{', '.join(map(str, IMAGENET))} (table 1 of the paper)."
            )
        return IMAGENET[depth]
    n, rest = divmod(depth - 2, 6)
    if rest or n < 1 or depth > MAX_CIFAR_DEPTH:
        near = 6 * min(max(1, round((depth - 2) / 6)), (MAX_CIFAR_DEPTH - 2) // 6) + 2
        raise UserError(
            f"model.depth={depth}: with model.stem='cifar' the depth is 6n+2 with n ≥ 1 "
            f"(8, 14, 20, 32, 44, 56, 110, … {MAX_CIFAR_DEPTH}); the nearest is {near}."
        )
    return Architecture((n, n, n), blocks.basic_layers)


def segment_length(remat, blocks):
    """Blocks between two activations that are kept, by `config.model.remat`.

    Of n blocks in segments of s, n / s inputs and what one segment keeps while it is computed
    again, s · `KEPT_PER_BLOCK` arrays, are held at once: least for s = √(n / `KEPT_PER_BLOCK`)
    (Chen et al. 2016, section 4.1).
    """
    if remat == "segments":
        return math.ceil(math.sqrt(blocks / KEPT_PER_BLOCK))
    return 1 if remat == "block" else blocks


class Stage(nn.Module):
    """Blocks of one width; only the first may change the shape.

    Parameters are one subtree per block (`block1`, `block2`, …). With `scan_blocks` the equal
    blocks, all or all but the first, run as one loop and lie stacked under `blocks`;
    `models.scanned` converts between the two forms, and on disk there is only the first.

    Attributes:
      first, rest: make the first and the other blocks, given `name` or `parent`.
      size: number of blocks.
      remat: what the backward pass computes again instead of keeping: 'none', each 'block', or
        'segments' of several (`segment_length`), whose peak memory grows with √depth.
    """

    first: Callable[..., blocks.Block]
    rest: Callable[..., blocks.Block]
    size: int
    scan_blocks: bool = False
    remat: str = "none"

    @nn.compact
    def __call__(self, x, train):
        """Maps `[batch, height, width, channels]` to `[batch, ⌈height/s⌉, ⌈width/s⌉, features]`."""
        if not (self.scan_blocks and self.size >= MIN_SCANNED_STAGE):
            return self._unrolled(x, 1, self.size, train)
        first, rest = self.first(parent=None).layers, self.rest(parent=None).layers
        if first == rest and x.shape[-1] == rest[-1].features:
            return self._scanned(x, self.size, train)
        return self._scanned(self._unrolled(x, 1, 1, train), self.size - 1, train)

    def _unrolled(self, x, start, stop, train):
        def run(_, x, start, stop):
            for i in range(start, stop + 1):
                x = (self.first if i == 1 else self.rest)(name=f"block{i}")(x, train)
            return x

        if self.remat == "none":
            return run(self, x, start, stop)
        length = segment_length(self.remat, self.size)
        for i in range(start, stop + 1, length):
            segment = functools.partial(run, start=i, stop=min(i + length - 1, stop))
            x = nn.remat(segment)(self, x)
        return x

    def _scanned(self, x, count, train):
        block = self.rest(parent=None)
        sample = jnp.zeros((1, 1, 1, x.shape[-1]), x.dtype)

        def init(key):
            return jax.vmap(lambda k: block.init(k, sample, train=False))(
                jax.random.split(key, count)
            )

        params = self.param("blocks", lambda key: init(key)["params"])
        stats = self.variable(
            "batch_stats", "blocks", lambda: init(jax.random.key(0))["batch_stats"]
        )

        def body(x, variables):
            params, batch_stats = variables
            x, updated = block.apply(
                {"params": params, "batch_stats": batch_stats}, x, train, mutable=["batch_stats"]
            )
            return x, updated["batch_stats"]

        x, new_stats = _scan_in_segments(
            body,
            x,
            (params, stats.value),
            segment_length(self.remat, count),
            remat=self.remat != "none",
        )
        if self.is_mutable_collection("batch_stats") and not self.is_initializing():
            stats.value = new_stats
        return x


def _scan_in_segments(body, x, stacked, length, remat):
    """`lax.scan(body, x, stacked)`, recomputing each run of `length` blocks when `remat`."""

    def run(x, segment):
        return jax.lax.scan(body, x, segment)

    count = jax.tree.leaves(stacked)[0].shape[0]
    if not remat:
        return run(x, stacked)
    whole = count // length
    split = jax.tree.map(
        lambda a: a[: whole * length].reshape((whole, length, *a.shape[1:])), stacked
    )
    x, outputs = jax.lax.scan(jax.checkpoint(run, prevent_cse=False), x, split)
    outputs = jax.tree.map(lambda a: a.reshape((-1, *a.shape[2:])), outputs)
    if whole * length == count:
        return x, outputs
    x, last = jax.checkpoint(run)(x, jax.tree.map(lambda a: a[whole * length :], stacked))
    return x, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), outputs, last)


class ResNet(nn.Module):
    """A residual network or its plain twin; the fields are those of `config.model`.

    Attributes:
      num_classes: width of the head.
      depth: weighted layers (`architecture` lists the possible ones).
      residual: False builds the plain twin, which has the parameters of the option-A network.
      shortcut: 'A', 'B' or 'C' (section 3.3 and 4.1).
      stem: 'imagenet' (7×7/2, 3×3/2 max pool, four stages) or 'cifar' (3×3, three stages).
      stem_pool: 'padded' (torch, Keras) or 'unpadded', as the authors' Caffe release pools.
      space_to_depth: compute the 7×7/2 stem as 4×4/1 on 12 channels; same parameters and numbers.
      width: channels of the first stage; doubled at each next one (64 and 16 in the paper).
      preactivation: BN-ReLU-conv blocks (Identity Mappings, figure 4(e)).
      variant: 'none', or a design that Identity Mappings tried and rejected (`VARIANTS`).
      gate_bias: initial bias of the gating variants.
      downsample_in: '1x1' (paper) or '3x3' ("v1.5"): where a bottleneck strides.
      zero_init_residual: the last BN scale of each branch starts at 0 (Goyal et al., section 5.1).
      shortcut_scale, residual_scale: the block adds `shortcut_scale·shortcut + residual_scale·f`.
      output_stride: 8, 16 or 32 (ImageNet stem); stages beyond it are dilated instead of strided.
      sync_bn: BN statistics over all devices instead of one device's images.
      frozen_bn: normalise with the running averages also in training.
      dtype: 'float32' or 'bfloat16', of the computation; parameters, BN statistics and logits stay
        float32.
      remat: 'none', 'block' or 'segments'; scan_blocks: see `Stage`.
    """

    num_classes: int
    depth: int = 50
    residual: bool = True
    shortcut: str = "B"
    stem: str = "imagenet"
    stem_pool: str = "padded"
    space_to_depth: bool = False
    width: int = 64
    preactivation: bool = False
    variant: str = "none"
    gate_bias: float = 0.0
    downsample_in: str = "1x1"
    zero_init_residual: bool = False
    shortcut_scale: float = 1.0
    residual_scale: float = 1.0
    output_stride: int = 32
    sync_bn: bool = False
    frozen_bn: bool = False
    dtype: str = "float32"
    remat: str = "none"
    scan_blocks: bool = False

    @nn.compact
    def __call__(self, images, train):
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
        table = architecture(self.stem, self.depth)
        dtype = jnp.dtype(self.dtype)
        placement = self._placement()
        norm = functools.partial(
            batch_norm, train, sync=self.sync_bn, frozen=self.frozen_bn, dtype=dtype
        )

        imagenet = self.stem == "imagenet"
        kernel_size, strides = (7, 2) if imagenet else (3, 1)
        x = Conv(
            self.width,
            kernel_size,
            strides,
            space_to_depth=self.space_to_depth,
            dtype=dtype,
            name="stem_conv",
        )(images)
        x = _norm_relu(placement.stem, x, norm, "stem_bn")
        endpoints = {"stem": x}
        x = max_pool_3x3(x, padded=self.stem_pool == "padded") if imagenet else x

        for i, (size, first, rest) in enumerate(self._stage_layers(table), start=1):
            block = functools.partial(
                blocks.Block,
                placement=placement,
                shortcut=self.shortcut,
                residual=self.residual,
                shortcut_scale=self.shortcut_scale,
                residual_scale=self.residual_scale,
                gating=GATING.get(self.variant, "none"),
                gate_bias=self.gate_bias,
                shortcut_dropout=self.variant == "dropout_shortcut",
                zero_init_residual=self.zero_init_residual,
                sync_bn=self.sync_bn,
                frozen_bn=self.frozen_bn,
                dtype=dtype,
            )
            x = Stage(
                first=functools.partial(block, first),
                rest=functools.partial(block, rest),
                size=size,
                scan_blocks=self.scan_blocks,
                remat=self.remat,
                name=f"stage{i}",
            )(x, train)
            if i == len(table.stage_sizes):
                x = _norm_relu(placement.final, x, norm, "final_bn")
            endpoints[f"stage{i}"] = x

        x = x.astype(jnp.float32)
        pooled = x.mean((1, 2))
        head = nn.Dense(self.num_classes, kernel_init=HEAD_INIT, name="head")
        logits = head(pooled)
        return logits, endpoints | {"pooled": pooled, "logits_map": head(x)}

    def _placement(self):
        return blocks.FULL_PREACTIVATION if self.preactivation else VARIANTS[self.variant]

    def _stage_layers(self, table):
        """Yields (blocks, layers of the first block, layers of the others) for each stage."""
        stride_so_far = 4 if self.stem == "imagenet" else 1
        dilation = 1
        for i, size in enumerate(table.stage_sizes):
            strides = 1 if i == 0 else 2
            dilation_before = dilation
            if stride_so_far * strides > self.output_stride:
                dilation, strides = dilation * strides, 1
            stride_so_far *= strides
            make = functools.partial(
                table.layers, self.width * 2**i, downsample_in=self.downsample_in
            )
            yield (
                size,
                make(strides=strides, dilation=dilation, dilation_before=dilation_before),
                make(strides=1, dilation=dilation, dilation_before=dilation),
            )


def _norm_relu(ops, x, norm, name):
    for op in ops.split():
        if op == "bn":
            x = norm(name=name)(x)
        elif op == "relu":
            x = relu(x)
    return x
