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
from run.mesh import replicate, whole_batch
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
        self._loaded: dict[str, small_sets.Images] = {}
        train = self._split("train")
        self.facts = Facts(
            dataset=config.dataset,
            label_names=train.label_names,
            image_shape=train.images.shape[1:],
            normalization=normalization.by_name(config.data.normalization, lambda: train.images),
            num_train=len(train.images),
        )
        self.corrupt = CorruptRecords(0.0, self.split_size)
        self._distinct = config.batch_size // config.augment.repeats  # images in a batch
        self.steps_per_epoch = len(train.images) // self._distinct
        if self.steps_per_epoch == 0:
            raise UserError(
                f"batch_size={config.batch_size}: {config.dataset} has "
                f"{len(train.images)} training images; choose at most that many."
            )

    def _split(self, split: str) -> small_sets.Images:
        c = self._config
        name, is_cut = split_of(c, split)
        if name not in self._loaded:
            loaded = small_sets.load(c.dataset, name, c.data_dir)
            self._loaded[name] = small_sets.averaged(loaded, c.data.image_size)
        images = self._loaded[name]
        if not is_cut:
            return images
        share = training_share(c, len(images.images))
        part = slice(share) if split == "train" else slice(share, None)
        return images._replace(images=images.images[part], labels=images.labels[part])

    def feed(self, start_step: int) -> ConstantFeed:
        """What every step needs: here the whole training set, replicated over the devices."""
        del start_step
        train = self._split("train")
        return ConstantFeed(replicate({"image": train.images, "label": train.labels}, self._mesh))

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
        local = self._config.batch_size // self._mesh.size
        rows = jax.lax.axis_index(self._mesh.axis_names) * local + jnp.arange(local)
        index = order.permutation[position * self._distinct + rows % self._distinct]
        return order, {
            "image": arrays["image"][index],
            "label": arrays["label"][index],
            "valid": jnp.ones(local, bool),
        }

    def evaluation(self, split: str) -> Iterator[Batch]:
        """Host batches over a split, each image once, the last one padded."""
        images = self._split(split)
        size = whole_batch(self._config.eval.batch_size, self._mesh)
        return padded_batches(images.images, images.labels, size)

    def split_size(self, split: str) -> int:
        """Number of images in 'train', 'validation' or 'test'."""
        return len(self._split(split).images)

    def listing(self, split: str) -> Listing:
        """What lies in 'train', 'validation' or 'test'; the digest is that of pixels and labels."""
        images, labels, _ = self._split(split)
        digest = checksum(labels), checksum(images)
        name, _ = split_of(self._config, split)
        return Listing(name, len(images), "{:08x}{:08x}".format(*digest))
