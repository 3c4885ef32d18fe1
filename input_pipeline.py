"""From config to batches on devices: splits, order, sharding, padding, feeding.

Batch k of a run is a function of (seed, k) alone. Small sets live on the device and are drawn
inside the compiled step (`input_resident`); large ones stream from disk (`input_streamed`). Both
give batches
`{'image': uint8 [batch, height, width, channels], 'label': int32 [batch], 'valid': bool [batch]}`.
"""

import collections
import json
import logging
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from data import device_transforms
from errors import UserError

LOG = logging.getLogger("residual")
DATA_AXIS = "data"
FACTS_FILE = "data.json"
RANGES = {  # of fields that the transforms do not check themselves
    "data.image_size": (1, 2**13),
    "data.num_threads": (0, 2**10),
    "data.prefetch": (0, 2**16),
    "data.max_corrupt_fraction": (0, 1),
    "eval.resize": (1, 2**15),
    "augment.pad": (0, 2**10),
}
ORDER, AUGMENT = range(2)  # purposes folded into the data key


def make_mesh(devices=None):
    """A one-axis mesh `('data',)` over all devices, in the order of their ids."""
    return jax.sharding.Mesh(np.array(devices or jax.devices()), (DATA_AXIS,))


class Facts(NamedTuple):
    """What a checkpoint must know of its data; written to the workdir as `data.json`."""

    dataset: str
    label_names: tuple[str, ...]
    image_shape: tuple[int, int, int]  # height, width, channels of a training image
    normalization: device_transforms.Normalization
    num_train: int

    @property
    def num_classes(self):
        """Width of the head."""
        return len(self.label_names)

    def save(self, workdir):
        """Writes `data.json`; raises UserError when it cannot."""
        fields = self._asdict() | {"normalization": self.normalization.to_dict()}
        path = Path(workdir) / FACTS_FILE
        temporary = path.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps(fields))
            temporary.replace(path)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written ({error}). Free space or make the folder writable, "
                "then run the same command again."
            ) from error

    @classmethod
    def load(cls, workdir):
        """Reads `data.json`; raises UserError when the workdir has none."""
        path = Path(workdir) / FACTS_FILE
        try:
            fields = json.loads(path.read_text())
            return cls(
                dataset=fields["dataset"],
                label_names=tuple(fields["label_names"]),
                image_shape=tuple(fields["image_shape"]),
                normalization=device_transforms.Normalization.from_dict(fields["normalization"]),
                num_train=fields["num_train"],
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: cannot be read ({type(error).__name__}: {error}); "
                "expected the workdir of a run that `python main.py` has started."
            ) from error


def data_key(seed):
    """The root of all randomness in order and augmentation."""
    return jax.random.fold_in(jax.random.key(seed), 1)


def augment_key(seed, step):
    """The key of one step's augmentation; fold in global positions with `example_keys`."""
    return jax.random.fold_in(jax.random.fold_in(data_key(seed), AUGMENT), step)


class Feed:
    """Host batches on their way to the devices, `depth` transfers ahead.

    `wait_seconds` is the time that the loop has waited for the host so far.
    """

    def __init__(self, host_batches, mesh, depth=2):
        self._host = iter(host_batches)
        self._sharding = NamedSharding(mesh, PartitionSpec(DATA_AXIS))
        self._queue = collections.deque()
        self._depth = depth
        self.wait_seconds = 0.0

    def __iter__(self):
        return self

    def __next__(self):
        while len(self._queue) < self._depth:
            start = time.perf_counter()
            try:
                batch = next(self._host)
            except StopIteration:
                break
            finally:
                self.wait_seconds += time.perf_counter() - start
            self._queue.append(self._place(batch))
        if not self._queue:
            raise StopIteration
        return self._queue.popleft()

    def _place(self, batch):
        return {
            k: jax.make_array_from_process_local_data(self._sharding, v) for k, v in batch.items()
        }


def replicate(tree, mesh):
    """Places a tree of host arrays on every device of the mesh."""
    sharding = NamedSharding(mesh, PartitionSpec())

    def place(x):
        x = jnp.asarray(x) if not hasattr(x, "dtype") else x
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(place, tree)


def padded_batches(images, labels, batch_size):
    """This process's part of each batch; the last batch is filled with `valid = False`.

    Args:
      images: uint8 `[number, height, width, channels]`.
      labels: int32 `[number]`.
      batch_size: of the global batch.
    """
    local = batch_size // jax.process_count()
    for start in range(0, len(images), batch_size):
        first = start + jax.process_index() * local
        part = slice(first, min(first + local, start + batch_size))
        image, label = images[part], labels[part]
        missing = local - len(image)
        yield {
            "image": np.pad(image, ((0, missing), (0, 0), (0, 0), (0, 0))),
            "label": np.pad(label, (0, missing)),
            "valid": np.arange(local) < len(image),
        }


def normalization_for(config, images):
    """What `config.data.normalization` names, from uint8 training images if need be."""
    kind = config.data.normalization
    if kind in device_transforms.CONSTANTS:
        return device_transforms.CONSTANTS[kind]
    if kind in ("per_pixel", "per_channel"):
        return device_transforms.Normalization.from_images(images, per_pixel=kind == "per_pixel")
    raise UserError(
        f"data.normalization={kind!r}: expected 'imagenet', 'caffe', 'per_pixel' or 'per_channel'."
    )


def split_of(config, split):
    """The data set's own split behind 'train', 'validation' or 'test'.

    Returns:
      `(name, is_cut)`: with `is_cut` the last `data.validation_size` images are for validation.

    Raises:
      UserError: validation images are asked for in two ways.
    """
    d = config.data
    if d.validation_split and d.validation_size:
        raise UserError(
            f"data.validation_split={d.validation_split!r} and data.validation_size="
            f"{d.validation_size}: set one of the two."
        )
    if split == "test":
        return d.test_split, False
    if split == "validation" and d.validation_split:
        return d.validation_split, False
    return d.train_split, True


def checked_validation_size(size, number):
    """`size` itself; raises UserError unless some of the `number` training images are left."""
    if not 0 <= size < number:
        raise UserError(
            f"data.validation_size={size}: expected 0 … {number - 1}, "
            f"since the training split has {number} images."
        )
    return size


def check_batch_size(name, size, devices, parts=1):
    """Raises UserError unless `size` images divide evenly over devices and accumulation parts."""
    whole = devices * parts
    if size < 1 or size % whole:
        lower = size // whole * whole
        expected = f"{lower} or {lower + whole}" if lower > 0 else f"{whole}"
        raise UserError(
            f"{name}={size} cannot be divided over {devices} device(s)"
            + (f" × {parts} accumulation steps" if parts > 1 else "")
            + f"; the nearest sizes are {expected}."
        )


def _check_fields(config):
    """Raises UserError for a number that no data set could make sense of."""
    for name, (lowest, highest) in RANGES.items():
        group, field = name.split(".")
        if not lowest <= config[group][field] <= highest:
            raise UserError(f"{name}={config[group][field]}: expected {lowest} … {highest}.")
    for name in ("area", "aspect"):
        if len(config.augment[name]) != 2:
            raise UserError(
                f"augment.{name}={config.augment[name]}: expected two numbers, the smallest and "
                "the largest."
            )


def open_data(config, mesh) -> Any:
    """The data of a config: `Resident` or `Streamed`.

    Raises:
      UserError: the data set is unknown, not prepared, or does not fit the batch size; or a field
        of `config.data`, `config.augment` or `config.eval` is out of range.
    """
    _check_fields(config)
    devices = mesh.size
    check_batch_size("batch_size", config.batch_size, devices, config.optim.accumulate_steps)
    check_batch_size("eval.batch_size", config.eval.batch_size, devices)
    if config.data.resident:
        from data.small_sets import Resident

        return Resident(config, mesh)
    from data.streamed import Streamed  # the decoders' imports are slow, so only when used

    return Streamed(config, mesh)
