"""The designs of "Identity Mappings in Deep Residual Networks" (arXiv 1603.05027), one class each.

Each class is an equation of its own in place of `relu(shortcut + f)`; `block_class` combines it
with the convolutions of a basic or a bottleneck block.
"""

import functools
from typing import Any

import flax.linen as nn
from jax import Array

from models.block import ResidualBlock
from models.ops.relu import relu, relu_of_norm
from models.pooled_shortcut import PooledShortcut

SHORTCUT_DROPOUT = 0.5  # ratio in table 1, last row


class ConstantScaling(ResidualBlock):
    """`relu(shortcut_scale·shortcut + residual_scale·f)`: section 3.1, figure 2(b)."""

    def shortcut(self, x: Array, train: bool) -> Array:
        return self.spec.shortcut_scale * super().shortcut(x, train)

    def f(self, x: Array, train: bool) -> Array:
        return self.spec.residual_scale * super().f(x, train)  # type: ignore[misc]


class ShortcutGating(ResidualBlock):
    """`relu((1 − g)·shortcut + f)`: section 3.1, figure 2(d)."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y, g = self.f(x, train), self.g(x)
        return relu(self.shortcut(x, train) * (1 - g) + y)

    def g(self, x: Array) -> Array:
        """The gate σ(W x + b); what is learned of its bias is added to `spec.gate_bias`."""
        gate = self.conv("gate", self.features, 1, self.spec.strides, use_bias=True)
        return nn.sigmoid(gate(x) + self.spec.gate_bias)


class ExclusiveGating(ShortcutGating):
    """`relu((1 − g)·shortcut + g·f)`: section 3.1, figure 2(c)."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y, g = self.f(x, train), self.g(x)
        return relu(self.shortcut(x, train) * (1 - g) + y * g)


class DropoutShortcut(ResidualBlock):
    """`relu(dropout(shortcut) + f)`: section 3.1, figure 2(f).

    What is kept stays as it is, so that dropout scales the shortcut by 0.5 in expectation; testing
    scales it by 0.5.
    """

    def shortcut(self, x: Array, train: bool) -> Array:
        inverted = nn.Dropout(SHORTCUT_DROPOUT, deterministic=not train)  # expectation 1
        return (1 - SHORTCUT_DROPOUT) * inverted(super().shortcut(x, train))


class BnAfterAddition(ResidualBlock):
    """`relu(bn(shortcut + f))`, f without its last BN: figure 4(b)."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = self.f(x, train)
        y = self.shortcut(x, train) + y if self.spec.residual else y
        return relu_of_norm(self.norm("bn_output", train)(y))

    def weight_layer(self, i: int, x: Array, train: bool, *conv: int, last: bool = False) -> Array:
        if last:
            return self.conv(f"conv{i}", *conv)(x)
        return super().weight_layer(i, x, train, *conv)


class ReluBeforeAddition(ResidualBlock):
    """`shortcut + relu(f)`: figure 4(c)."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = self.f(x, train)
        return self.shortcut(x, train) + y if self.spec.residual else y

    def f(self, x: Array, train: bool) -> Array:
        return relu(super().f(x, train))  # type: ignore[misc]


class FullPreactivation(ResidualBlock):
    """`shortcut + f`, each layer of f being BN, ReLU, convolution: figure 4(e).

    f is given the first activation, which a projection reads, too; the identity reads x itself. The
    first block of all is given x after its activation, before the split; what follows the last
    block's addition is `ResNet`'s.
    """

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        activation = x if self.spec.activated else self.activation(1, x, train)
        y = self.f(activation, train)
        if not self.spec.residual:
            return y
        return self.shortcut(activation if self.projects(x) else x, train) + y

    def activation(self, i: int, x: Array, train: bool) -> Array:
        """What stands before convolution i."""
        return relu_of_norm(self.norm(f"bn{i}", train)(x))

    def weight_layer(self, i: int, x: Array, train: bool, *conv: int, last: bool = False) -> Array:
        x = x if i == 1 else self.activation(i, x, train)
        return self.conv(f"conv{i}", *conv)(x)

    def projection(self, x: Array, train: bool) -> Array:
        return self.conv("shortcut_conv", self.features, 1, self.spec.strides)(x)


class ReluOnlyPreactivation(FullPreactivation):
    """`shortcut + f`, each layer of f being ReLU, convolution, BN: figure 4(d)."""

    def activation(self, i: int, x: Array, train: bool) -> Array:
        return relu(x)

    def weight_layer(self, i: int, x: Array, train: bool, *conv: int, last: bool = False) -> Array:
        y = super().weight_layer(i, x, train, *conv)
        return self.norm(f"bn{i}", train, last)(y)

    def projection(self, x: Array, train: bool) -> Array:
        return self.norm("bn_shortcut", train)(super().projection(x, train))


# `config.model.variant`: a new block is a class above and a row here.
VARIANTS: dict[str, type[ResidualBlock] | None] = {
    "none": None,
    "bn_after_addition": BnAfterAddition,
    "relu_before_addition": ReluBeforeAddition,
    "relu_only_preactivation": ReluOnlyPreactivation,
    "exclusive_gating": ExclusiveGating,
    "shortcut_gating": ShortcutGating,
    "dropout_shortcut": DropoutShortcut,
}


def block_class(form: type[ResidualBlock], fields: Any) -> type[ResidualBlock]:
    """The block that the fields of `config.model` ask for, with the convolutions of `form`."""
    scaled = fields.residual and (fields.shortcut_scale, fields.residual_scale) != (1, 1)
    design = FullPreactivation if fields.preactivation else VARIANTS[fields.variant]
    optional = (scaled and ConstantScaling, design, fields.shortcut == "D" and PooledShortcut)
    classes = (*(c for c in optional if c), form)
    return _combined(classes)


@functools.cache  # equal networks must have the same class
def _combined(classes: tuple[type[ResidualBlock], ...]) -> type[ResidualBlock]:
    if len(classes) == 1:
        return classes[0]
    return type("".join(c.__name__ for c in classes), classes, {})
