"""A stage's blocks one by one or as a loop, and the two forms of its parameters.

Compiling a loop takes as long as compiling one block. On disk a stage is `block1`, `block2`, …;
with `scan_blocks` the running network keeps its equal blocks, all or all but the first, stacked
under `blocks`. `stack_blocks` and `unstack_blocks` work on any tree that has the parameters inside
(variables, optimiser state, EMA, a whole train state).
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.block import ResidualBlock
from models.block_spec import BlockSpec

STACKED = "blocks"
MIN_SCANNED_STAGE = 3  # blocks; a loop over fewer than two saves nothing
# Arrays of its input's size that a block of a recomputed segment holds; of 3, 4, 5, 7 and 8 the one
# that needs least memory in ResNet-110 to -1202 (`benchmarks/memory.md`).
KEPT_PER_BLOCK = 3


def segment_length(remat: str, blocks: int) -> int:
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
      block: class of the blocks.
      spec: of the first block; `spec.following()` is that of the others.
      size: number of blocks.
      remat: what the backward pass computes again instead of keeping: 'none', each 'block', or
        'segments' of several (`segment_length`), whose peak memory grows with √depth.
    """

    block: type[ResidualBlock]
    spec: BlockSpec
    size: int
    scan_blocks: bool = False
    remat: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[batch, height, width, channels]` to `[batch, ⌈height/s⌉, ⌈width/s⌉, features]`."""
        if not (self.scan_blocks and self.size >= MIN_SCANNED_STAGE):
            return self._unrolled(x, 1, self.size, train)
        first = self.block(self.spec, parent=None)
        if self.spec == self.spec.following() and not first.changes_shape(x):
            return self._scanned(x, self.size, train)
        return self._scanned(self._unrolled(x, 1, 1, train), self.size - 1, train)

    def _unrolled(self, x, start, stop, train):
        def run(_, x, start, stop):
            for i in range(start, stop + 1):
                spec = self.spec if i == 1 else self.spec.following()
                x = self.block(spec, name=f"block{i}")(x, train)
            return x

        if self.remat == "none":
            return run(self, x, start, stop)
        length = segment_length(self.remat, self.size)
        for i in range(start, stop + 1, length):
            segment = functools.partial(run, start=i, stop=min(i + length - 1, stop))
            x = nn.remat(segment)(self, x)
        return x

    def _scanned(self, x, count, train):
        block = self.block(self.spec.following(), parent=None)
        sample = jnp.zeros_like(x)  # compiled, nothing of it is computed

        def init(key):
            return jax.vmap(lambda k: block.init(k, sample, train=False))(
                jax.random.split(key, count)
            )

        params = self.param(STACKED, lambda key: init(key)["params"])
        stats = self.variable(
            "batch_stats", STACKED, lambda: init(jax.random.key(0))["batch_stats"]
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


def unstack_blocks(tree: Any) -> Any:
    """Turns every stacked stage into one subtree per block; other trees come back unchanged."""
    return jax.tree.map(
        lambda node: _unstack(node) if _is_stage(node) else node, tree, is_leaf=_is_stage
    )


def stack_blocks(tree: Any) -> Any:
    """Stacks the equal blocks of every stage that a scanned network would scan."""
    # By name: a stage's statistics may have equal shapes where its kernels, elsewhere, differ.
    unequal = {
        path[-1]
        for path, node in jax.tree.leaves_with_path(tree, is_leaf=_is_stage)
        if _is_stage(node) and _shapes(node, "block1") != _shapes(node, "block2")
    }
    return jax.tree.map_with_path(
        lambda path, node: _stack(node, path[-1] in unequal) if _is_stage(node) else node,
        tree,
        is_leaf=_is_stage,
    )


def _is_stage(node):
    return isinstance(node, dict) and ("block1" in node or STACKED in node)


def _shapes(stage, block):
    return jax.tree.map(jnp.shape, stage.get(block))


def _unstack(stage):
    if STACKED not in stage:
        return stage
    stacked, first = stage[STACKED], {k: v for k, v in stage.items() if k != STACKED}
    count = jax.tree.leaves(stacked)[0].shape[0]
    return first | {
        f"block{len(first) + 1 + i}": jax.tree.map(lambda a, i=i: a[i], stacked)
        for i in range(count)
    }


def _stack(stage, keep_first):
    if len(stage) < MIN_SCANNED_STAGE:
        return stage
    names = [f"block{i + 1}" for i in range(len(stage))]
    first = {"block1": stage["block1"]} if keep_first else {}
    rest = [stage[name] for name in names[len(first) :]]
    return first | {STACKED: jax.tree.map(lambda *a: jnp.stack(a), *rest)}
