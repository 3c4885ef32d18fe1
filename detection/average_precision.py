"""How well objects are found: the average precision of COCO and that of Pascal VOC, in percent."""

import contextlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from detection.annotated import Annotated
from detection.masks import MASK_FROM
from detection.network import Objects
from errors import UserError
from run.processes import gathered

INSTALL = "pip install pycocotools"
# What COCO's evaluation says, in its order.
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
VOC_OVERLAP = 0.5


def run_lengths(masks: Any) -> list[dict[str, Any]]:
    """Masks as COCO's compressed run lengths, `{'size': [height, width], 'counts': str}`.

    Args:
      masks: bool or probabilities `[n, height, width]`; what are run lengths already stay so.

    Raises:
      UserError: pycocotools is not installed.
    """
    if not isinstance(masks, np.ndarray):
        return list(masks)
    bits = (masks > MASK_FROM).astype(np.uint8).transpose(1, 2, 0)
    encoded = pycocotools("mask").encode(np.asfortranarray(bits))
    return [one | {"counts": one["counts"].decode()} for one in encoded]


def pycocotools(module: str) -> Any:
    """A module of pycocotools, which nothing else needs.

    Raises:
      UserError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(f"pycocotools.{module}")
    except ImportError as error:
        raise UserError(
            f"COCO's average precision and its masks need pycocotools ({error}): `{INSTALL}`."
        ) from error


def gathered_objects(found: Mapping[int, Objects], number: int) -> list[Objects]:
    """What all processes found, on each of them: an entry for each of the split's images, once.

    Args:
      found: what this process found, by the image's place in the split. Masks come back as run
        lengths.
      number: of images in the split.

    Raises:
      ValueError: an image is missing, or two processes differ in it.
    """

    def packed(index, objects):
        masks = None if objects.masks is None else run_lengths(objects.masks)
        lists = [np.asarray(array).tolist() for array in objects[:3]]
        return json.dumps([int(index), *lists, masks])

    entries = sorted(map(json.loads, gathered(packed(*item) for item in found.items())))
    if [entry[0] for entry in entries] != list(range(number)):
        raise ValueError(f"{len(entries)} results for {number} images: expected one of each")
    return [
        Objects(
            np.array(boxes, np.float32).reshape(-1, 4),
            np.array(scores, np.float32),
            np.array(labels, np.int32),
            masks,
        )
        for _, boxes, scores, labels, masks in entries
    ]


def coco_ap(
    found: Sequence[Objects], truth: Sequence[Annotated], masks: bool = False
) -> dict[str, float]:
    """COCO's average precision and recall, as pycocotools computes them.

    Args:
      found: in each image, boxes in pixels of the annotated image.
      truth: the same images. What is a crowd is neither missed nor wrong where it is found.
      masks: measure masks, too.

    Returns:
      Percent by `NAMES`, those of masks as `mask_AP` and so on. What there is no object for, such
      as `APs` without a small one, is left out.

    Raises:
      UserError: pycocotools is not installed, or there is nothing to find.
    """
    if not any((~one.crowd).any() for one in truth):
        raise UserError(f"{len(truth)} images without an object: no average precision is defined.")
    said: dict[str, float] = {}
    for kind, prefix in (("bbox", ""), ("segm", "mask_"))[: 1 + masks]:
        labels = sorted({int(label) for one in truth for label in one.labels})
        sizes = [one.size for one in truth]
        right, ours = (_dataset(images, sizes, labels, kind == "segm") for images in (truth, found))
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = pycocotools("cocoeval").COCOeval(right, ours, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        stats = zip(NAMES, evaluation.stats.tolist(), strict=True)
        said |= {prefix + name: 100 * value for name, value in stats if value >= 0}
    return said


def _dataset(images: Iterable[Any], sizes, labels, masks):
    """pycocotools' data set of `Annotated` or of `Objects`."""
    annotations = []
    for image_id, one in enumerate(images):
        corners = np.asarray(one.boxes, np.float64).reshape(-1, 4)
        sides = corners[:, 2:] - corners[:, :2]
        bits = run_lengths(one.masks) if masks and len(corners) else [None] * len(corners)
        true = isinstance(one, Annotated)
        areas = one.area if true else np.prod(sides, 1)
        if masks and not true and len(corners):
            areas = pycocotools("mask").area(bits)
        for i, mask in enumerate(bits):
            entry = {
                "id": len(annotations) + 1,  # 0 would count as no match
                "image_id": image_id,
                "category_id": int(one.labels[i]),
                "bbox": [*corners[i, :2], *sides[i]],
                "area": float(areas[i]),
                "iscrowd": int(true and one.crowd[i]),
            }
            entry |= {} if true else {"score": float(one.scores[i])}
            annotations.append(entry | ({"segmentation": mask} if mask else {}))
    with contextlib.redirect_stdout(io.StringIO()):
        data = pycocotools("coco").COCO()
        data.dataset = {
            "images": [{"id": i, "height": h, "width": w} for i, (h, w) in enumerate(sizes)],
            "annotations": annotations,
            "categories": [{"id": label} for label in labels],
        }
        data.createIndex()
    return data


def voc_ap(
    found: Sequence[Objects], truth: Sequence[Annotated], eleven_points: bool = False
) -> dict[str, float]:
    """Pascal VOC's average precision at an IoU of 0.5.

    From the highest score down, an object is right when the box of its class that it overlaps most
    has an IoU of 0.5 and more with it and was not found before; when that one is difficult, it does
    not count. IoU is that of continuous coordinates, which is the development kit's of whole pixels
    where boxes are read as `detection.voc` reads them.

    Args:
      found: in each image, boxes in pixels of the annotated image.
      truth: the same images.
      eleven_points: the mean of the best precision at a recall of 0, 0.1, … 1 and more (until
        2009); else the area under the best precision at each recall and more.

    Returns:
      Percent: `mAP` and, for each class with an object, `AP_<label>`.

    Raises:
      UserError: there is nothing to find.
    """
    by_class: dict[str, float] = {}
    for label in sorted({int(label) for one in truth for label in one.labels[~one.crowd]}):
        right, count = _matched(found, truth, label)
        cumulated = np.cumsum(right)
        recall = cumulated / count
        precision = cumulated / np.arange(1, len(right) + 1)
        best = np.maximum.accumulate(precision[::-1])[::-1]  # at this recall and more
        if eleven_points:
            # The tenths as others compute them: 3 · 0.1 is a little more than 3 / 10.
            places = np.searchsorted(recall, np.arange(11) * 0.1)
            area = sum(best[place] for place in places if place < len(best)) / 11
        else:
            area = float(np.sum(np.diff(recall, prepend=0) * best))
        by_class[f"AP_{label}"] = 100 * float(area)
    if not by_class:
        raise UserError(f"{len(truth)} images without an object: no average precision is defined.")
    return {"mAP": float(np.mean(list(by_class.values())))} | by_class


def _matched(found, truth, label):
    """Whether objects of a class are right, the best first, and how many there are to find."""
    entries, count = [], 0
    for one, objects in zip(truth, found, strict=True):
        mine = np.asarray(objects.labels) == label
        here = one.labels == label
        overlaps = iou(np.asarray(objects.boxes)[mine], one.boxes[here])
        taken = one.crowd[here].astype(int)
        count += int((taken == 0).sum())
        entries += [(-s, o, taken) for s, o in zip(objects.scores[mine], overlaps, strict=True)]
    right = []
    for _, overlaps, taken in sorted(entries, key=lambda entry: entry[0]):
        place = int(overlaps.argmax()) if len(overlaps) else -1
        if place < 0 or overlaps[place] < VOC_OVERLAP or taken[place] == 2:
            right.append(False)
        elif taken[place] == 0:
            taken[place] = 2
            right.append(True)
    return np.array(right, bool), count


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of boxes `[n, 4]` and `[m, 4]` in float64: `[n, m]`; that of empty boxes is 0."""
    a, b = a.astype(float)[:, None], b.astype(float)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    both = np.prod(np.clip(sides, 0, None), -1)
    either = sum(np.prod(boxes[..., 2:] - boxes[..., :2], -1) for boxes in (a, b)) - both
    return np.divide(both, either, out=np.zeros_like(both), where=either > 0)
