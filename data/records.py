"""A prepared TFDS set of small images as arrays."""

import cv2
import numpy as np

from data.decode import DecodeError, check_size, image_size
from data.sources import TfdsSource
from errors import UserError


def whole_split(
    name: str, split: str, data_dir: str
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Images uint8 `[number, height, width, channels]`, labels int32 `[number]`, class names.

    Raises:
      UserError: the set has not been prepared, or a record is damaged.
    """
    source = TfdsSource(name, split, data_dir)
    images, labels = [], []
    try:
        for i in range(len(source)):
            record = source[i]
            check_size(*image_size(record.image))
            image = cv2.imdecode(np.frombuffer(record.image, np.uint8), cv2.IMREAD_UNCHANGED)
            if image is None:
                raise ValueError("it holds no image")
            images.append(image[:, :, ::-1] if image.ndim == 3 else image[:, :, None])  # BGR → RGB
            labels.append(record.label)
    except (ValueError, DecodeError, cv2.error) as error:
        raise UserError(
            f"{source.directory}: record {len(images)} of split {split!r} is damaged ({error}); "
            "remove this directory and prepare it again."
        ) from error
    if not images:
        raise UserError(f"split {split!r} of {source.directory} is empty.")
    return np.stack(images), np.asarray(labels, np.int32), source.label_names
