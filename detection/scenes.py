"""Scenes of digits: a detection and segmentation set that is made anywhere, without a download.

One to six objects of several sizes lie on a textured canvas of 128×128 pixels and cover each other
in part; or one lies on each. They are the real images of a small grey set: scikit-learn's digits,
or another one of `data.small_sets` that is prepared. Training scenes show training images, test
scenes test images.

Everything is computed with whole numbers, from the raw bits of a counter-based generator, and so is
the same on each machine.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from data import small_sets
from detection.annotated import Annotated
from detection.classes import BACKGROUND
from errors import UserError

KINDS = ("scenes", "single_scenes")  # as data sets; the second with one object each
SIDE = 128  # of a canvas
COUNTS = {"train": 1000, "test": 200}  # scenes
MOST = 6  # objects of a scene, unless fewer are asked for
SMALLEST, LARGEST = 24, 64  # sides of an object's image
INK = 96  # grey level from which a pixel belongs to the object
VISIBLE = 0.75  # share of an object's pixels that later ones leave at least
CELLS = (4, 16)  # pixels from one point of the texture's noise to the next


class Scenes(NamedTuple):
    """Scenes with exact boxes and masks of what is visible, as arrays with a row for each.

    Attributes:
      images: uint8 `[number, 128, 128, 3]`.
      boxes: float32 `[number, most, 4]`: left, top, right, bottom in pixels; 0 beyond the last
        object.
      labels: int32 `[number, most]`, from 1 on; 0 beyond the last object.
      masks: uint8 `[number, most, 128, 16]`: bits along the width, as `np.packbits` lays them.
      label_names: the background first.
    """

    images: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray
    label_names: tuple[str, ...]


@functools.lru_cache(maxsize=4)
def load(split: str, objects: str = "digits", data_dir: str = "", most: int = MOST) -> Scenes:
    """Makes the scenes of 'train' (1,000) or 'test' (200), always the same ones.

    Args:
      split: whose images are shown, too.
      objects: a set of square grey images, as `data.small_sets.load` takes it.
      data_dir: of prepared sets.
      most: objects of a scene; of each number from 1 on there are as many scenes.

    Raises:
      UserError: there is no such split or set, or its images are not grey.
    """
    if split not in COUNTS:
        raise UserError(f"scenes: split {split!r}: expected one of {', '.join(COUNTS)}.")
    shown = small_sets.load(objects, split, data_dir)
    if shown.images.shape[-1] != 1:
        raise UserError(f"scenes:{objects}: expected a set of grey images, such as scenes:digits.")
    scenes = [_scene(shown, split, i, most) for i in range(COUNTS[split])]
    images, boxes, labels, masks = map(np.stack, zip(*scenes, strict=True))
    bits = np.packbits(masks, axis=-1)
    return Scenes(images, boxes, labels, bits, (BACKGROUND, *shown.label_names))


def annotated(arrays: Mapping[str, np.ndarray]) -> list[Annotated]:
    """Scenes one by one, with bool masks where there are masks.

    Args:
      arrays: `image` and, as far as there are any, `boxes`, `labels`, `masks`, laid as in `Scenes`,
        and `classes` of pixels.
    """
    found = []
    nothing = (np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
    for i, image in enumerate(arrays["image"]):
        boxes, labels = (arrays["boxes"][i], arrays["labels"][i]) if "boxes" in arrays else nothing
        real, masks = labels > 0, None
        boxes = boxes[real]
        area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        if "masks" in arrays:
            masks = np.unpackbits(arrays["masks"][i][real], axis=-1).astype(bool)
            area = masks.sum((1, 2), dtype=np.float32)
        about = (image.shape[:2], boxes, labels[real], masks, np.zeros(len(boxes), bool), area)
        classes = arrays["classes"][i] if "classes" in arrays else None
        found.append(Annotated(image, *about, f"scene {i}", classes))
    return found


def _scene(shown, split, index, most):
    """Image, boxes, labels and masks of one scene."""
    random = np.random.Philox(key=[list(COUNTS).index(split), index])

    def draw(*shape, below):
        raw = random.random_raw(int(np.prod(shape)) or 1)
        return (raw >> np.uint64(32)).astype(np.int64).reshape(shape) % below

    image = _canvas(draw)
    labels, masks = np.zeros(most, np.int32), np.zeros((most, SIDE, SIDE), bool)
    areas: list[int] = []  # of the objects' pixels, and how many of them are visible
    visible: list[int] = []
    tries = int(draw(below=most)) + 1
    while tries > 0 or not areas:
        tries -= 1
        number, side = int(draw(below=len(shown.images))), SMALLEST
        side += int(draw(below=LARGEST - SMALLEST + 1))
        top, left = draw(2, below=SIDE - side + 1).tolist()
        colour = 255 - draw(3, below=128)
        grey = _enlarged(shown.images[number, :, :, 0].astype(np.int64), side)
        at = np.s_[top : top + side, left : left + side]
        ink = grey >= INK
        if ink.sum() < side * side // 16:
            continue  # too faint to be seen
        left_over = np.array(visible, int) - (masks[: len(areas), *at] & ink).sum((1, 2))
        if any(left_over < VISIBLE * np.array(areas)):
            continue  # it would hide another one
        opacity = np.clip(2 * (grey - INK) + 128, 0, 255)[:, :, None]
        shaded = colour * (127 + grey[:, :, None] // 2) // 255
        image[at] += (shaded - image[at]) * opacity // 255
        masks[:, *at] &= ~ink
        masks[len(areas), *at] = ink
        labels[len(areas)] = shown.labels[number] + 1
        areas.append(int(ink.sum()))
        visible = [*left_over.tolist(), areas[-1]]
    return image.astype(np.uint8), boxes_of(masks), labels, masks


def _canvas(draw):
    """Dark noise of two sizes in one colour: int `[128, 128, 3]`, at most 120."""
    grids = [draw(SIDE // cell, SIDE // cell, below=256) for cell in CELLS]
    noise = sum(_enlarged(grid, SIDE) for grid in grids)
    return (40 + draw(3, below=80)) * (128 + noise)[:, :, None] // (128 + 2 * 256)


def _enlarged(grid, side):
    """A square of whole numbers, bilinearly and rounded down, as `[side, side]`."""
    old = len(grid)
    place = np.clip((2 * np.arange(side) + 1) * old - side, 0, 2 * side * (old - 1))
    first, share = np.divmod(place, 2 * side)  # in units of 1 / (2 · side)
    second = np.minimum(first + 1, old - 1)
    grid = grid[first] * (2 * side - share)[:, None] + grid[second] * share[:, None]
    grid = grid[:, first] * (2 * side - share) + grid[:, second] * share
    return grid // (4 * side * side)


def classes(labels: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The class of each pixel, uint8 `[number, 128, 128]`, of labels and masks as in `Scenes`."""
    return (np.unpackbits(masks, axis=-1) * labels.astype(np.uint8)[..., None, None]).sum(
        1, dtype=np.uint8
    )


def boxes_of(masks: np.ndarray) -> np.ndarray:
    """The smallest boxes around masks, float32 `[k, 4]`; 0 where a mask is empty.

    Args:
      masks: bool `[k, height, width]`.
    """

    def ends(inside):
        return inside.argmax(1), np.where(
            inside.any(1), inside.shape[1] - inside[:, ::-1].argmax(1), 0
        )

    (left, right), (top, bottom) = ends(masks.any(1)), ends(masks.any(2))
    return np.stack([left, top, right, bottom], 1).astype(np.float32)
