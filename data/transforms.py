"""Host transforms: encoded bytes → one uint8 RGB image, NumPy only, safe to call on many threads.

Training crops are one decode and one resize: the box is drawn first, in source pixels, and only
the rows that it needs are decoded, at the coarsest scale that loses nothing. Every random choice
comes from the generator that is handed in. Evaluation resizes are antialiased (Pillow).
"""

import functools
import math
from types import ModuleType
from typing import NamedTuple

import numpy as np
from PIL import Image

from data import jpeg
from data.decode import MAX_PIXELS, check_size, decode

# Shrinking by more than this is antialiased in training crops as well. Up to 2, bilinear
# interpolation reads every source pixel, takes half the time, and is what TensorFlow's resize does.
ANTIALIAS_FROM = 2.0
# Boxes with sides from here on are rounded to whole pixels for a bilinear resize, which is three
# times faster: an error of less than half a pixel of the source.
ROUND_FROM = 64
_RRC_ATTEMPTS = 10


class Box(NamedTuple):
    """A rectangle in source pixels; fractions allowed."""

    top: float
    left: float
    height: float
    width: float


# ---- Training crops


def random_resized_crop_box(
    generator: np.random.Generator,
    height: int,
    width: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> Box:
    """A box of a random share of the area and a random aspect ratio (Szegedy et al. 2015).

    Args:
      generator: source of the randomness; the number of draws is fixed.
      height, width: of the image, ≥ 1.
      area: range of the share of the image's area, in (0, 1].
      aspect: range of width / height, drawn on a logarithmic scale.
    Returns:
      The first of ten boxes that fits, in whole pixels; else the largest central box whose aspect
      is in range.
    """
    draws = generator.random((_RRC_ATTEMPTS + 1, 2)).tolist()
    log_aspect = math.log(aspect[0]), math.log(aspect[1])
    for share, shape in draws[:-1]:
        pixels = (area[0] + share * (area[1] - area[0])) * height * width
        ratio = math.exp(log_aspect[0] + shape * (log_aspect[1] - log_aspect[0]))
        box_height, box_width = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 1 <= box_height <= height and 1 <= box_width <= width:
            top = int(draws[-1][0] * (height - box_height + 1))
            left = int(draws[-1][1] * (width - box_width + 1))
            return Box(top, left, box_height, box_width)
    box_width = max(1, min(width, round(height * aspect[1])))
    box_height = max(1, min(height, round(width / aspect[0])))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def scale_jitter_box(
    generator: np.random.Generator,
    height: int,
    width: int,
    size: int,
    resize_min: int,
    resize_max: int,
) -> Box:
    """The paper's scale augmentation (section 3.4) as one box of the source.

    "The image is resized with its shorter side randomly sampled in [256, 480] … A 224×224 crop is
    randomly sampled from an image": the box is where that crop lies in the source.

    Args:
      generator: source of the randomness; the number of draws is fixed.
      height, width: of the image, ≥ 1.
      size: side of the crop, ≤ resize_min.
      resize_min, resize_max: range of the shorter side, both included.
    """
    shorter = int(generator.integers(resize_min, resize_max, endpoint=True))
    place = generator.random(2)
    new_height, new_width = resized_shape(height, width, shorter)
    top = int(place[0] * (new_height - size + 1))
    left = int(place[1] * (new_width - size + 1))
    return _box_in_source(height, width, new_height, new_width, top, left, size)


def rounded(box: Box, size: int) -> Box:
    """The box in whole pixels where that is faster and does no harm (`ROUND_FROM`).

    Args:
      box: of the source.
      size: side of what it is resized to.
    """
    sides = box.height, box.width
    if min(sides) < ROUND_FROM or max(sides) > ANTIALIAS_FROM * size:
        return box
    top, left = round(box.top), round(box.left)
    return Box(top, left, round(box.top + box.height) - top, round(box.left + box.width) - left)


def decode_crop(
    data: bytes, box: Box, *, size: int, flip: bool = False, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Decodes what `box` needs and resizes it to uint8 [size, size, 3], mirrored if `flip`.

    Args:
      data: the encoded image.
      box: within `image_size(data)`.
      size: side of the result.
      flip: mirror left-right.
      max_pixels: of the whole image.
    Raises:
      DecodeError: see `decode`.
    """
    header = jpeg.read_header(data)
    image = None
    if header and header.orientation == 1:
        check_size(header.height, header.width, max_pixels)
        shrink = min(box.height, box.width) / size
        factor = next(f for f in (8, 4, 2, 1) if f <= max(shrink, 1))
        rows = min(header.height, math.ceil(box.top + box.height) + factor)
        image = jpeg.decode_rows(data, header, rows, factor)
        if image is not None and factor > 1:
            box = Box(*(value / factor for value in box))
    if image is None:
        image = decode(data, max_pixels)
    return resized_box(image, box, size, flip)


@functools.cache
def opencv() -> ModuleType:
    """OpenCV without threads of its own."""
    import cv2  # only what cuts photographs needs it

    cv2.setNumThreads(0)  # The pipeline's own threads are the parallelism.
    return cv2


def resized_box(image: np.ndarray, box: Box, size: int, flip: bool = False) -> np.ndarray:
    """One resize of a box of an image [height, width, 3] to uint8 [size, size, 3]."""
    cv2, antialias = opencv(), max(box.height, box.width) / size > ANTIALIAS_FROM
    if all(float(value).is_integer() for value in box):
        top, left, height, width = map(int, box)
        method = cv2.INTER_AREA if antialias else cv2.INTER_LINEAR
        crop = image[top : top + height, left : left + width]
        resized = cv2.resize(crop, (size, size), interpolation=method)
        return cv2.flip(resized, 1) if flip else resized
    if antialias:
        resized = _antialiased(image, box, size)
        return np.ascontiguousarray(resized[:, ::-1]) if flip else resized
    scale_y, scale_x = box.height / size, box.width / size
    step, start = scale_x, box.left + scale_x / 2 - 0.5
    if flip:
        step, start = -scale_x, box.left + box.width - scale_x / 2 - 0.5
    target_to_source = np.array([[step, 0, start], [0, scale_y, box.top + scale_y / 2 - 0.5]])
    return cv2.warpAffine(
        image,
        target_to_source,
        (size, size),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


# ---- Evaluation


def resized_shape(height: int, width: int, shorter: int) -> tuple[int, int]:
    """(height, width) when the shorter side becomes `shorter`; the longer is rounded down."""
    if height <= width:
        return shorter, max(shorter, int(shorter * width / height))
    return max(shorter, int(shorter * height / width)), shorter


def _box_in_source(
    height: int, width: int, new_height: int, new_width: int, top: int, left: int, size: int
) -> Box:
    """Where a crop of the resized image lies in the source."""
    scale_y, scale_x = height / new_height, width / new_width
    return Box(top * scale_y, left * scale_x, size * scale_y, size * scale_x)


def _antialiased(image: np.ndarray, box: Box, size: int) -> np.ndarray:
    height, width, _ = image.shape
    # Pillow refuses a box that exceeds the image by a rounding error.
    bottom, right = min(box.top + box.height, height), min(box.left + box.width, width)
    corners = (box.left, box.top, right, bottom)
    resized = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box=corners)
    return np.asarray(resized)


def resize_shorter_side(image: np.ndarray, side: int, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The whole image [height, width, 3] with its shorter side `side`, antialiased.

    Raises:
      DecodeError: the result would have more than max_pixels (an extremely long image).
    """
    height, width, _ = image.shape
    new_height, new_width = resized_shape(height, width, side)
    check_size(new_height, new_width, max_pixels)
    resized = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def resize_and_crop(image: np.ndarray, *, resize: int, size: int) -> np.ndarray:
    """The central [size, size, 3] of the image [height, width, 3] with its shorter side `resize`.

    Antialiased; size ≤ resize.
    """
    height, width, _ = image.shape
    new_height, new_width = resized_shape(height, width, resize)
    top, left = round((new_height - size) / 2), round((new_width - size) / 2)
    return _antialiased(
        image, _box_in_source(height, width, new_height, new_width, top, left, size), size
    )


def ten_crop(
    image: np.ndarray, *, resize: int, size: int, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """The standard 10-crop test (section 3.4): four corners and the centre, and their mirrors.

    Args:
      image: uint8 [height, width, 3].
      resize: the shorter side before cropping, 256 in the paper.
      size: side of each crop, ≤ resize.
      max_pixels: of the resized image.
    Returns:
      uint8 [10, size, size, 3]: top left, top right, bottom left, bottom right, centre, mirrored.
    """
    resized = resize_shorter_side(image, resize, max_pixels)
    y, x = (round((side - size) / 2) for side in resized.shape[:2])
    top, bottom, middle = resized[:size], resized[-size:], resized[y : y + size]
    corners = [top[:, :size], top[:, -size:], bottom[:, :size], bottom[:, -size:]]
    crops = np.stack([*corners, middle[:, x : x + size]])
    return np.concatenate([crops, crops[:, :, ::-1]])
