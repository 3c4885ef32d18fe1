"""The order of devices on TPU slices: each process's rows are its own, as in a run of one process.

The layouts are those that libtpu 0.0.48 describes (`jax.experimental.topologies`): chips are
counted along x, then y, then z, cores within a chip first; a host has a box of 2×2×1 chips.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.feed import padded_batches
from data.keys import Purpose, example_keys, key_for
from errors import UserError
from run.mesh import make_mesh, whole_batch

SLICES = {  # name: chips along x, y, z, and the devices of a chip
    "v2-32": (4, 4, 1, 2),
    "v3-128": (8, 8, 1, 2),
    "v4-32, two devices a chip": (2, 2, 4, 2),
    "v4-128": (4, 4, 4, 1),
    "v5p-256": (4, 4, 8, 1),
    "v5e 2x4": (2, 4, 1, 1),
    "v5e 4x4": (4, 4, 1, 1),
    "v5e 16x16": (16, 16, 1, 1),
    "v6e 4x8": (4, 8, 1, 1),
    "v6e 8x8": (8, 8, 1, 1),
    "v6e 16x16": (16, 16, 1, 1),
}
IMAGES_PER_DEVICE = 2


@dataclasses.dataclass(frozen=True)
class Device:
    """As much of a JAX device as its place needs."""

    id: int
    process_index: int


def devices_of(x, y, z, cores):
    """The devices of a slice in the order of their ids."""
    hosts_x, hosts_y = -(-x // 2), -(-y // 2)
    devices = []
    for chip in range(x * y * z):
        at_x, at_y, at_z = chip % x, chip // x % y, chip // (x * y)
        host = at_x // 2 + hosts_x * (at_y // 2 + hosts_y * at_z)
        devices += [Device(chip * cores + core, host) for core in range(cores)]
    return devices


def ids_of_host(devices, host):
    return [device.id for device in devices if device.process_index == host]


def test_layouts_as_libtpu_describes_them():
    layouts = {name: devices_of(*shape) for name, shape in SLICES.items()}
    assert ids_of_host(layouts["v5e 4x4"], 0) == [0, 1, 4, 5]
    assert ids_of_host(layouts["v5e 4x4"], 3) == [10, 11, 14, 15]
    assert ids_of_host(layouts["v2-32"], 1) == [4, 5, 6, 7, 12, 13, 14, 15]
    assert ids_of_host(layouts["v4-32, two devices a chip"], 1) == [8, 9, 10, 11, 12, 13, 14, 15]
    assert ids_of_host(layouts["v5p-256"], 3) == [10, 11, 14, 15]
    assert ids_of_host(layouts["v6e 16x16"], 2) == [4, 5, 20, 21]
    hosts = {name: len({d.process_index for d in layout}) for name, layout in layouts.items()}
    assert (min(hosts.values()), max(hosts.values())) == (2, 64)
    assert hosts["v2-32"] == hosts["v4-32, two devices a chip"] == 4


def rows_by_device(monkeypatch, ordered, images):
    """The rows of one global batch as the devices of a mesh hold them, in the mesh's order.

    Process p reads its part of the batch and places it on its own devices, in their order.
    """
    processes = sorted({device.process_index for device in ordered})
    monkeypatch.setattr(jax, "process_count", lambda: len(processes))
    parts = {}
    for process in processes:
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        batch = next(
            padded_batches({"image": images, "label": np.arange(len(images))}, len(images))
        )
        mine = [device for device in ordered if device.process_index == process]
        parts |= dict(zip(mine, np.split(batch["label"], len(mine)), strict=True))
    return [parts[device] for device in ordered]


def keys_at(positions):
    """The keys of a step's images at these positions; of one shape, so that it compiles once."""
    padded = jnp.asarray(np.resize(positions, 512))
    keys = jax.random.key_data(example_keys(key_for(0, Purpose.AUGMENT, 3), padded))
    return np.asarray(keys)[: len(positions)]


@pytest.mark.parametrize("name", SLICES)
def test_rows_keys_and_bn_groups_equal_those_of_one_process(name, monkeypatch):
    devices = devices_of(*SLICES[name])
    shuffled = np.random.default_rng(0).permutation(len(devices))
    mesh = make_mesh([devices[i] for i in shuffled])
    images = np.zeros((IMAGES_PER_DEVICE * len(devices), 1, 1, 1), np.uint8)
    held = rows_by_device(monkeypatch, list(mesh.devices), images)
    expected = np.arange(len(images)).reshape(len(devices), IMAGES_PER_DEVICE)
    np.testing.assert_array_equal(held, expected)  # the groups that BN sees, in the batch's order
    # The step gives the image at `axis_index · local + row` that position's key.
    np.testing.assert_array_equal(keys_at(np.concatenate(held)), keys_at(np.arange(len(images))))


def test_in_the_order_of_the_ids_rows_would_land_on_other_positions(monkeypatch):
    """What the order by process mends."""
    devices = devices_of(*SLICES["v5e 4x4"])
    held = rows_by_device(monkeypatch, devices, np.zeros((16, 1, 1, 1), np.uint8))
    assert np.concatenate(held).tolist() != list(range(16))
    assert [d.id for d in make_mesh(devices).devices[:4]] == [0, 1, 4, 5]


def test_processes_with_different_numbers_of_devices_are_refused():
    with pytest.raises(UserError, match=r"process 0: 1, process 1: 3.*--local_device_ids"):
        make_mesh([Device(0, 0), *(Device(i, 1) for i in (1, 2, 3))])


@pytest.mark.parametrize(("size", "expected"), [(1, 2), (2, 2), (3, 4), (256, 256)])
def test_a_batch_grows_to_a_multiple_of_the_devices(size, expected):
    assert whole_batch(size, make_mesh()) == expected
