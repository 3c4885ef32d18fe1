"""The mesh of devices that a run computes on, and placing arrays on it."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"  # the one axis: each device computes a part of the batch


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis over the given devices, or over all of them in the order of their ids."""
    return Mesh(np.array(devices or jax.devices()), (DATA_AXIS,))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Places a tree of host arrays on every device of the mesh."""
    sharding = NamedSharding(mesh, PartitionSpec())

    def place(x):
        x = jnp.asarray(x) if not hasattr(x, "dtype") else x
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(place, tree)


def to_host(tree: Any) -> Any:
    """NumPy copies of a tree of arrays that are whole on this process (replicated over devices)."""

    def copy(x):
        return np.asarray(x.addressable_data(0) if isinstance(x, jax.Array) else x)

    return jax.tree.map(copy, tree)
