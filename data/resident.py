"""Small sets on the device: the compiled step draws its batch from (seed, step)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from data import small_sets
from errors import UserError
from input_pipeline import (
    DATA_AXIS,
    ORDER,
    Facts,
    checked_validation_size,
    data_key,
    normalization_for,
    padded_batches,
    replicate,
    split_of,
)

KINDS = ("none", "pad_crop_flip", "random_resized_crop")


class Order(NamedTuple):
    """The permutation of one epoch, carried from step to step so that it is drawn once."""

    epoch: jax.Array
    permutation: jax.Array


class Resident:
    """A small set on the devices; `draw` runs inside the compiled step."""

    feed_spec = PartitionSpec()

    def __init__(self, config, mesh):
        if config.augment.kind not in KINDS:
            raise UserError(
                f"augment.kind={config.augment.kind!r}: device-resident images take one of "
                f"{KINDS}; other kinds need data.resident=False."
            )
        self._config = config
        self._mesh = mesh
        self._loaded = {}
        train = self._split("train")
        self.facts = Facts(
            dataset=config.dataset,
            label_names=train.label_names,
            image_shape=train.images.shape[1:],
            normalization=normalization_for(config, train.images),
            num_train=len(train.images),
        )
        self.steps_per_epoch = len(train.images) // config.batch_size
        if self.steps_per_epoch == 0:
            raise UserError(
                f"batch_size={config.batch_size}: {config.dataset} has "
                f"{len(train.images)} training images; choose at most that many."
            )

    def _split(self, split):
        c = self._config
        name, is_cut = split_of(c, split)
        if name not in self._loaded:
            self._loaded[name] = small_sets.load(c.dataset, name, c.data_dir)
        images = self._loaded[name]
        if not is_cut:
            return images
        number = len(images.images)
        cut = number - checked_validation_size(c.data.validation_size, number)
        part = slice(cut) if split == "train" else slice(cut, None)
        return images._replace(images=images.images[part], labels=images.labels[part])

    def feed(self, start_step):
        """What every step needs: here the whole training set, replicated over the devices."""
        del start_step
        train = self._split("train")
        return Constant(replicate({"image": train.images, "label": train.labels}, self._mesh))

    def initial_order(self):
        """The carry of `draw` before any epoch has been drawn."""
        return Order(jnp.int32(-1), jnp.zeros(self.facts.num_train, jnp.int32))

    def draw(self, order, step, arrays):
        """This device's part of batch `step` (inside shard_map over `data`).

        The last `num_train mod batch_size` images of an epoch's permutation are left out.

        Returns:
          `(order, batch)`.
        """
        size = self._config.batch_size
        seed = self._config.seed
        epoch, position = step // self.steps_per_epoch, step % self.steps_per_epoch

        def permute():
            key = jax.random.fold_in(jax.random.fold_in(data_key(seed), ORDER), epoch)
            return Order(epoch, jax.random.permutation(key, self.facts.num_train).astype(jnp.int32))

        order = jax.lax.cond(order.epoch == epoch, lambda: order, permute)
        local = size // self._mesh.size
        first = jax.lax.axis_index(DATA_AXIS) * local
        index = jax.lax.dynamic_slice(order.permutation, (position * size + first,), (local,))
        return order, {
            "image": arrays["image"][index],
            "label": arrays["label"][index],
            "valid": jnp.ones(local, bool),
        }

    def evaluation(self, split):
        """Host batches over a split, each image once, the last one padded."""
        images = self._split(split)
        return padded_batches(images.images, images.labels, self._config.eval.batch_size)

    def split_size(self, split):
        """Number of images in 'train', 'validation' or 'test'."""
        return len(self._split(split).images)


class Constant:
    """A feed that is the same at every step and never waits."""

    wait_seconds = 0.0

    def __init__(self, value):
        self._value = value

    def __next__(self):
        return self._value
