"""Values inside `shard_map`: over which mesh axes each of them varies."""

import jax
from jax import lax


def vary_alike(*arrays):
    """Marks each array as varying over all mesh axes of `shard_map` that any of them varies over.

    A gradient rule must return what varies as its argument does; the transpose of the mark on a
    parameter is the sum of the devices' gradients.
    """
    varying = [jax.typeof(a).manual_axis_type.varying for a in arrays]
    missing = [tuple(frozenset().union(*varying) - axes) for axes in varying]
    return [
        lax.pcast(a, axes, to="varying") if axes else a
        for a, axes in zip(arrays, missing, strict=True)
    ]
