"""COCO, Pascal VOC and TFDS's two, streamed from disk beside `data.streamed`."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data import keys, stream
from data.facts import split_of
from data.feed import Batch
from data.streamed import Streamed
from detection import batches, coco, ilsvrc, images, voc
from detection.annotated import Annotated
from errors import UserError
from run import files
from run.mesh import whole_batch

KINDS = ("coco:FOLDER", "voc:FOLDER", "tfds:coco/2017", "tfds:voc/2007")


class StreamedObjects(Streamed):
    """Annotated images of any sizes, with the methods of `Streamed`.

    A batch is a function of (seed, step): its images, the shorter side that each is resized to, one
    of `detection.sides`, and which are mirrored. It lies on the smallest canvas of `images` that
    has room for them, so that programs are compiled for nine shapes at most in training and for
    five in testing. Its arrays are those of `ResidentScenes`; for segmentation `classes`, uint8
    `[batch, height, width]`, 255 where nobody is asked, takes the place of the objects.
    """

    def __init__(self, config: ConfigDict, mesh: Mesh):
        d = config.detection
        self._pixels, self._masks = config.task == "segmentation", d.masks
        self._limits = max(d.sides), d.longer
        super().__init__(config, mesh)
        canvas = images.canvas(*self._limits, *self._limits)
        self.facts = self.facts._replace(image_shape=(*canvas, 3))
        train = self.source("train")
        if len(train) < config.batch_size:
            raise UserError(
                f"batch_size={config.batch_size}: {config.dataset} has {len(train)} training "
                "images; choose at most that many."
            )
        counts = train.shapes[:, 2]
        if not self._pixels and counts.max() > d.max_objects:
            most = int(counts.argmax())
            raise UserError(
                f"detection.max_objects={d.max_objects}: {train[most].name} has {counts[most]} "
                "objects; expected as many at least."
            )

    def open(self, name: str) -> Any:
        """See `Streamed`."""
        c = self._config
        kind, _, where = c.dataset.partition(":")
        pixels = c.data.max_pixels
        if self._pixels and kind != "voc":
            raise UserError(
                f"dataset={c.dataset!r}: expected voc:FOLDER or scenes with task='segmentation'."
            )
        if kind in ("coco", "voc") and files.is_remote(files.at(where or ".")):
            raise UserError(
                f"dataset={c.dataset!r}: expected a folder of this machine; copy the set here, or "
                "mount the bucket."
            )
        if kind == "coco" and where:
            return coco.read(files.at(where).expanduser(), name, self._masks, pixels)
        if self._masks and not self._pixels:
            raise UserError(
                f"dataset={c.dataset!r} has no masks of objects: expected coco:FOLDER or scenes "
                "with detection.masks=True."
            )
        if kind == "voc" and where:
            return voc.read(files.at(where).expanduser(), name, self._pixels, pixels)
        if kind == "folder" and where and c.task == "localization":
            return ilsvrc.read(files.at(where).expanduser(), name, c.data_dir, pixels)
        if kind == "tfds" and where:
            from detection.tfds_objects import TfdsObjects

            return TfdsObjects(where, name, c.data_dir, pixels)
        raise UserError(
            f"dataset={c.dataset!r}: expected scenes, scenes:SET or {', '.join(KINDS)}."
        )

    def source(self, split: str) -> Any:
        """See `Streamed`.

        Raises:
          UserError: it has other categories than the training split, or no object in any image.
        """
        source: Any = super().source(split)
        names = source.label_names
        if len(source) and not self._pixels and not source.shapes[:, 2].any():
            raise UserError(
                f"{self._config.dataset}: none of the {len(source)} images of "
                f"{split_of(self._config, split)[0]!r} has an object that counts; expected one "
                "at least to learn from, or to test on."
            )
        if split != "train" and names != self.source("train").label_names:
            other = sorted({*names} ^ {*self.source("train").label_names, "-"})[:10]
            raise UserError(
                f"{self._config.dataset}: {split} has other categories than training: "
                f"{', '.join(other) or 'in another order'}."
            )
        return source

    def annotated(self, split: str) -> Sequence[Annotated]:
        """What is in each image of a split, by `index`; the images are not decoded."""
        return self.source(split)

    def train_batches(self, start_step: int) -> Iterator[stream.HostBatch]:
        """See `Streamed`."""
        if self._config.detection.network == "rpn":
            return self._crops(start_step)
        c, d = self._config, self._config.detection
        source, canvas, names = self._laid("train", objects=True)
        order = batches.training_order(canvas, c.batch_size, c.seed)

        def example(position: int) -> stream.Example:
            index = order(position)
            side, flip = keys.host_generator(c.seed, position).random(2)
            shorter = d.sides[int(side * len(d.sides))]
            mirrored = bool(c.augment.flip and flip < 0.5)
            return index, lambda one: batches.row(one, index, shorter, d.longer, mirrored, names)

        @functools.lru_cache(maxsize=64)
        def largest(step: int) -> tuple[int, int]:
            first = step * c.batch_size
            height, width = np.max([canvas[order(first + i)] for i in range(c.batch_size)], 0)
            return int(height), int(width)

        def blank(step: int, rows: int) -> Batch:
            return self._blank(rows, largest(step), objects=True)

        return stream.batches(
            source, example, stream.ENDLESS, start_step, blank, **self.host_options(c.batch_size)
        )

    def _crops(self, start_step):
        """Training batches of squares, with what of the boxes is in them."""
        c, a, side = self._config, self._config.augment, self._config.data.image_size
        source = self.source("train")
        order = stream.record_order(len(source), c.seed)

        def example(position: int) -> stream.Example:
            index, generator = order(position), keys.host_generator(c.seed, position)

            def row(one: Annotated) -> dict[str, Any]:
                crop = batches.cropped(one, generator, side, a.resize_min, a.resize_max)
                mirrored = bool(a.flip and generator.random() < 0.5)
                return batches.row(crop, index, side, side, mirrored, ("boxes",))

            return index, row

        def blank(step: int, rows: int) -> Batch:
            return self._blank(rows, (side, side), objects=True)

        options = self.host_options(c.batch_size)
        return stream.batches(source, example, stream.ENDLESS, start_step, blank, **options)

    def evaluation(self, split: str) -> Iterator[Batch]:
        """Host batches over a split, each image once, by canvases; without the objects."""
        d = self._config.detection
        source, canvas, names = self._laid(split, objects=False)
        size = whole_batch(self._config.eval.batch_size, self._mesh)
        order = batches.testing_order(canvas, size)

        def example(position: int) -> stream.Example | None:
            index = int(order[position])
            if index < 0:
                return None
            return index, lambda one: batches.row(one, index, d.sides[-1], d.longer, False, names)

        def blank(step: int, rows: int) -> Batch:
            height, width = canvas[order[step * size]]
            return self._blank(rows, (int(height), int(width)), objects=False)

        found = stream.batches(source, example, len(order), 0, blank, **self.host_options(size))
        return self.corrupt.watch(split, found)

    def _laid(self, split, objects):
        """Source, canvases and names of arrays of a split."""
        source = self.source(split)
        names = set(self._blank(0, (0, 0), objects))
        return source, batches.canvases(source.shapes, *self._limits), names

    def _blank(self, rows, canvas, objects):
        room = self._config.detection.max_objects if objects and not self._pixels else 0
        return batches.blank(rows, canvas, room, self._masks, objects and self._pixels)

    def _sample(self) -> np.ndarray:
        raise UserError(
            f"data.normalization={self._config.data.normalization!r}: expected 'imagenet' or "
            "'caffe' with annotated images, which have many sizes."
        )
