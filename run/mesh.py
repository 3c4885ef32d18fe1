"""The mesh of devices that a run computes on, and placing arrays on it."""

import collections
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from errors import UserError

DATA_AXIS = "data"  # the one axis: each device computes a part of the batch


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis over the given devices, or over all of them, process after process.

    The ids alone are no order: host 0 of a TPU v5e 4×4 has the devices 0, 1, 4 and 5. Process after
    process, the rows of a batch that a process computes lie on its own devices, and the position of
    each image is that of a run of one process.

    Raises:
      UserError: the processes have different numbers of devices.
    """
    ordered = sorted(devices or jax.devices(), key=lambda d: (d.process_index, d.id))
    counts = collections.Counter(device.process_index for device in ordered)
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"process {process}: {n}" for process, n in counts.items())
        raise UserError(
            f"the processes of this run have different numbers of devices ({listed}); expected the "
            "same for each. --local_device_ids says which devices of its host a process takes."
        )
    return Mesh(np.array(ordered), (DATA_AXIS,))


def whole_batch(size: int, mesh: Mesh) -> int:
    """The smallest multiple of the mesh's devices that is at least `size`."""
    return -(-size // mesh.size) * mesh.size


def positions(count: int) -> jax.Array:
    """Positions in the global batch of this device's `count` images (inside shard_map)."""
    return jax.lax.axis_index(DATA_AXIS) * count + jnp.arange(count)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Places a tree of host arrays on every device of the mesh."""
    sharding = NamedSharding(mesh, P())

    def place(x):
        x = jnp.asarray(x) if not hasattr(x, "dtype") else x
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(place, tree)


def compiled_by_rows(f: Callable[..., Any], mesh: Mesh) -> Any:
    """`f(variables, normalization, rows)` compiled: each device has its rows, and all the rest."""
    sharded = jax.shard_map(
        f,
        mesh=mesh,
        in_specs=(P(), P(), P(DATA_AXIS)),
        out_specs=P(DATA_AXIS),
        check_vma=False,
    )
    return jax.jit(sharded)


def local_rows(tree: Any) -> Any:
    """The rows of arrays that lie on this process's devices, in order, as NumPy arrays."""

    def rows(x):
        shards = sorted(x.addressable_shards, key=lambda shard: shard.index[0].start or 0)
        return np.concatenate([np.asarray(shard.data) for shard in shards])

    return jax.tree.map(rows, tree)


def to_host(tree: Any) -> Any:
    """NumPy copies of a tree of arrays that are whole on this process (replicated over devices)."""

    def copy(x):
        return np.asarray(x.addressable_data(0) if isinstance(x, jax.Array) else x)

    return jax.tree.map(copy, tree)
