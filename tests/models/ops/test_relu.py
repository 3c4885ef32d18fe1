"""The rectifier against Flax's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.ops.relu import relu, relu_of_norm


@pytest.mark.slow
def test_value_and_derivatives_are_flaxs():
    x = jnp.asarray([-jnp.inf, -2.0, -0.0, 0.0, 3.0, jnp.inf])
    ones = jnp.ones_like(x)
    for f in (relu, jax.jit(relu), jax.vmap(relu), relu_of_norm):
        (y, pull), (expected, their_pull) = jax.vjp(f, x), jax.vjp(nn.relu, x)
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(pull(x)[0], their_pull(x)[0])
        np.testing.assert_array_equal(
            jax.jvp(f, (x,), (ones,))[1], jax.jvp(nn.relu, (x,), (ones,))[1]
        )


def test_a_nan_passes_in_both_directions():
    x = jnp.asarray([jnp.nan, -1.0])
    y, pull = jax.vjp(relu, x)
    np.testing.assert_array_equal(jnp.isnan(y), [True, False])
    np.testing.assert_array_equal(pull(x)[0], [jnp.nan, 0.0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_type_stays(dtype):
    y, pull = jax.vjp(relu, jnp.ones((2, 3), dtype))
    assert y.dtype == pull(y)[0].dtype == dtype


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_end_of_a_block_is_the_rectified_sum_with_all_its_derivatives(dtype):
    x = jnp.asarray([[-jnp.inf, -2.0, -0.0, 1.0, 3.0, jnp.inf, jnp.nan, 1.0]], dtype)
    y = jnp.asarray([[1.0, 2.0, 0.0, -1.0, 3.0, 1.0, 1.0, -3.0]], dtype)

    def plain(x, y):
        return relu_of_norm(x + y)

    def relu_of_sum(x, y):
        return relu(x + y)

    def same(a, b):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(*(np.asarray(c, np.float32) for c in (a, b)))

    for f in (
        relu_of_sum,
        jax.jit(relu_of_sum),
        jax.vmap(relu_of_sum),
        jax.checkpoint(relu_of_sum),
    ):
        (got, pull), (expected, their_pull) = jax.vjp(f, x, y), jax.vjp(plain, x, y)
        same(got, expected)
        for a, b in zip(pull(got), their_pull(expected), strict=True):
            same(a, b)
        same(*(jax.jvp(g, (x, y), (x, y))[1] for g in (f, plain)))

    def second(f):
        def value(x):
            return jnp.sum(jnp.sin(f(x, 2 * x)))

        return jax.jvp(jax.grad(value), (x[:, 1:5],), (y[:, 1:5],))[1]

    same(second(relu_of_sum), second(plain))
