"""An image with the objects in it: what is trained on, and what findings are held against."""

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data import decode, sources
from errors import UserError

# Box, label, whether it is a crowd, and area; an area of None is the box's.
Object = tuple[Sequence[float], int, bool, float | None]

FAR = 2**24  # pixels: from here on float32 has no longer every whole number; no image is as large


class Annotated(NamedTuple):
    """An image and its objects.

    Attributes:
      image: uint8 `[height, width, 3]`, or what decodes it.
      size: height and width of the image.
      boxes: float32 `[k, 4]`: left, top, right, bottom in pixels.
      labels: int32 `[k]`, from 1 on.
      masks: bool `[k, height, width]`, or a list of pycocotools' run lengths; None: there are none.
      crowd: bool `[k]`: objects that are not trained on, and in testing neither right nor wrong: a
        crowd of COCO's, a difficult one of Pascal VOC's.
      area: float32 `[k]`, in pixels, by which COCO's metric tells small from large.
      name: by which a person finds the image again.
      classes: uint8 `[height, width]`, the class of each pixel, 255 where nobody is asked, or what
        decodes it; None: there are none.
    """

    image: np.ndarray | Callable[[], np.ndarray]
    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | Sequence[Any] | None
    crowd: np.ndarray
    area: np.ndarray
    name: str = ""
    classes: np.ndarray | Callable[[], np.ndarray] | None = None

    def decoded(self) -> "Annotated":
        """The same with arrays of pixels.

        Raises:
          DecodeError: a file cannot be read, or has another size than the annotations say.
        """
        image, classes = (x() if callable(x) else x for x in (self.image, self.classes))
        for found in (image, classes):
            if found is not None and found.shape[:2] != self.size:
                raise decode.DecodeError(
                    f"the annotations of {self.name} are of {_pixels(self.size)} pixels, the file "
                    f"has {_pixels(found.shape)}"
                )
        return self._replace(image=image, classes=classes)


def _pixels(shape):
    return f"{shape[1]}×{shape[0]}"


def annotated(
    image: Callable[[], np.ndarray],
    size: tuple[int, int],
    objects: Iterable[Object],
    name: str,
    **more: Any,
) -> Annotated:
    """An image and its objects."""
    boxes, labels, crowd, areas = list(zip(*objects, strict=True)) or [()] * 4
    array = np.array(boxes, np.float32).reshape(-1, 4)
    sides = np.prod(array[:, 2:] - array[:, :2], 1)
    area = [side if a is None else a for a, side in zip(areas, sides, strict=True)]
    about = (np.array(labels, np.int32), more.pop("masks", None), np.array(crowd, bool))
    return Annotated(image, size, array, *about, np.array(area, np.float32), name, **more)


def checked_size(size: tuple[int, int], where: str, max_pixels: int) -> None:
    """Raises UserError, naming file and record, unless an image can have this height and width."""
    if min(size) < 1:
        raise UserError(f"{where}: {_pixels(size)} pixels; expected a width and a height.")
    try:
        decode.check_size(*size, max_pixels)
    except decode.DecodeError as error:
        raise UserError(f"{where}: {error}") from error


def checked_box(
    corners: Sequence[Any], size: tuple[int, int], where: str, first: int = 0
) -> list[float]:
    """A box of an image of `size`; it may end outside of the image, and have no width or height.

    Args:
      corners: left, top, right, bottom, or what a file has in their place.
      where: file and record, for errors.
      first: the number of an image's first pixel, from which left and top are counted.

    Raises:
      UserError: it is no box, or lies outside of the image.
    """
    try:
        box = [float(value) for value in corners]
    except (TypeError, ValueError, OverflowError):
        box = []
    if len(box) != 4 or not all(abs(value) < FAR for value in box):
        raise UserError(f"{where}: box {list(corners)}: expected four numbers below {FAR:,}.")
    box = [box[0] - first, box[1] - first, *box[2:]]
    for start, end, pixels in zip(box[:2], box[2:], size[::-1], strict=True):
        if end < start:
            raise UserError(f"{where}: box {list(corners)} ends before it begins.")
        inside = min(end, pixels) - max(start, 0)
        if inside < 0 or (inside == 0 and end > start):
            raise UserError(
                f"{where}: box {list(corners)} lies outside of the image of {_pixels(size)} "
                "pixels; do the annotations belong to these images?"
            )
    return box


class Listed:
    """Annotated images in files, with what a source of records has (`data.sources`).

    Attributes:
      label_names: the background first.
      shapes: int32 `[number, 3]`: height, width and number of objects of each image.
    """

    def __init__(
        self,
        images: Sequence[Annotated],
        paths: Sequence[Path],
        label_names: tuple[str, ...],
        annotations: str,
    ):
        self.label_names, self._images, self._paths = label_names, images, paths
        self.shapes = shapes_of(images)
        self._sizes = sources.sizes_of(paths)
        missing = [path for path, size in zip(paths, self._sizes, strict=True) if size < 0]
        if missing:
            raise UserError(
                f"{annotations}: {len(missing):,} of its {len(paths):,} images are not there, "
                f"first {missing[0]}; do the annotations belong to these images?"
            )

    @functools.cached_property
    def digest(self) -> str:
        """Of the names and sizes of the images, and of their annotations."""
        return sources.digest_of(
            f"{one.name}\0{size}\0{one.size}{one.labels.tolist()}{one.boxes.tolist()}"
            f"{one.crowd.tolist()}{one.masks}"
            for one, size in zip(self._images, self._sizes, strict=True)
        )

    @functools.cached_property
    def contents(self) -> str:
        """See `data.sources.Source`."""
        return sources.contents_of(self._paths, self._sizes)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Annotated:
        return self._images[index]


def shapes_of(images: Iterable[Annotated]) -> np.ndarray:
    """Height, width and number of objects that count of each image, int32 `[number, 3]`."""

    def counted(one: Annotated) -> int:
        return int(((one.boxes[:, 2:] > one.boxes[:, :2]).all(1) & ~one.crowd).sum())

    return np.array([(*one.size, counted(one)) for one in images], np.int32).reshape(-1, 3)


def decoded_file(path: Path, max_pixels: int) -> np.ndarray:
    """The image of a file, uint8 `[height, width, 3]`.

    Raises:
      DecodeError: it cannot be read.
    """
    try:
        return decode.decode(decode.read(path), max_pixels)
    except OSError as error:
        raise decode.DecodeError(f"cannot be read: {error}") from error
