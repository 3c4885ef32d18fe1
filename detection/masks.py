"""Masks of boxes as masks of the image, as torchvision pastes them; on the host."""

import numpy as np

from detection.resize import resized

MASK_FROM = 0.5  # above this probability a pixel is the object's


def paste(masks: np.ndarray, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Probabilities inside of boxes as probabilities at the pixels of the image.

    A mask gets a ring of zeros, and its box grows alike and is rounded to whole pixels.

    Args:
      masks: `[n, s, s]`.
      boxes: `[n, 4]` in pixels.

    Returns:
      float32 `[n, height, width]`, 0 outside of the boxes.
    """
    image = np.zeros((len(masks), height, width), np.float32)
    if not len(masks):
        return image
    side = masks.shape[-1]
    ringed = np.pad(masks, ((0, 0), (1, 1), (1, 1)))
    scale = np.float32((side + 2) / side)
    half = (boxes[:, 2:] - boxes[:, :2]) * np.float32(0.5) * scale
    centre = (boxes[:, 2:] + boxes[:, :2]) * np.float32(0.5)
    whole = np.concatenate([centre - half, centre + half], 1).astype(np.int64)
    for laid, mask, (left, top, right, bottom) in zip(image, ringed, whole, strict=True):
        mask = resized(mask, max(bottom - top + 1, 1), max(right - left + 1, 1))
        y, x = max(top, 0), max(left, 0)
        inside = laid[y : max(bottom + 1, 0), x : max(right + 1, 0)]
        inside[:] = mask[y - top :, x - left :][: inside.shape[0], : inside.shape[1]]
    return image
