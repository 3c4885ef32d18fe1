"""The region proposal network (Ren et al. 2015, section 3.1) on one map or a pyramid's levels."""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from detection import anchors, boxes, nms
from detection.layers import Layer
from models.ops.conv import conv
from models.padded import OwnSizes

FPN = tuple((size,) for size in anchors.FPN_SIZES)  # sizes of the anchors of each level


class Limits(NamedTuple):
    """How proposals are chosen; torchvision's numbers in testing.

    Attributes:
      before: candidates of each level, by score.
      after: proposals of an image.
      threshold: IoU above which non-maximum suppression drops the lower score.
      side: shortest side of a proposal, in pixels.
    """

    before: int = 1000
    after: int = 1000
    threshold: float = 0.7
    side: float = 1e-3


class RPNHead(nn.Module):
    """A score and a box of every anchor, by the same layers on every level.

    Attributes:
      convs: 3×3 layers before them.
      count: of the anchors at every position.
    """

    convs: int = 1
    count: int = len(anchors.RATIOS)

    @nn.compact
    def __call__(self, levels: Sequence[Array]) -> list[tuple[Array, Array]]:
        """For each level `[b, h, w, c]`: logits `[b, h, w, a]` and deltas `[b, h·w·a, 4]`."""
        width, count = levels[0].shape[-1], self.count
        normal = nn.initializers.normal(0.01)  # Ren et al. 2015, section 3.1.3
        layers = [
            Layer(width, 3, norm=False, kernel_init=normal, name=f"layer{i + 1}")
            for i in range(self.convs)
        ]
        scores = conv(count, 1, use_bias=True, kernel_init=normal, name="scores")
        deltas = conv(4 * count, 1, use_bias=True, kernel_init=normal, name="deltas")
        found = []
        for x in levels:
            for layer in layers:
                x = layer(x)
            found.append((scores(x), deltas(x).reshape(len(x), -1, 4)))
        return found


class Level(NamedTuple):
    """What the head says of the anchors of one level, or of several together.

    Attributes:
      logits: `[batch, n]`; -inf beyond an image.
      deltas: `[batch, n, 4]`, of the
      anchors: `[batch, n, 4]`.
    """

    logits: Array
    deltas: Array
    anchors: Array


def joined(levels: Sequence[Level]) -> Level:
    """The anchors of several levels as those of one."""
    return Level(*(jnp.concatenate(parts, 1) for parts in zip(*levels, strict=True)))


def located(
    found: Sequence[tuple[Array, Array]],
    own: OwnSizes,
    padded: Array,
    anchor_sizes: Sequence[Sequence[float]] = FPN,
    ratios: Sequence[float] = anchors.RATIOS,
) -> list[Level]:
    """The anchors of each level beside what the head says of them.

    Args:
      found: of `RPNHead`.
      own: what of the levels belongs to an image.
      padded: height and width of each image, int32 `[batch, 2]`, with the padding that torchvision
        counts to it.
      anchor_sizes: of each level.
      ratios: height / width of anchors.
    """
    levels = []
    for (logits, deltas), sides in zip(found, anchor_sizes, strict=True):
        shape, base = logits.shape[1:3], anchors.base(sides, ratios)
        # As torchvision has it, what an image's padded side is divided into, and not the stride.
        strides = padded // jnp.stack(own.of(logits), 1)
        cells = jax.vmap(lambda s, to=shape, b=base: anchors.grid(to, (s[0], s[1]), b))(strides)
        flat = jnp.where(own.inside(logits), logits, -jnp.inf).reshape(len(logits), -1)
        levels.append(Level(flat, deltas, cells))
    return levels


def proposals(levels: Sequence[Level], sizes: Array, limits: Limits) -> tuple[Array, Array]:
    """The boxes in which an object is likely, the best first.

    Args:
      sizes: height and width of each image, int32 `[batch, 2]`; boxes are cut off there.

    Returns:
      boxes `[batch, limits.after, 4]`, and which of them are any, bool `[batch, limits.after]`.
    """
    candidates = [_candidates(level, limits.before) for level in levels]
    all_boxes, logits = (jnp.concatenate(parts, 1) for parts in zip(*candidates, strict=True))
    of_level = [jnp.full(best.shape[1], i, jnp.int32) for i, (_, best) in enumerate(candidates)]
    whose = jnp.concatenate(of_level)

    def choose(all_boxes: Array, logits: Array, size: Array) -> tuple[Array, Array]:
        clipped = boxes.clip(all_boxes, *size)
        valid = jnp.isfinite(logits) & boxes.large(clipped, limits.side)
        scores = jax.nn.sigmoid(logits)
        index, kept = nms.keep(clipped, scores, valid, limits.threshold, whose, limit=limits.after)
        return clipped[index], kept

    return jax.vmap(choose)(all_boxes, logits, sizes)


def _candidates(level, count):
    """The boxes of the level's best `count` anchors, and their logits (-inf: none)."""
    best, index = jax.lax.top_k(level.logits, min(count, level.logits.shape[1]))
    chosen = (jnp.take_along_axis(x, index[..., None], 1) for x in (level.deltas, level.anchors))
    return boxes.decode(*chosen), best
