"""Scenes on the devices: drawn and mirrored in the step, beside `data.resident`."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data import splits
from data.feed import Batch
from data.keys import Augmentation, Purpose, example_keys, key_for, keys_for
from data.resident import Order, Resident
from detection import scenes
from detection.annotated import Annotated
from errors import UserError

OF_OBJECTS = ("boxes", "labels", "masks")  # with an axis of objects after that of images


class SingleScenes(Resident):
    """Scenes of one object each, `single_scenes` or `single_scenes:SET`, as images of a class.

    A batch has `boxes`, float32 `[batch, 1, 4]`, where the object lies before any augmentation.
    """

    def load(self, name: str) -> tuple[Batch, tuple[str, ...]]:
        """See `Resident`."""
        (images, boxes, labels, _), label_names = _cut(self._config, name, most=1)
        return {"image": images, "label": labels[:, 0] - 1, "boxes": boxes}, label_names[1:]

    def annotated(self, split: str) -> list[Annotated]:
        """What is in each image of 'train', 'validation' or 'test', in their order."""
        arrays = self.arrays(split)[0]
        return scenes.annotated(arrays | {"labels": arrays["label"][:, None] + 1})


def _cut(config, name, most):
    """Images, boxes, labels and masks of a split of the scenes, and the names of classes."""
    kind, _, objects = config.dataset.partition(":")
    asked = objects or "digits", config.data_dir, most
    whole = {split: scenes.load(split, *asked) for split in scenes.COUNTS}
    arrays = splits.cut(name, {split: made[:4] for split, made in whole.items()}, kind)
    return arrays, whole["train"].label_names


class ResidentScenes(Resident):
    """The scenes of `scenes` or `single_scenes`, also with `:SET`, with the methods of `Resident`.

    A batch has `image`, `valid` and `index`, the place of the image in its split; `size` and
    `original`, int32 `[batch, 2]`, height and width; `boxes`, `labels` and, where they are trained,
    `masks`, laid as in `detection.scenes`, with room for `detection.max_objects`. For segmentation
    there are `classes`, uint8 `[batch, 128, 128]`, instead of the objects.
    """

    def __init__(self, config: ConfigDict, mesh: Mesh):
        self._annotated: dict[str, list[Annotated]] = {}
        super().__init__(config, mesh)

    def load(self, name: str) -> tuple[Batch, tuple[str, ...]]:
        """See `Resident`."""
        c = self._config
        single = c.dataset.startswith("single_scenes")
        arrays, label_names = _cut(c, name, 1 if single else scenes.MOST)
        most, room = np.count_nonzero(arrays[2], 1), c.detection.max_objects
        if most.max() > room:
            raise UserError(
                f"detection.max_objects={room}: scene {most.argmax()} of {name} has {most.max()} "
                "objects; expected as many at least."
            )
        size = np.full((len(arrays[0]), 2), scenes.SIDE, np.int32)
        named = dict(zip(("image", "boxes", "labels", "masks"), arrays, strict=True))
        if c.task == "segmentation":
            named = {"image": arrays[0], "classes": scenes.classes(*arrays[2:])}
        elif not c.detection.masks:
            del named["masks"]
        return named | {"size": size, "original": size}, label_names

    def arrays(self, split: str) -> tuple[Batch, tuple[str, ...]]:
        """See `Resident`."""
        arrays, label_names = super().arrays(split)
        index = np.arange(len(arrays["image"]), dtype=np.int32)
        return arrays | {"index": index}, label_names

    def annotated(self, split: str) -> list[Annotated]:
        """What is in each image of 'train', 'validation' or 'test', by `index`."""
        if split not in self._annotated:
            self._annotated[split] = scenes.annotated(self.arrays(split)[0])
        return self._annotated[split]

    def draw(self, order: Order, step: jax.Array, arrays: Batch) -> tuple[Order, Batch]:
        """See `Resident`; with `augment.flip` half of the images are mirrored."""
        order, batch = super().draw(order, step, arrays)
        if self._config.augment.flip:
            keys = example_keys(key_for(self._config.seed, Purpose.AUGMENT, step), self.rows())
            chosen = jax.vmap(jax.random.bernoulli)(keys_for(keys, Augmentation.CROP_FLIP))
            batch = jax.tree.map(
                lambda new, old: jnp.where(chosen.reshape(-1, *[1] * (old.ndim - 1)), new, old),
                mirrored(batch),
                batch,
            )
        if self._config.detection.network == "rpn":
            keys = example_keys(key_for(self._config.seed, Purpose.SAMPLE, step), self.rows())
            batch = _cropped(keys, batch, self._config.data.image_size)
        room = self._config.detection.max_objects
        for name in set(OF_OBJECTS) & set(batch):
            array = batch[name][:, :room]
            missing = [(0, 0), (0, room - array.shape[1])] + [(0, 0)] * (array.ndim - 2)
            batch[name] = jnp.pad(array, missing)
        return order, batch


def _cropped(keys, batch, side):
    """A square of each image, with what of the boxes is in it."""

    def crop(key, image, boxes):
        place = jax.random.randint(key, (2,), 0, scenes.SIDE - side + 1)
        image = jax.lax.dynamic_slice(image, (*place, 0), (side, side, 3))
        return image, jnp.clip(boxes - jnp.tile(place[::-1], 2)[None], 0, side)

    places = keys_for(keys, Augmentation.CROP_FLIP)
    image, boxes = jax.vmap(crop)(places, batch["image"], batch["boxes"])
    size = jnp.full_like(batch["size"], side)
    return batch | {"image": image, "boxes": boxes, "size": size}


def mirrored(batch: Batch) -> Batch:
    """A batch of images that fill their canvas, left and right exchanged.

    Args:
      batch: with `image`, and `boxes`, `labels`, `masks` and `classes` as far as there are any.
    """
    new: Batch = {name: batch[name][:, :, ::-1] for name in ("image", "classes") if name in batch}
    if "boxes" in batch:
        left, top, right, bottom = jnp.moveaxis(batch["boxes"], -1, 0)
        width = batch["image"].shape[2]
        boxes = jnp.stack([width - right, top, width - left, bottom], -1)
        new["boxes"] = jnp.where(batch["labels"][..., None] > 0, boxes, 0)
    if "masks" in batch:
        bits = batch["masks"][..., ::-1]
        for shift, low in ((4, 0x0F), (2, 0x33), (1, 0x55)):  # turns each byte round
            bits = ((bits & low) << shift) | ((bits >> shift) & low)
        new["masks"] = bits
    return batch | new
