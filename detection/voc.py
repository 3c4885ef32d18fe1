"""Pascal VOC: FOLDER/VOC<year>/ with Annotations, ImageSets, JPEGImages and SegmentationClass."""

import functools
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data import decode, splits
from detection.annotated import (
    Annotated,
    Listed,
    Object,
    annotated,
    checked_box,
    checked_size,
    decoded_file,
)
from detection.classes import VOC
from detection.mean_iou import IGNORED
from errors import UserError, first_line

_SPLIT = re.compile(r"(\w*?)((?:19|20)\d\d)?")


def read(root: Path, split: str, segmentation: bool, max_pixels: int) -> Listed:
    """The images of a split, in the order of its list.

    Boxes are of whole pixels, counted from 1, in the files; here a box goes from the left edge of
    its first pixel to the right edge of its last, so that IoU is the development kit's.

    Args:
      root: the folder `VOCdevkit`, or that of one year.
      split: list and year, as `data.splits` takes them, such as `trainval2007+trainval2012`; of one
        year's folder, the list alone.
      segmentation: those of ImageSets/Segmentation with the classes of pixels instead of boxes.
      max_pixels: of an image.

    Raises:
      UserError: a file is missing or no such file; an object has no name, an unknown one, or no
        box, or does not fit its image.
    """
    whole = functools.cache(lambda name: _whole(root, name, segmentation, max_pixels))
    pieces = [
        (whole(n), slice(*ends)) for n, *ends in splits.pieces(split, lambda n: len(whole(n)))
    ]
    both = [pair for pairs, cut in pieces for pair in pairs[cut]]
    return Listed([one for one, _ in both], [path for _, path in both], VOC, f"{root}, {split}")


def _whole(root, split, segmentation, max_pixels):
    """Images and paths of a list of one year."""
    name, year = _SPLIT.fullmatch(split).groups() if _SPLIT.fullmatch(split) else (split, "")
    folder = root / f"VOC{year}" if year else root
    lists = folder / "ImageSets" / ("Segmentation" if segmentation else "Main")
    try:
        names = (lists / f"{name}.txt").read_text().split()
    except (OSError, ValueError) as error:
        there = sorted(p.stem for p in lists.glob("*.txt") if "_" not in p.stem)
        raise UserError(
            f"voc:{root}: split {split!r}: {lists / name}.txt cannot be read. Expected a list and "
            "a year, such as trainval2007, below VOCdevkit, or a list alone below the folder of a "
            f"year; found {', '.join(there) or 'none'}."
        ) from error
    one = _pixels if segmentation else _objects
    pairs = [(folder / "JPEGImages" / f"{name}.jpg", name) for name in names]
    return [(one(folder, path, name, max_pixels), path) for path, name in pairs]


def _objects(folder: Path, path: Path, name: str, max_pixels: int) -> Annotated:
    """An image with the boxes of its file in Annotations."""
    size, objects = read_boxes(folder / "Annotations" / f"{name}.xml", VOC, max_pixels)
    return annotated(functools.partial(decoded_file, path, max_pixels), size, objects, str(path))


def read_boxes(
    file: Path, label_names: Sequence[str], max_pixels: int
) -> tuple[tuple[int, int], list[Object]]:
    """Size and objects of an image, as `annotated` takes them, from an XML file.

    Args:
      label_names: of all classes, the background first.

    Raises:
      UserError: see `read`.
    """
    try:
        root = ElementTree.XML(file.read_bytes(), ElementTree.XMLParser(target=_WithoutEntities()))
        height, width = (int(root.findtext(f"size/{side}") or 0) for side in ("height", "width"))
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise UserError(
            f"{file} cannot be read as Pascal VOC's annotations of an image: {first_line(error)}."
        ) from error
    checked_size((height, width), f"{file}", max_pixels)
    known = {name: label for label, name in enumerate(label_names) if label}
    objects: list[Object] = []
    for i, one in enumerate(root.findall("object")):
        where, named = f"{file}: object {i}", (one.findtext("name") or "").strip()
        if named not in known:
            raise UserError(
                f"{where}: {f'unknown class {named!r}' if named else 'no name'}; expected one of "
                f"{', '.join(label_names[1:21])}{', …' * (len(label_names) > 21)}."
            )
        corners = [one.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        box = checked_box(corners, (height, width), where, first=1)
        difficult = one.findtext("difficult", "0").strip()
        if difficult not in ("0", "1"):
            raise UserError(f"{where}: difficult {difficult!r}: expected 0 or 1.")
        objects.append((box, known[named], difficult == "1", None))
    return (height, width), objects


class _WithoutEntities(ElementTree.TreeBuilder):
    """Refuses a file that could define entities, before the first is read: one may be endless."""

    def doctype(self, *_: Any) -> None:
        raise ValueError("it has a DOCTYPE, which such files have not")


def _pixels(folder: Path, path: Path, name: str, max_pixels: int) -> Annotated:
    """An image with the classes of its pixels; the size is that of their file."""
    file = folder / "SegmentationClass" / f"{name}.png"
    try:
        size = decode.image_size(decode.read(file))
    except (OSError, decode.DecodeError) as error:
        raise UserError(f"{file} cannot be read: {first_line(error)}.") from error
    image = functools.partial(decoded_file, path, max_pixels)
    return annotated(image, size, (), str(path), classes=functools.partial(read_classes, file))


def read_classes(path: Path) -> np.ndarray:
    """The classes of a file's pixels, uint8 `[height, width]`: the indices of its palette.

    Raises:
      DecodeError: it cannot be read, or has other classes than VOC's 0 … 20 and 255.
    """
    try:
        with decode.opened(decode.read(path)) as image:
            found = np.array(image) if image.mode in ("P", "L") else None
    except OSError as error:
        raise decode.DecodeError(f"{path} cannot be read: {error}") from error
    if found is None or np.any((found >= len(VOC)) & (found != IGNORED)):
        raise decode.DecodeError(
            f"{path}: expected the classes of pixels, 0 … {len(VOC) - 1} and {IGNORED}, as the "
            "indices of a palette"
        )
    return found
