"""`jit` with the option for a CPU: set where it is known, in nobody's way elsewhere."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models.ops.jit as ops_jit
from models.ops.jit import jit


def double(x):
    """Twice x."""
    return jnp.sum(2 * x**2)


def test_it_is_jax_jit():
    f = jit(double, donate_argnums=())
    x = jnp.arange(3.0)
    assert f(x) == 10
    assert f.__doc__ == "Twice x."
    assert f.lower(x).compile()(x) == 10
    assert f.trace(x).jaxpr.out_avals[0].shape == ()
    assert jit(lambda x, n: x * n, static_argnums=1)(2.0, 3) == 6
    assert jit(lambda x, *, n: x * n, static_argnames="n")(2.0, n=3) == 6


def test_inside_of_every_transformation_it_is_plain_jit():
    f, x = jit(double), jnp.arange(3.0)
    xs = jnp.stack([x, 2 * x])
    np.testing.assert_array_equal(jax.grad(f)(x), 4 * x)
    np.testing.assert_array_equal(jax.hessian(f)(x), 4 * np.eye(3))
    np.testing.assert_array_equal(jax.vmap(f)(xs), [10, 40])
    np.testing.assert_array_equal(jax.lax.map(f, xs), [10, 40])
    assert jax.jvp(f, (x,), (x,)) == (10, 20)
    assert jax.jit(lambda x: f(x) + 1)(x) == 11
    assert jax.jit(lambda: f(np.arange(3.0, dtype=np.float32)) + 1)() == 11  # only constants
    assert jit(lambda x: f(x) + 1)(x) == 11
    assert jax.eval_shape(f, x).shape == ()
    jax.make_jaxpr(f)(x)
    with jax.disable_jit():
        assert f(x) == 10


@pytest.fixture
def asked_again():
    ops_jit.cpu_options.cache_clear()
    yield
    ops_jit.cpu_options.cache_clear()


def test_an_xla_that_does_not_know_the_option_runs_without(monkeypatch, asked_again):
    monkeypatch.setattr(ops_jit, "CPU_OPTIONS", {"xla_cpu_no_such_option": "1"})
    assert ops_jit.cpu_options() == {}
    assert jit(double)(jnp.arange(3.0)) == 10


def test_an_xla_that_does_not_know_the_value_runs_without(monkeypatch, asked_again):
    (name,) = ops_jit.CPU_OPTIONS
    monkeypatch.setattr(ops_jit, "CPU_OPTIONS", {name: "NO_SUCH_LIBRARY"})
    assert ops_jit.cpu_options() == {}


def test_other_platforms_get_no_option(monkeypatch, asked_again):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert ops_jit.cpu_options() == {}


def test_the_caller_s_own_options_stay():
    f = jit(double, compiler_options={"xla_backend_optimization_level": 0})
    assert f(jnp.arange(3.0)) == 10


def test_no_backend_starts_before_the_first_call():
    code = (
        "from models.ops.jit import jit; f = jit(lambda x: x + 1)\n"
        "import jax; from jax.extend import backend as _\n"
        "from jax._src import xla_bridge; assert not xla_bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
