"""`jax.jit` with the compiler option that convolutions on a CPU need.

XLA:CPU has two libraries of convolutions and prefers YNNPACK's, which runs on one core where layers
are small. Without it Eigen's run on all (`benchmarks/step_time.md`). Products and sums stay
YNNPACK's.
"""

import functools

import jax
import jax.numpy as jnp

# The value replaces the default, these two and LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION. The
# spelling `-individual_convolution` is that of the environment variable XLA_FLAGS only.
CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": (
        "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    )
}


def jit(fun, **jit_options):
    """`jax.jit(fun, **jit_options)`, compiled with `CPU_OPTIONS` on a CPU whose XLA knows them.

    The result has the methods of jax.jit's (`lower`, `trace`, …). Inside other transformations
    (jit, grad, vmap, scan, …) it is plain `jax.jit`, since JAX takes options outermost only. The
    backend starts at the first call, not here.
    """
    return _Jitted(fun, jit_options)


class _Jitted:
    def __init__(self, fun, options):
        self._fun, self._options = fun, options
        functools.update_wrapper(self, fun)

    @functools.cached_property
    def _inner(self):
        return jax.jit(self._fun, **self._options)

    @functools.cached_property
    def _outer(self):
        options = cpu_options() | (self._options.get("compiler_options") or {})
        return jax.jit(self._fun, **self._options | {"compiler_options": options or None})

    def __call__(self, *args, **kwargs):
        jitted = self._inner if _traced(args, kwargs) else self._outer
        return jitted(*args, **kwargs)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._outer, name)


@functools.cache
def cpu_options():
    """`CPU_OPTIONS` if the backend is a CPU whose compiler takes them, else {}."""
    if jax.default_backend() != "cpu":
        return {}
    with jax.ensure_compile_time_eval():
        program = jax.jit(lambda x: x, compiler_options=CPU_OPTIONS)
        try:
            program.lower(jax.ShapeDtypeStruct((), "float32")).compile()
        except jax.errors.JaxRuntimeError:  # "No such compile option", "not a valid enum value"
            return {}
    return CPU_OPTIONS


def _traced(args, kwargs):
    """Whether a transformation is at work: it shows in an argument, or in any new array."""
    return any(
        isinstance(leaf, jax.core.Tracer)
        for leaf in (*jax.tree.leaves((args, kwargs)), jnp.zeros(()))
    )
