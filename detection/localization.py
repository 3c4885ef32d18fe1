"""ILSVRC's localization error: an image is right when its class is named and a box of it fits."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from detection.average_precision import iou

OVERLAP = 0.5  # IoU from which a box is right
NAMED = 5  # classes that may be named


class Located(NamedTuple):
    """What is said of one image.

    Attributes:
      own: `[4]`, the box of the true class, as if that were known.
      classes: int `[k]`, the predicted ones, the most probable first, from 0 on.
      boxes: `[k, 4]`, a box of each: left, top, right, bottom in pixels.
    """

    own: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray


def localization_errors(
    found: Sequence[Located], labels: Sequence[int], truth: Sequence[np.ndarray]
) -> dict[str, float]:
    """Errors in percent of all images.

    A box is right when its IoU with one of the image's boxes is at least 0.5. IoU is that of
    continuous coordinates: of boxes of whole pixels, both ends included, the development kit's.

    Args:
      found: of each image.
      labels: true classes, from 0 on.
      truth: boxes `[m, 4]` of each image's true class, m ≥ 1.

    Returns:
      'localization_error': of the box of the true class. 'top1_localization_error' and
      'top5_localization_error': the first, or none of the first five, predicted classes is right
      together with its box. 'top1_class_error' and 'top5_class_error': whatever the box.
    """
    rows = []
    for one, label, boxes in zip(found, labels, truth, strict=True):
        named = one.classes[:NAMED] == label
        both = named & _right(one.boxes[:NAMED], boxes)
        rows.append([_right(one.own[None], boxes)[0], both[0], both.any(), named[0], named.any()])
    names = ("localization", "top1_localization", "top5_localization", "top1_class", "top5_class")
    wrong = 100 * (1 - np.mean(rows, 0))
    return {f"{name}_error": float(x) for name, x in zip(names, wrong, strict=True)}


def _right(boxes, truth):
    return (iou(boxes, truth) >= OVERLAP).any(1)
