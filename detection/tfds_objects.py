"""TFDS's `coco` and `voc`, where they are prepared: boxes, but no masks."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from data import decode, index_cache, sources
from detection.annotated import Annotated, annotated, checked_box, shapes_of
from detection.classes import labels_of
from errors import UserError

OBJECTS = "objects"


class TfdsObjects(sources.TfdsRecords):
    """A split of a prepared TFDS data set of images with `objects`.

    Attributes:
      label_names: the background first.
    """

    def __init__(self, name: str, split: str, data_dir: str, max_pixels: int):
        super().__init__(name, split, data_dir)
        self._data_dir, self._max_pixels = data_dir, max_pixels
        described: Any = dict(self.features.items()).get(OBJECTS)
        of_one = getattr(described, "feature", {})
        if "image" not in self.features or not {"bbox", "label"} <= set(of_one):
            raise UserError(
                f"tfds:{name} is no set of objects: expected `image` and `objects` with `bbox` and "
                f"`label`, as in tfds:coco/2017 and tfds:voc/2007; found {sorted(self.features)}."
            )
        self._labels, self.label_names = labels_of(of_one["label"].names)
        # The set's boxes are its files' numbers, and those of Pascal VOC count pixels from 1.
        self._first = int("is_difficult" in of_one)
        self._crowd = "is_difficult" if self._first else "is_crowd"

    def __getitem__(self, index: int) -> Annotated:
        named = "image/filename" if "image/filename" in self.features else None
        return self.example(index, "image", named, self._annotated)

    def _annotated(self, found: Mapping[str, Any], name: str) -> Annotated:
        data = bytes(found["image"])
        height, width = decode.image_size(data)
        entries = found[OBJECTS]
        corners = np.asarray(entries["bbox"], np.float64).reshape(-1, 4)[:, [1, 0, 3, 2]]
        corners = np.round(corners * [width, height, width, height], 2)  # of shares in float32
        crowd = entries.get(self._crowd, np.zeros(len(corners), bool))
        areas = entries.get("area", [None] * len(corners))
        objects = []
        for i, (box, label) in enumerate(zip(corners.tolist(), entries["label"], strict=True)):
            where = f"{self.directory}: {name}: object {i}"
            box = checked_box(box, (height, width), where, self._first)
            if not 0 <= label < len(self._labels):
                raise UserError(f"{where}: label {label}: expected a class of the set.")
            objects.append((box, self._labels[label], bool(crowd[i]), areas[i]))
        image = functools.partial(decode.decode, data, self._max_pixels)
        return annotated(image, (height, width), objects, name)

    @functools.cached_property
    def shapes(self) -> np.ndarray:
        """Height, width and number of objects of each image, int32 `[number, 3]`.

        Every record is read for it, once: it is kept where there is room.
        """

        def shape(index):
            try:
                return shapes_of([self[index]])[0].tolist()
            except decode.DecodeError:  # which the run that meets it names, or masks
                return [1, 1, 0]

        def build():
            return {"digest": self.digest, "shapes": [shape(i) for i in range(len(self))]}

        found = index_cache.cached(
            index_cache.places(self.directory, f"objects-{self.digest}", self._data_dir),
            lambda index: index["digest"] == self.digest and len(index["shapes"]) == len(self),
            build,
        )
        return np.array(found["shapes"], np.int32).reshape(-1, 3)
