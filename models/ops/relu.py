"""The rectifier."""

import jax
import jax.numpy as jnp


def relu(x: jax.Array) -> jax.Array:
    """`max(x, 0)` of any shape; the derivative at 0 is 0; NaN passes through, also backwards."""
    # As a selection, a function of two arrays: XLA:CPU would compute a maximum again, and with it
    # the sums of all blocks before it, in every consumer that it can.
    return jnp.where(x <= 0, jnp.zeros_like(x), x)


@jax.custom_jvp
def relu_of_sum(x: jax.Array, y: jax.Array) -> jax.Array:
    """`relu(x + y)` of two arrays of one shape, as a block ends."""
    return relu(x + y)


@relu_of_sum.defjvp
def _(primals, tangents):
    # Where the sum was positive stands in the result, which is kept for the next convolution, too:
    # one array to read instead of two. Behind BN, `relu` is better: BN's input is read anyway.
    result = relu_of_sum(*primals)
    tangent = jnp.add(*tangents)
    return result, jnp.where(result <= 0, jnp.zeros_like(tangent), tangent)
