"""An operation with a form of its own for some platforms; how it is derived stands beside it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir


def primitive(name: str, default: Callable[..., Any], **forms: Callable[..., Any]) -> Primitive:
    """The operation `default(*arrays, **parameters)`.

    Args:
      forms: what computes it on a platform ('cpu', 'cuda', …) instead; the same to rounding.
    """

    def shape(x, *more, **parameters):
        plain = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (x, *more))
        out = jax.eval_shape(partial(default, **parameters), *plain)
        return x.update(shape=out.shape, dtype=out.dtype)

    def vmapped(arguments, axes, **parameters):
        return jax.vmap(partial(default, **parameters), in_axes=axes)(*arguments), 0

    made = Primitive(name)
    made.def_impl(default)
    made.def_abstract_eval(shape)
    batching.primitive_batchers[made] = vmapped
    mlir.register_lowering(made, mlir.lower_fun(default, multiple_results=False))
    for platform, form in forms.items():
        rule = mlir.lower_fun(form, multiple_results=False)
        mlir.register_lowering(made, rule, platform=platform)
    return made
