"""Two forms of a stage's parameters: one subtree per block, or stacked for the scanned loop.

On disk a stage is `block1`, `block2`, …; with `scan_blocks` the running network keeps blocks 2 …
stacked under `blocks`. The functions work on any tree that has the parameters' structure inside
(variables, optimiser state, EMA).
"""

import jax
import jax.numpy as jnp

from models.resnet import MIN_SCANNED_STAGE

STACKED = "blocks"


def unstack_blocks(tree):
    """Turns every stacked stage into one subtree per block; other trees come back unchanged."""
    return _map_dicts(tree, _unstack)


def stack_blocks(tree):
    """Stacks blocks 2 … of every stage that a scanned network would scan."""
    return _map_dicts(tree, _stack)


def _map_dicts(tree, convert):
    return jax.tree.map(
        lambda node: (
            convert({k: _map_dicts(v, convert) for k, v in node.items()})
            if isinstance(node, dict)
            else node
        ),
        tree,
        is_leaf=lambda node: isinstance(node, dict),
    )


def _unstack(node):
    if STACKED not in node:
        return node
    stacked = node[STACKED]
    count = jax.tree.leaves(stacked)[0].shape[0]
    rest = {f"block{i + 2}": jax.tree.map(lambda a, i=i: a[i], stacked) for i in range(count)}
    return {k: v for k, v in node.items() if k != STACKED} | rest


def _stack(node):
    count = sum(1 for i in range(len(node)) if f"block{i + 1}" in node)
    if count < MIN_SCANNED_STAGE:
        return node
    rest = [node[f"block{i}"] for i in range(2, count + 1)]
    return {"block1": node["block1"], STACKED: jax.tree.map(lambda *a: jnp.stack(a), *rest)}
