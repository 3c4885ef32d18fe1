"""Blocks with random variables, and the two terms that they add."""

import jax
import jax.numpy as jnp
import numpy as np


def random_variables(block, x):
    """Variables of a block for images x in which no number is the initial 0 or 1."""
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x, False))
    random = np.random.RandomState(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(random.uniform(0.1, 0.9, leaf.shape) - 0.4 * (leaf.ndim == 4)),
        shapes,
    )


def terms(block, variables, x, train=False):
    """What the block's methods f, shortcut and g (a gate) return for x, and its "output"."""

    @jax.jit
    def run(variables, x):
        return block.apply(
            variables,
            x,
            train,
            capture_intermediates=lambda _, method: method in ("f", "shortcut", "g"),
            mutable=["intermediates", "batch_stats"],
            rngs={"dropout": jax.random.key(2)},
        )

    output, state = run(variables, x)
    kept = {name: np.asarray(kept[-1]) for name, kept in state["intermediates"].items()}
    return kept | {"output": np.asarray(output)}
