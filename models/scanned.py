"""Two forms of a stage's parameters: one subtree per block, or stacked for the scanned loop.

On disk a stage is `block1`, `block2`, …; with `scan_blocks` the running network keeps its equal
blocks, all or all but the first, stacked under `blocks`. The functions work on any tree that has
the parameters inside (variables, optimiser state, EMA, a whole train state).
"""

import jax
import jax.numpy as jnp

from models.resnet import MIN_SCANNED_STAGE

STACKED = "blocks"


def unstack_blocks(tree):
    """Turns every stacked stage into one subtree per block; other trees come back unchanged."""
    return jax.tree.map(
        lambda node: _unstack(node) if _is_stage(node) else node, tree, is_leaf=_is_stage
    )


def stack_blocks(tree):
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
