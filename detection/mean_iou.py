"""How well pixels are classified: the mean intersection over union of Pascal VOC, in percent."""

import numpy as np

IGNORED = 255  # of a mask: pixels that nobody is asked about


def confusion(predicted: np.ndarray, truth: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels by true and predicted class, int64 `[num_classes, num_classes]`; sums over images.

    Args:
      predicted: int `[height, width]`, or of any other shape.
      truth: int of the same shape; `IGNORED` pixels are left out.

    Raises:
      ValueError: the shapes differ, or a class is none of `num_classes`.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"{predicted.shape} predicted pixels for {truth.shape}")
    known = truth != IGNORED
    rows, columns = truth[known].astype(np.int64), predicted[known].astype(np.int64)
    if (
        rows.size
        and not 0 <= min(rows.min(), columns.min()) <= max(rows.max(), columns.max()) < num_classes
    ):
        raise ValueError(f"a class is none of 0 … {num_classes - 1}")
    places = np.bincount(rows * num_classes + columns, minlength=num_classes**2)
    return places.reshape(num_classes, num_classes)


def mean_iou(pixels: np.ndarray) -> dict[str, float]:
    """Percent of a sum of `confusion`: of the mean IoU, of right pixels, and each class's IoU.

    A class that is neither there nor predicted has no IoU and does not count.

    Returns:
      `mIoU`, `pixel_accuracy` and `IoU_<label>`; empty without a pixel.
    """
    right, either = np.diag(pixels), pixels.sum(0) + pixels.sum(1) - np.diag(pixels)
    by_class = {f"IoU_{i}": 100 * float(right[i] / either[i]) for i in np.flatnonzero(either)}
    if not by_class:
        return {}
    mean = float(np.mean(list(by_class.values())))
    return {"mIoU": mean, "pixel_accuracy": 100 * float(right.sum() / pixels.sum())} | by_class
