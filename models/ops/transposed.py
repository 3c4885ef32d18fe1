"""Linear operations whose derivative is computed in another form than the one JAX would find.

An operation may read with a gather, which is fast, where its derivative would be a scatter, which
adds one number after the other.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def linear(
    apply: Callable[[Any, Any], Any],
    transpose: Callable[[Any, Any], Any],
    constants: Any,
    x: Any,
) -> Any:
    """`apply(constants, x)`, linear in x, with `transpose(constants, gradient)` for its derivative.

    Nothing has a derivative by the constants. The functions close over no traced arrays.
    """
    return apply(constants, x)


def _kept(apply, transpose, constants, x):
    return apply(constants, x), constants


def _of_gradient(apply, transpose, constants, gradient):
    return None, transpose(constants, gradient)


linear.defvjp(_kept, _of_gradient)
