"""The rectifier `max(x, 0)`: the derivative at 0 is 0; NaN passes through, also backwards."""

import jax
import jax.numpy as jnp


def relu_of_norm(x: jax.Array) -> jax.Array:
    """ReLU of what BN returns, an array of any shape; backwards, BN's input is read anyway."""
    # As a selection, a function of two arrays: XLA:CPU would compute a maximum again, and with it
    # the sums of all blocks before it, in every consumer that it can.
    return jnp.where(x <= 0, jnp.zeros_like(x), x)


@jax.custom_jvp
def relu(x: jax.Array) -> jax.Array:
    """ReLU of an array of any shape, as a block ends."""
    return relu_of_norm(x)


@relu.defjvp
def _(primals, tangents):
    # Where x was positive stands in the result, which the next convolution keeps, too: one array
    # to read instead of the two that were added.
    (tangent,), result = tangents, relu(*primals)
    return result, jnp.where(result <= 0, jnp.zeros_like(tangent), tangent)
