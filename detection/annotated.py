"""An image with the objects in it: what is trained on, and what findings are held against."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np


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
    """

    image: np.ndarray | Callable[[], np.ndarray]
    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | Sequence[Any] | None
    crowd: np.ndarray
    area: np.ndarray
    name: str = ""
