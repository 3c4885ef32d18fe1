"""The stem's maximum against Flax's `max_pool` and XLA's gradient of it."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.ops.pool import max_pool_3x3, mean_pool_2x2

SHAPES = [(2, 8, 9, 3), (1, 1, 1, 2), (2, 2, 3, 1), (1, 7, 7, 2), (2, 16, 5, 4)]


def reference(x, padded=True):
    padding = [(1, 1) if padded else (0, 1 - size % 2) for size in x.shape[1:3]]
    return nn.max_pool(x, (3, 3), (2, 2), padding)


def value_and_gradient(f, x, padded):
    y, pull = jax.vjp(lambda x: f(x, padded), x)
    dy = jax.random.normal(jax.random.key(1), y.shape).astype(y.dtype)
    return y, pull(dy)[0]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradient_are_xlas_also_among_equal_entries(shape, padded, dtype):
    if not padded and min(shape[1:3]) < 2:
        shape = (shape[0], 2, 2, shape[3])  # Caffe's pooling of one pixel has no window
    x = jax.nn.relu(jnp.round(jax.random.normal(jax.random.key(0), shape) * 2)).astype(dtype)
    got, expected = (
        jax.jit(value_and_gradient, static_argnums=(0, 2))(f, x, padded)
        for f in (max_pool_3x3, reference)
    )
    np.testing.assert_array_equal(got[0], expected[0])
    assert got[1].dtype == x.dtype
    tolerance = 1e-6 if dtype == "float32" else 2e-2  # up to four windows meet in an entry
    np.testing.assert_allclose(
        *(np.asarray(a[1], np.float32) for a in (got, expected)), rtol=tolerance, atol=tolerance
    )


@pytest.mark.slow
def test_of_equal_entries_the_first_gets_the_gradient():
    dx = jax.grad(lambda x: max_pool_3x3(x, padded=False).sum())(jnp.ones((1, 3, 3, 1)))
    np.testing.assert_array_equal(dx[0, :, :, 0], [[1, 0, 0], [0, 0, 0], [0, 0, 0]])


@pytest.mark.slow
def test_under_vmap_and_remat():
    x = jax.random.normal(jax.random.key(0), (3, 2, 6, 7, 2))
    found, expected = (
        jax.vmap(jax.grad(lambda x, f=f: jnp.sin(f(x)).sum()))(x)
        for f in (jax.checkpoint(max_pool_3x3), reference)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_every_platform_gets_selections_and_no_sum_in_free_order():
    x = jnp.ones((2, 8, 8, 3))
    run = jax.jit(lambda x: value_and_gradient(max_pool_3x3, x, True)).trace(x)
    for platform in ("cpu", "cuda", "tpu"):
        text = run.lower(lowering_platforms=(platform,)).as_text()
        found = set(re.findall(r"\bstablehlo\.(\w+)", text))
        assert not found & {"reduce_window", "select_and_scatter", "scatter", "case"}


@pytest.mark.slow
def test_forward_mode_and_second_derivatives_are_xlas():
    x = jax.random.normal(jax.random.key(0), (1, 5, 6, 2))
    for f in (jax.jvp, lambda f, x, t: jax.jvp(jax.grad(lambda x: jnp.sin(f(x)).sum()), x, t)):
        got, expected = f(max_pool_3x3, (x,), (x,)), f(reference, (x,), (x,))
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("row", range(3))
@pytest.mark.parametrize("column", range(3))
def test_a_nan_anywhere_in_a_window_passes_through(row, column):
    x = jnp.ones((1, 3, 3, 1)).at[0, row, column, 0].set(jnp.nan)
    assert jnp.isnan(max_pool_3x3(x, padded=False)).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_mean_of_2x2_pixels_leaves_out_what_lies_beyond_the_edge(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    _, height, width, _ = shape
    padding = ((0, height % 2), (0, width % 2))
    expected = nn.avg_pool(x, (2, 2), (2, 2), padding, count_include_pad=False)
    np.testing.assert_allclose(mean_pool_2x2(x), expected, rtol=1e-6, atol=1e-6)
