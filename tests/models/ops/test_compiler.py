"""The option for a CPU: used where it is known, in nobody's way elsewhere."""

import subprocess
import sys

import jax
import pytest

from models.ops import compiler


@pytest.fixture
def asked_again():
    compiler.compiler_options.cache_clear()
    yield
    compiler.compiler_options.cache_clear()


def test_options_compile(asked_again):
    f = jax.jit(lambda x: 2 * x, compiler_options=compiler.compiler_options())
    assert f(3.0) == 6


@pytest.mark.parametrize("name", [*compiler.CPU_OPTIONS, "xla_cpu_no_such_option"])
def test_an_xla_that_does_not_know_the_option_runs_without(monkeypatch, asked_again, name):
    monkeypatch.setattr(compiler, "CPU_OPTIONS", {name: "NO_SUCH_LIBRARY"})
    assert compiler.compiler_options() == {}


def test_other_platforms_get_no_option(monkeypatch, asked_again):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compiler.compiler_options() == {}


def test_no_backend_starts_at_import():
    code = (
        "import training.step\n"
        "from jax._src import xla_bridge; assert not xla_bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
