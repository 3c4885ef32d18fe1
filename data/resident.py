"""Small sets on the devices: the compiled step draws its batch from (seed, step)."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from data import normalization, small_sets
from data.corrupt import CorruptRecords
from data.facts import Facts, Listing, split_of, training_share
from data.feed import Batch, ConstantFeed, padded_batches
from data.keys import Purpose, key_for
from errors import UserError
from run.mesh import positions, replicate, whole_batch
from run.packing import checksum


class Order(NamedTuple):
    """The permutation of one epoch, carried from step to step so that it is drawn once."""

    epoch: jax.Array
    permutation: jax.Array


class Resident:
    """A small set on the devices; `draw` runs inside the compiled step.

    Attributes:
      facts: what a network must know of the data.
      feed_spec: how `feed` lies on the mesh.
      corrupt: empty, since a damaged small set is refused as a whole.
    """

    feed_spec = PartitionSpec()

    def __init__(self, config: ConfigDict, mesh: Mesh):
        self._config, self._mesh = config, mesh
        self._loaded: dict[str, tuple[Batch, tuple[str, ...]]] = {}
        train, label_names = self.arrays("train")
        images = train["image"]
        self.facts = Facts(
            dataset=config.dataset,
            label_names=label_names,
            image_shape=images.shape[1:],
            normalization=normalization.by_name(config.data.normalization, lambda: images),
            num_train=len(images),
        )
        self.corrupt = CorruptRecords(0.0, self.split_size)
        self._distinct = config.batch_size // config.augment.repeats  # images in a batch
        self.steps_per_epoch = len(images) // self._distinct
        if self.steps_per_epoch == 0:
            raise UserError(
                f"batch_size={config.batch_size}: {config.dataset} has "
                f"{len(images)} training images; choose at most that many."
            )

    def load(self, name: str) -> tuple[Batch, tuple[str, ...]]:
        """The arrays of a split of the data set, a row for each image, and the names of classes."""
        c = self._config
        loaded = small_sets.load(c.dataset, name, c.data_dir)
        images, labels, label_names = small_sets.averaged(loaded, c.data.image_size)
        return {"image": images, "label": labels}, label_names

    def arrays(self, split: str) -> tuple[Batch, tuple[str, ...]]:
        """The same of 'train', 'validation' or 'test'."""
        name, is_cut = split_of(self._config, split)
        if name not in self._loaded:
            self._loaded[name] = self.load(name)
        arrays, label_names = self._loaded[name]
        if is_cut:
            share = training_share(self._config, len(arrays["image"]))
            part = slice(share) if split == "train" else slice(share, None)
            arrays = {name: array[part] for name, array in arrays.items()}
        return arrays, label_names

    def feed(self, start_step: int) -> ConstantFeed:
        """What every step needs: here the whole training set, replicated over the devices."""
        del start_step
        return ConstantFeed(replicate(self.arrays("train")[0], self._mesh))

    def initial_order(self) -> Order:
        """The carry of `draw` before any epoch has been drawn."""
        return Order(jnp.int32(-1), jnp.zeros(self.facts.num_train, jnp.int32))

    def draw(self, order: Order, step: jax.Array, arrays: Batch) -> tuple[Order, Batch]:
        """This device's part of batch `step` (inside shard_map over the mesh).

        The last images of an epoch's permutation that do not fill a batch are left out. With
        `augment.repeats` the copies of an image lie as in `data.stream.train_stream`.

        Returns:
          `(order, batch)`.
        """
        seed = self._config.seed
        epoch, position = step // self.steps_per_epoch, step % self.steps_per_epoch

        def permute() -> Order:
            key = key_for(seed, Purpose.ORDER, epoch)
            return Order(epoch, jax.random.permutation(key, self.facts.num_train).astype(jnp.int32))

        order = jax.lax.cond(order.epoch == epoch, lambda: order, permute)
        rows = self.rows()
        index = order.permutation[position * self._distinct + rows % self._distinct]
        batch = {name: array[index] for name, array in arrays.items()}
        return order, batch | {"valid": jnp.ones(len(rows), bool)}

    def rows(self) -> jax.Array:
        """Positions in the global batch of this device's images (inside shard_map)."""
        return positions(self._config.batch_size // self._mesh.size)

    def evaluation(self, split: str) -> Iterator[Batch]:
        """Host batches over a split, each image once, the last one padded."""
        size = whole_batch(self._config.eval.batch_size, self._mesh)
        return padded_batches(self.arrays(split)[0], size)

    def split_size(self, split: str) -> int:
        """Number of images in 'train', 'validation' or 'test'."""
        return len(self.arrays(split)[0]["image"])

    def listing(self, split: str) -> Listing:
        """What lies in 'train', 'validation' or 'test'; the digest is that of pixels and labels."""
        arrays, _ = self.arrays(split)
        digest = "".join(f"{checksum(arrays[name]):08x}" for name in sorted(arrays, reverse=True))
        return Listing(split_of(self._config, split)[0], len(arrays["image"]), digest)
