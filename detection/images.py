"""Images as detectors are shown them: resized, normalised, and on a canvas of one of a few shapes.

A canvas is an array with room for an image. Its sides are of a row that begins with the shorter
side of resized images, in which each is 4/3 of the one before, and which ends with their longest.
With 800 and 1333 pixels these are 800, 1088 and 1344; one side of an image alone is at most the
first, so whatever the images, programs are compiled for at most five shapes.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from data.decode import DecodeError
from data.normalization import CONSTANTS
from data.transforms import resize_shorter_side, resized_shape
from detection.resize import resized
from errors import UserError

MULTIPLE = 32  # of pixels: torchvision pads detectors' images to it
ASPECT = 4 / 3  # from one canvas to the next
# Pixels of a segmenter's image: its scores are enlarged by products, whose memory grows with the
# square. 40 × 2000 pixels pass at a shorter side of 520.
LONGEST = 2**15


def padded(size: Sequence[int]) -> tuple[int, int]:
    """Height and width, each up to the next multiple of 32."""
    height, width = (-(-n // MULTIPLE) * MULTIPLE for n in size)
    return height, width


def sides(shorter: int, longer: int = 0) -> Iterator[int]:
    """The sides that canvases have, for `shorter` and `longer` as `prepare` takes them."""
    last = padded((longer, 0))[0]
    for steps in itertools.count():
        side, _ = padded((math.ceil(shorter * ASPECT**steps), 0))
        if last and side >= last:
            yield last
            return
        yield side


def canvas(height: int, width: int, shorter: int, longer: int = 0) -> tuple[int, int]:
    """The smallest canvas that has room for so many pixels."""
    first, second = (
        next(side for side in sides(shorter, longer) if side >= n) for n in (height, width)
    )
    return first, second


def resized_size(height: int, width: int, shorter: int, longer: int) -> tuple[int, int]:
    """Height and width when the shorter side becomes `shorter`, or the longer one `longer`.

    The scale is that with which neither gets larger; sides are rounded down, as in torchvision, but
    to no less than 1.
    """
    scale = min(shorter / min(height, width), longer / max(height, width))
    return max(1, math.floor(height * scale)), max(1, math.floor(width * scale))


def prepare(image: np.ndarray, shorter: int, longer: int = 0) -> np.ndarray:
    """An image as the network is shown it, without padding.

    Args:
      image: uint8 `[height, width, 3]`, or of one channel, which is grey.
      shorter, longer: in pixels, as `resized_size`; with `longer`, normalised and then resized as
        torchvision's detectors do. 0: only the shorter side counts, and the resizing comes first
        and is antialiased, as for torchvision's segmenters.

    Raises:
      UserError: it is no such array, or has no pixels.
      DecodeError: without `longer`, the image is so long that it would not fit into memory.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3) or not image.size:
        raise UserError(
            f"an image of {image.dtype} {list(image.shape)}: expected uint8 [height, width, 3], or "
            "1 channel for grey, with at least one pixel; drop alpha, and scale to 0 … 255."
        )
    image = np.broadcast_to(image, (*image.shape[:2], 3))
    height, width, _ = image.shape
    if not longer:
        size = resized_shape(height, width, shorter)
        if max(size) > LONGEST:
            raise DecodeError(
                f"an image of {height:,} × {width:,} is too thin to be segmented: with a shorter "
                f"side of {shorter} it has {max(size):,} pixels along the other, where {LONGEST:,} "
                "is the most; cut it into parts"
            )
        return _normalized(resize_shorter_side(np.ascontiguousarray(image), shorter))
    return resized(_normalized(image), *resized_size(height, width, shorter, longer))


def _normalized(image):
    constants = CONSTANTS["imagenet"]
    return (np.float32(image) - constants.mean) / constants.std


def batched(images: Sequence[np.ndarray], shape: Sequence[int], count: int) -> np.ndarray:
    """Prepared images, each in the upper left corner of `shape`: `[count, *shape, 3]`, else 0."""
    batch = np.zeros((count, *shape, 3), np.float32)
    for laid, image in zip(batch, images, strict=False):
        laid[: image.shape[0], : image.shape[1]] = image
    return batch
