"""COCO: FOLDER/annotations/instances_<split>.json and the images in FOLDER/<split>/."""

import functools
import json
from pathlib import Path
from typing import Any

from data import splits
from detection.annotated import (
    Annotated,
    Listed,
    annotated,
    checked_box,
    checked_size,
    decoded_file,
)
from detection.average_precision import pycocotools
from detection.classes import labels_of
from errors import UserError, first_line


def read(root: Path, split: str, masks: bool, max_pixels: int) -> Listed:
    """The images of a split, in the order of the file, as COCO annotates them.

    Args:
      root: the folder; the images of a split may also lie in `images/<split>`.
      split: as `data.splits` takes it, such as `train2017` or `train2017[:90%]+val2017`.
      masks: also read the segmentations.
      max_pixels: of an image.

    Raises:
      UserError: a file is missing or no such file; a record of it is not as COCO defines it, has an
        unknown category, or does not fit its image.
    """
    whole = functools.cache(lambda name: _whole(root, name, masks, max_pixels))
    pieces = splits.pieces(split, lambda name: len(whole(name)[0]))
    *_, file, label_names = whole(pieces[0][0])
    for name, *_ in pieces:
        if whole(name)[3] != label_names:
            raise UserError(f"{whole(name)[2]} has other categories than {file}.")
    parts = [(whole(name), slice(*ends)) for name, *ends in pieces]
    images = [one for part, cut in parts for one in part[0][cut]]
    paths = [path for part, cut in parts for path in part[1][cut]]
    return _Coco(images, paths, label_names, file)


class _Coco(Listed):
    def __getitem__(self, index: int) -> Annotated:
        one = super().__getitem__(index)
        if one.masks is None:
            return one
        encode, merge = (getattr(pycocotools("mask"), name) for name in ("frPyObjects", "merge"))
        return one._replace(
            masks=[
                merge(encode(mask, *one.size))
                if isinstance(mask, list)
                else encode(mask, *one.size)
                for mask in one.masks
            ]
        )


def _whole(root, split, masks, max_pixels):
    """The images of a whole split, their paths, the file of annotations and the classes' names."""
    file = root / "annotations" / f"instances_{split}.json"
    folder = next((f for f in (root / split, root / "images" / split) if f.is_dir()), root / split)
    try:
        whole = json.loads(file.read_text())
        categories, entries, objects = (
            _records(whole, name, file) for name in ("categories", "images", "annotations")
        )
    except FileNotFoundError as error:
        there = sorted(path.name for path in (root / "annotations").glob("instances_*.json"))
        raise UserError(
            f"{file} is not there; expected COCO's annotations, and its images in {folder}. "
            f"Found: {', '.join(there) or 'no instances_*.json'}."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file} cannot be read as COCO's annotations: {first_line(error)}."
        ) from error
    names = {_field(c, "id", int, f"{file}: category {i}"): c for i, c in enumerate(categories)}
    if len(names) < len(categories):
        raise UserError(f"{file}: several categories have the same id; expected one of each.")
    ordered = sorted(names)
    given = [_field(names[i], "name", str, f"{file}: category of id {i}") for i in ordered]
    table, label_names = labels_of(given)
    labels = dict(zip(ordered, table, strict=True))

    by_image: dict[int, list] = {}
    sizes: dict[int, tuple[int, int]] = {}
    files = {}
    for i, entry in enumerate(entries):
        where = f"{file}: image {i} ({entry.get('file_name')})"
        key = _field(entry, "id", int, where)
        if key in sizes:
            raise UserError(f"{where}: a second image of id {key}.")
        sizes[key] = (_field(entry, "height", int, where), _field(entry, "width", int, where))
        checked_size(sizes[key], where, max_pixels)
        files[key], by_image[key] = _field(entry, "file_name", str, where), []
    for i, entry in enumerate(objects):
        where = f"{file}: annotation {i} (id {entry.get('id')})"
        key = _field(entry, "image_id", int, where)
        if key not in sizes:
            raise UserError(f"{where}: image_id {key} is none of the file's images.")
        label = labels.get(_field(entry, "category_id", int, where))
        if label is None:
            raise UserError(
                f"{where}: unknown category_id {entry['category_id']}; expected one of "
                f"{', '.join(map(str, ordered))}."
            )
        box = checked_box(_corners(entry.get("bbox")), sizes[key], where)
        crowd = entry.get("iscrowd", 0)
        if crowd not in (0, 1):
            raise UserError(f"{where}: iscrowd {crowd!r}: expected 0 or 1.")
        area = None if entry.get("area") is None else _field(entry, "area", (int, float), where)
        if area is not None and not 0 <= area < 2**53:
            raise UserError(f"{where}: area {area}; expected a number of pixels.")
        if masks and not entry.get("segmentation"):
            raise UserError(f"{where}: it has no segmentation; expected polygons or run lengths.")
        mask = _checked_mask(entry["segmentation"], sizes[key], where) if masks else None
        by_image[key].append((box, label, bool(crowd), area, mask))
    images = [
        annotated(
            functools.partial(decoded_file, folder / files[key], max_pixels),
            sizes[key],
            [one[:4] for one in by_image[key]],
            f"{folder / files[key]}",
            masks=[one[4] for one in by_image[key]] if masks else None,
        )
        for key in sizes
    ]
    return images, [folder / name for name in files.values()], str(file), label_names


def _records(whole, name, file):
    found = whole.get(name) if isinstance(whole, dict) else None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ValueError(f"it has no list of {name}")
    return found


def _field(entry: dict, name: str, kind: Any, where: str) -> Any:
    value = entry.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{where}: {name} {value!r}; expected {_KINDS[kind]}.")
    return value


_KINDS = {int: "a whole number", str: "a name", (int, float): "a number"}


def _corners(box):
    """Left, top, right, bottom of COCO's left, top, width, height; else what there is."""
    if not isinstance(box, list) or len(box) != 4 or any(isinstance(x, bool) for x in box):
        return [box]
    try:
        left, top, width, height = (x + 0.0 for x in box)
    except (TypeError, OverflowError):
        return [box]
    return [left, top, left + width, top + height]


def _checked_mask(mask: Any, size: tuple[int, int], where: str) -> Any:
    """A segmentation: polygons, or run lengths that may be compressed.

    Raises:
      UserError: it is neither, or of another size than the image.
    """
    if isinstance(mask, list):
        for polygon in mask:
            if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
                raise UserError(f"{where}: a polygon has no three corners: {str(polygon)[:80]}.")
            if not all(isinstance(x, int | float) and abs(x) <= 2 * max(size) for x in polygon):
                raise UserError(f"{where}: a corner is far from the image: {str(polygon)[:80]}.")
        return mask
    counts = mask.get("counts") if isinstance(mask, dict) else None
    counts = _decompressed(counts) if isinstance(counts, str) else counts
    if not isinstance(counts, list) or not all(isinstance(n, int) and n >= 0 for n in counts):
        raise UserError(f"{where}: its segmentation is neither polygons nor run lengths.")
    if mask.get("size") != list(size) or sum(counts) != size[0] * size[1]:
        raise UserError(
            f"{where}: run lengths of {mask.get('size')} and {sum(counts)} pixels; expected the "
            f"image's, {list(size)}."
        )
    return mask | {"counts": counts}


def _decompressed(text: str) -> list[int] | None:
    """Run lengths as COCO writes them in letters: 5 bits each, differences from the third on."""
    counts: list[int] = []
    value = shift = 0
    for letter in text.encode():
        bits = letter - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value, shift = value | (bits & 31) << shift, shift + 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4)
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return None if shift else counts
