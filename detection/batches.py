"""Rows of a batch of annotated images: resized, mirrored, on a canvas, in an order by canvases."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from data import keys, transforms
from detection import images
from detection.annotated import Annotated
from detection.average_precision import pycocotools
from detection.mean_iou import IGNORED


def canvases(shapes: np.ndarray, shorter: int, longer: int) -> np.ndarray:
    """The canvas of each image, int `[number, 2]`, of at most five shapes.

    Args:
      shapes: `[number, 2]` or more: height and width of each image.
      shorter, longer: as `images.resized_size` takes them; one with a smaller `shorter` fits, too.
    """
    sizes, which = np.unique(shapes[:, :2], axis=0, return_inverse=True)
    found = [
        images.canvas(*images.resized_size(height, width, shorter, longer), shorter, longer)
        for height, width in sizes.tolist()
    ]
    return np.array(found, int).reshape(-1, 2)[which.reshape(-1)]


def training_order(shapes: np.ndarray, batch_size: int, seed: int) -> Callable[[int], int]:
    """Position in the endless sequence of epochs → image; a batch has one canvas where it can.

    Each epoch is a shuffle of its own, a function of (seed, epoch), that shows each image at most
    once. Only what is left of each canvas without filling a batch is put together, canvas after
    canvas; of that again, what does not fill a batch is left out.

    Args:
      shapes: the canvases, `[number, 2]`.
      batch_size: at most the number of images.
    """
    _, kinds = np.unique(shapes, axis=0, return_inverse=True)
    kinds = kinds.reshape(-1)
    members = [np.flatnonzero(kinds == kind) for kind in range(kinds.max() + 1)]
    length = len(kinds) // batch_size * batch_size

    @functools.lru_cache(maxsize=2)
    def epoch_order(epoch: int) -> np.ndarray:
        generator = keys.host_order_generator(seed, epoch)
        shuffled = [generator.permutation(kind) for kind in members]
        full = [len(kind) // batch_size * batch_size for kind in shuffled]
        rest = [kind[n:] for kind, n in zip(shuffled, full, strict=True)]
        kept = generator.permutation(np.concatenate(rest))[: length - sum(full)]
        kept = kept[np.argsort(kinds[kept], kind="stable")]
        whole = np.concatenate([*(k[:n] for k, n in zip(shuffled, full, strict=True)), kept])
        return generator.permutation(whole.reshape(-1, batch_size)).reshape(-1)

    return lambda position: int(epoch_order(position // length)[position % length])


def testing_order(shapes: np.ndarray, batch_size: int) -> np.ndarray:
    """Images in an order in which each batch has one canvas: int `[positions]`, −1 for padding.

    Args:
      shapes: the canvases, `[number, 2]`.
    """
    _, kinds = np.unique(shapes, axis=0, return_inverse=True)
    kinds = kinds.reshape(-1)
    parts = [np.flatnonzero(kinds == kind) for kind in np.unique(kinds)]
    padded = [np.pad(p, (0, -len(p) % batch_size), constant_values=-1) for p in parts]
    return np.concatenate([np.zeros(0, int), *padded])


def blank(
    rows: int, canvas: tuple[int, int], room: int, masks: bool, classes: bool
) -> dict[str, np.ndarray]:
    """The arrays of so many empty rows.

    Args:
      canvas: height and width.
      room: for objects; 0: without arrays of objects.
      masks: with masks of objects.
      classes: with the classes of pixels.
    """
    height, width = canvas
    shapes: dict[str, Any] = {"image": (np.uint8, (height, width, 3)), "index": (np.int32, ())}
    shapes |= dict.fromkeys(("size", "original"), (np.int32, (2,)))
    if room:
        shapes |= {"boxes": (np.float32, (room, 4)), "labels": (np.int32, (room,))}
        if masks:
            shapes["masks"] = (np.uint8, (room, height, width // 8))
    arrays = {name: np.zeros((rows, *shape), kind) for name, (kind, shape) in shapes.items()}
    return arrays | (
        {"classes": np.full((rows, height, width), IGNORED, np.uint8)} if classes else {}
    )


def cropped(
    one: Annotated, generator: np.random.Generator, size: int, resize_min: int, resize_max: int
) -> Annotated:
    """A random square of an image, as in the paper's training of classifiers (section 3.4).

    Args:
      size: side of the square.
      resize_min, resize_max: range of the shorter side before.

    Raises:
      DecodeError: see `row`.
    """
    one = one.decoded()
    pixels: Any = one.image
    box = transforms.scale_jitter_box(generator, *one.size, size, resize_min, resize_max)
    image = transforms.resized_box(pixels, box, size)
    scale = np.array([size / box.width, size / box.height] * 2, np.float32)
    boxes = (one.boxes - np.array([box.left, box.top] * 2, np.float32)) * scale
    return one._replace(image=image, size=(size, size), boxes=boxes)


def row(
    one: Annotated, index: int, shorter: int, longer: int, mirrored: bool, names: Any
) -> dict[str, Any]:
    """An annotated image as a row of a batch, without the padding.

    Boxes are clipped to the image, and those without any width or height left out, as torchvision
    trains; so are crowds and difficult objects.

    Args:
      index: of the image in its split.
      shorter, longer: in pixels, as `images.resized_size` takes them.
      mirrored: exchange left and right.
      names: of the arrays that the batch has.

    Raises:
      DecodeError: the image cannot be read, or has another size than the annotations say.
    """
    one = one.decoded()
    pixels: Any = one.classes
    height, width = images.resized_size(*one.size, shorter, longer)
    cv2 = transforms.opencv()
    image = cv2.resize(one.image, (width, height), interpolation=cv2.INTER_LINEAR)
    found = {
        "image": image[:, ::-1] if mirrored else image,
        "index": index,
        "original": one.size,
        "size": (height, width),
    }
    if "boxes" in names:
        old = np.array(one.size[::-1] * 2, np.float32)
        boxes = np.clip(one.boxes, 0, old) * (np.array([width, height] * 2, np.float32) / old)
        real = ~one.crowd & (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes = boxes[real]
        if mirrored:
            boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        found |= {"boxes": boxes, "labels": one.labels[real]}
    rows, columns = (  # torch's nearest ones
        (np.arange(new) * np.float32(before / new)).astype(int).clip(0, before - 1)
        for new, before in zip((height, width), one.size, strict=True)
    )
    columns = one.size[1] - 1 - columns if mirrored else columns
    if "masks" in names:
        masks = _bits(one, real)[:, rows][:, :, columns]
        found["masks"] = np.packbits(masks, axis=-1)
    if "classes" in names:
        found["classes"] = pixels[rows][:, columns]
    return found


def _bits(one, real):
    """The masks of some objects, bool `[k, height, width]`."""
    if isinstance(one.masks, np.ndarray):
        return one.masks[real]
    chosen = [mask for mask, taken in zip(one.masks, real, strict=True) if taken]
    if not chosen:
        return np.zeros((0, *one.size), bool)
    return pycocotools("mask").decode(chosen).transpose(2, 0, 1).astype(bool)
