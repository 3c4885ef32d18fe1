"""The rectifier."""

import jax
import jax.numpy as jnp


def relu(x: jax.Array) -> jax.Array:
    """`max(x, 0)` of any shape; the derivative at 0 is 0; NaN passes through, also backwards."""
    # As a selection, a function of two arrays: XLA:CPU would compute a maximum again, and with it
    # the sums of all blocks before it, in every consumer that it can.
    return jnp.where(x <= 0, jnp.zeros_like(x), x)
