"""What `jax.jit` is told of a program with convolutions."""

import functools

import jax

# XLA:CPU has two libraries of convolutions and prefers YNNPACK's, which runs on one core where
# layers are small. Without it, Eigen's run on all; products and sums stay YNNPACK's. The value
# replaces the default, which is these two and LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION.
CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": (
        "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    )
}


@functools.cache
def compiler_options() -> dict[str, str]:
    """Options for `jax.jit(…, compiler_options=…)` of a whole step, none inside another `jit`.

    Empty on an accelerator, and where this version's compiler does not know the option.
    """
    if jax.default_backend() != "cpu":
        return {}
    program = jax.jit(lambda x: x, compiler_options=CPU_OPTIONS)
    try:
        program.lower(jax.ShapeDtypeStruct((), "float32")).compile()
    except jax.errors.JaxRuntimeError:  # "No such compile option", "not a valid enum value"
        return {}
    return CPU_OPTIONS
