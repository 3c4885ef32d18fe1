"""Small data sets as whole uint8 arrays, read once through TFDS."""

import contextlib
import zipfile
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from data.decode import DecodeError
from data.index_cache import data_directory
from data.sources import TfdsSource, builder_errors
from errors import UserError
from run import files

EMBEDDED = {"digits": "Digits", "mnist_5k": "Mnist5k"}  # builders of `data.embedded`
# The others are TFDS's own; `prepare_data.py` prepares them without TensorFlow.
NAMES = (*EMBEDDED, "cifar10", "cifar100", "fashion_mnist", "mnist")


class Images(NamedTuple):
    """One split: uint8 `[number, height, width, channels]`, int32 `[number]`, class names."""

    images: np.ndarray
    labels: np.ndarray
    label_names: tuple[str, ...]


def load(name: str, split: str, data_dir: str = "") -> Images:
    """Reads a split (TFDS syntax, such as 'train[:90%]') of an embedded or a prepared TFDS set.

    Decoded arrays of whole splits are cached beside the records. An embedded set is prepared on
    first use.

    Raises:
      UserError: the set is unknown, its package is not installed, or it has not been prepared (says
        how to); or there is no such split.
    """
    if name not in NAMES:
        raise UserError(
            f"dataset={name!r}: expected one of {', '.join(NAMES)} when data.resident=True; "
            "tfds:NAME and folder:PATH need data.resident=False."
        )
    if name in EMBEDDED:
        _prepare_embedded(name, data_dir)
    source = TfdsSource(name, split, data_dir)
    cache = source.directory / f"decoded-{split}.npz"
    try:
        with np.load(cache, allow_pickle=False) as arrays:
            return Images(arrays["images"], arrays["labels"], source.label_names)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # absent or damaged: it is only a copy
    images, labels = _decode(source, split)
    with (
        contextlib.suppress(OSError),  # a read-only or full disk: decode again next time
        files.whole(cache) as temporary,
        open(temporary, "wb") as handle,
    ):
        np.savez(handle, images=images, labels=labels)
    return Images(images, labels, source.label_names)


def averaged(images: Images, size: int) -> Images:
    """Square images as blocks of pixels averaged (and rounded) to `size` × `size` pixels.

    Images that are no larger than that stay as they are.

    Raises:
      UserError: the images' side is no multiple of `size`.
    """
    number, height, width, channels = images.images.shape
    if size >= max(height, width):
        return images
    block = height // size
    if (block * size, block * size) != (height, width):
        sides = [side for side in range(1, height + 1) if height % side == 0]
        raise UserError(
            f"data.image_size={size}: the images have {height}×{width} pixels, which are averaged "
            f"in whole blocks; expected one of {', '.join(map(str, sides))}."
        )
    blocks = images.images.reshape(number, size, block, size, block, channels)
    sums = blocks.sum(axis=(2, 4), dtype=np.uint32)
    pixels = (sums + block**2 // 2) // block**2
    return images._replace(images=pixels.astype(np.uint8))


def _prepare_embedded(name: str, data_dir: str) -> None:
    import tensorflow_datasets as tfds  # seconds to import, so only when used

    from data import embedded

    def builder() -> embedded.Embedded:
        of_name = getattr(embedded, EMBEDDED[name])
        return of_name(data_dir=data_dir or None, file_format="array_record")

    with builder_errors(name, data_directory(data_dir)):
        if builder().info.splits:
            return
        with files.lock(Path(builder().data_path).parent / ".lock"):
            waited = builder()  # Another process may have prepared it while this one waited.
            if waited.info.splits:
                return
            tfds.disable_progress_bar()  # a second of work
            try:
                waited.download_and_prepare()
            finally:
                tfds.enable_progress_bar()


def _decode(source: TfdsSource, split: str) -> tuple[np.ndarray, np.ndarray]:
    images, labels = [], []
    try:
        for i in range(len(source)):
            record = source[i]
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
    return np.stack(images), np.asarray(labels, np.int32)
