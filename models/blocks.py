"""Residual blocks and their plain twins: `act(shortcut(x) + f(x))` against `act(f(x))`.

The transform `f` is a list of convolutions (`basic_layers`, `bottleneck_layers`); where batch
normalisation and ReLU stand around them is a `Placement`. Every block of the paper and of its
follow-up ("Identity Mappings in Deep Residual Networks", arXiv 1603.05027) is one pair of these.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from models.ops.conv import Conv
from models.ops.norm import batch_norm, relu

SHORTCUT_DROPOUT = 0.5  # Identity Mappings, table 1, last row.


class Layer(NamedTuple):
    """One convolution of a transform: `kernel_size`² kernels, `features` outputs."""

    kernel_size: int
    features: int
    strides: int
    dilation: int


def basic_layers(width, *, strides, dilation=1, dilation_before=1, downsample_in):
    """Two 3×3 convolutions, `width` channels out (paper, figure 5 left).

    `dilation_before` is that of the layers up to the one that strides, or would if its stride were
    not replaced by dilation; `dilation` is that of the layers after it.
    """
    del downsample_in  # the first 3×3 is the only place there is
    return (Layer(3, width, strides, dilation_before), Layer(3, width, 1, dilation))


def bottleneck_layers(width, *, strides, dilation=1, dilation_before=1, downsample_in):
    """1×1 down to `width`, 3×3, 1×1 up to `4·width` channels (paper, figure 5 right).

    `downsample_in='1x1'` strides in the first 1×1, as the paper's networks do; `'3x3'` strides in
    the 3×3 ("v1.5", Goyal et al. 2017): same parameters, 6 % more multiply-adds in ResNet-50.
    """
    if downsample_in == "1x1":
        first, second, dilation_of_second = strides, 1, dilation
    else:
        first, second, dilation_of_second = 1, strides, dilation_before
    return (
        Layer(1, width, first, 1),
        Layer(3, width, second, dilation_of_second),
        Layer(1, 4 * width, 1, 1),
    )


class Placement(NamedTuple):
    """Where BN and ReLU stand, as sequences of 'conv', 'bn' and 'relu'."""

    inner: str  # every convolution of f but the last
    last: str  # the last convolution of f
    output: str  # after the addition
    projection: str  # the projection shortcut
    stem: str  # the network's first convolution
    final: str  # after the last block of the network


ORIGINAL = Placement("conv bn relu", "conv bn", "relu", "conv bn", "conv bn relu", "")
# Identity Mappings, figure 4(e). The stem leaves its BN and ReLU to the first block.
FULL_PREACTIVATION = Placement("bn relu conv", "bn relu conv", "", "conv", "conv", "bn relu")
# What Identity Mappings tried and rejected: figure 4(b), (c), (d).
BN_AFTER_ADDITION = ORIGINAL._replace(last="conv", output="bn relu")
RELU_BEFORE_ADDITION = ORIGINAL._replace(last="conv bn relu", output="")
RELU_ONLY_PREACTIVATION = ORIGINAL._replace(
    inner="relu conv bn", last="relu conv bn", output="", final="relu"
)


class Block(nn.Module):
    """One block: f, the shortcut and what joins them.

    Attributes:
      layers: the convolutions of f.
      placement: where BN and ReLU stand.
      shortcut: 'A' zero-pads, 'B' projects when the shape changes, 'C' projects always
        (section 4.1, "Identity vs. projection shortcuts").
      residual: False leaves out the addition: the plain twin.
      shortcut_scale, residual_scale: λ of Identity Mappings, section 3.1: the block adds
        `shortcut_scale·shortcut(x) + residual_scale·f(x)`; 1 and 1 in the paper.
      gating: 'none', 'exclusive' or 'shortcut' (Identity Mappings, figures 2(c) and 2(d)).
      gate_bias: initial bias b_g of the gate; the learned bias is added to it and starts at 0.
      shortcut_dropout: drop half of the shortcut's entries in training (figure 2(f)).
    """

    layers: tuple[Layer, ...]
    placement: Placement = ORIGINAL
    shortcut: str = "B"
    residual: bool = True
    shortcut_scale: float = 1.0
    residual_scale: float = 1.0
    gating: str = "none"
    gate_bias: float = 0.0
    shortcut_dropout: bool = False
    zero_init_residual: bool = False
    sync_bn: bool = False
    frozen_bn: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train):
        """Maps `[batch, height, width, channels]` to `[batch, ⌈height/s⌉, ⌈width/s⌉, features]`."""
        y, opening = x, x
        for i, layer in enumerate(self.layers, start=1):
            last = i == len(self.layers)
            ops = self.placement.last if last else self.placement.inner
            before, _, after = ops.partition("conv")
            y = self._apply(before, y, f"{i}", train)
            opening = y if i == 1 else opening
            y = Conv(
                layer.features,
                layer.kernel_size,
                layer.strides,
                layer.dilation,
                dtype=self.dtype,
                name=f"conv{i}",
            )(y)
            y = self._apply(after, y, f"{i}", train, zero_init=last and self.zero_init_residual)
        self.sow("intermediates", "branch", y)
        if self.residual:
            y = self._join(self._shortcut(x, opening, y.shape[-1], train), y, x, train)
        return self._apply(self.placement.output, y, "_output", train)

    def _apply(self, ops, x, suffix, train, zero_init=False):
        for op in ops.split():
            x = relu(x) if op == "relu" else self._norm("bn" + suffix, train, zero_init)(x)
        return x

    def _norm(self, name, train, zero_init=False):
        return batch_norm(
            train,
            sync=self.sync_bn,
            frozen=self.frozen_bn,
            dtype=self.dtype,
            name=name,
            zero_init=zero_init,
        )

    @property
    def strides(self):
        """Stride of the whole block: the product over f."""
        strides = 1
        for layer in self.layers:
            strides *= layer.strides
        return strides

    def _shortcut(self, x, opening, features, train):
        """The one shortcut: identity, zero-padding (A) or projection (B, C).

        A projection reads f's opening activation (`opening`, the same array as `x` unless the
        block is pre-activated), identity and zero-padding read x itself.
        """
        changes = self.strides > 1 or x.shape[-1] != features
        if self.shortcut == "C" or (self.shortcut == "B" and changes):
            conv = Conv(features, 1, self.strides, dtype=self.dtype, name="shortcut_conv")
            after = self.placement.projection.partition("conv")[2]
            return self._apply(after, conv(opening), "_shortcut", train)
        if not changes:
            return x
        x = x[:, :: self.strides, :: self.strides]
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, features - x.shape[-1])))

    def _join(self, shortcut, branch, x, train):
        if self.gating != "none":
            features = branch.shape[-1]
            gate = Conv(features, 1, self.strides, use_bias=True, dtype=self.dtype, name="gate")(x)
            gate = nn.sigmoid(gate + jnp.asarray(self.gate_bias, gate.dtype))
            shortcut = shortcut * (1 - gate)
            branch = branch * gate if self.gating == "exclusive" else branch
        if self.shortcut_dropout:
            shortcut = nn.Dropout(SHORTCUT_DROPOUT, deterministic=not train)(shortcut)
        shortcut = _scaled(shortcut, self.shortcut_scale)
        self.sow("intermediates", "shortcut", shortcut)
        return shortcut + _scaled(branch, self.residual_scale)


def _scaled(x, scale):
    return x if scale == 1.0 else x * jnp.asarray(scale, x.dtype)
