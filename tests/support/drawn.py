"""What a run would train on: batches drawn as the compiled step draws them."""

import functools

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from input_pipeline import open_data


def draw(config, mesh, steps, data=None):
    """Some global batches of the resident set of a config, drawn in the given order of steps."""
    data = data or open_data(config, mesh)

    @jax.jit
    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(P(), P(), P()),
        out_specs=(P(), P("data")),
        check_vma=False,
    )
    def one(order, step, arrays):
        return data.draw(order, step, arrays)

    order, batches = data.initial_order(), []
    for step in steps:
        order, batch = one(order, step, next(data.feed(0)))
        batches.append(jax.tree.map(np.asarray, batch))
    return batches
