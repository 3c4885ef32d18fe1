"""The model that most JAX users start from, for comparison: written with Flax's own layers.

The same networks as `models`, built as Flax's ImageNet example builds its own: `nn.Conv` without
bias, `nn.BatchNorm` (momentum 0.9, ε 1e-5), `nn.max_pool`, a global mean and `nn.Dense`. Depth,
widths, stride positions and shortcuts follow ours, so that both do the same arithmetic; the padding
is Flax's default. It takes the place of ours in the train step: it returns `(logits, {})`.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.block import BottleneckBlock
from models.resnet import architecture


class PeerBlock(nn.Module):
    """A basic or bottleneck residual block of `nn.Conv` and `nn.BatchNorm`."""

    conv: Callable[..., Any]
    norm: Callable[..., Any]
    features: int
    strides: int
    bottleneck: bool
    shortcut: str  # 'A' zero-pads, 'B' projects

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width, strides = self.features, (self.strides, self.strides)
        if self.bottleneck:
            y = nn.relu(self.norm()(self.conv(width, (1, 1), strides)(x)))
            y = nn.relu(self.norm()(self.conv(width, (3, 3))(y)))
            y = self.norm()(self.conv(4 * width, (1, 1))(y))
        else:
            y = nn.relu(self.norm()(self.conv(width, (3, 3), strides)(x)))
            y = self.norm()(self.conv(width, (3, 3))(y))
        if x.shape != y.shape:
            if self.shortcut == "B":
                x = self.norm()(self.conv(y.shape[-1], (1, 1), strides)(x))
            else:
                x = x[:, :: self.strides, :: self.strides]
                x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, y.shape[-1] - x.shape[-1])))
        return nn.relu(x + y)


class PeerResNet(nn.Module):
    """ResNet of `nn.Conv`: images `[batch, height, width, 3]` → float32 logits `[batch, classes]`.

    `depth`, `stem` ('imagenet' or 'cifar'), `shortcut`, `width` and `dtype` are those of
    `models.create`.
    """

    num_classes: int
    depth: int = 50
    stem: str = "imagenet"
    shortcut: str = "B"
    width: int = 64
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, dict]:
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
        )
        if self.stem == "imagenet":
            x = nn.relu(norm()(conv(self.width, (7, 7), (2, 2), padding=[(3, 3), (3, 3)])(x)))
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        else:
            x = nn.relu(norm()(conv(self.width, (3, 3))(x)))
        table = architecture(self.stem, self.depth)
        for stage, size in enumerate(table.stage_sizes):
            for block in range(size):
                x = PeerBlock(
                    conv=conv,
                    norm=norm,
                    features=self.width * 2**stage,
                    strides=2 if stage and not block else 1,
                    bottleneck=table.block is BottleneckBlock,
                    shortcut=self.shortcut,
                )(x)
        return nn.Dense(self.num_classes)(x.astype(jnp.float32).mean((1, 2))), {}
