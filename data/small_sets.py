"""Small data sets as whole uint8 arrays, read once through TFDS."""

import contextlib
import fcntl
import os
import zipfile
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from data import index_cache
from data.sources import DAMAGE, builder_errors
from errors import UserError

DIGITS = "digits"
# TFDS's own builders; `prepare_data.py` prepares them without TensorFlow.
PREPARED = ("cifar10", "cifar100", "fashion_mnist", "mnist")
NAMES = (DIGITS, *PREPARED)
CHUNK = 2_000  # records per bulk read


class Images(NamedTuple):
    """One split: uint8 `[number, height, width, channels]`, int32 `[number]`, class names."""

    images: np.ndarray
    labels: np.ndarray
    label_names: tuple[str, ...]


def load(name, split, data_dir=""):
    """Reads a split (TFDS syntax, such as 'train[:90%]') of `digits` or a prepared TFDS set.

    Decoded arrays of whole splits are cached beside the records. `digits` is prepared on first use.

    Raises:
      UserError: the set is unknown or has not been prepared (says in two lines how to), or there is
        no such split.
    """
    import tensorflow_datasets as tfds  # seconds to import, so only when used

    if name not in NAMES:
        raise UserError(
            f"dataset={name!r}: expected one of {', '.join(NAMES)} when data.resident=True; "
            "tfds:NAME and folder:PATH need data.resident=False."
        )
    with builder_errors(name, index_cache.data_directory(data_dir)):
        builder = _digits(data_dir) if name == DIGITS else _prepared(tfds, name, data_dir)
    label_names = tuple(builder.info.features["label"].names)
    cache = Path(builder.data_path) / f"decoded-{split}.npz"
    cached = _read_cache(cache)
    if cached is None:
        cached = _decode(tfds, builder, split)
        _write_cache(cache, *cached)
    return Images(*cached, label_names)


def _digits(data_dir):
    from data.digits import Digits

    builder = Digits(data_dir=data_dir or None, file_format="array_record")
    if not builder.info.splits:
        with _lock(Path(builder.data_path).parent):
            # Another process may have prepared it while this one waited for the lock.
            builder = Digits(data_dir=data_dir or None, file_format="array_record")
            if not builder.info.splits:
                with _quiet_progress():
                    builder.download_and_prepare()
    return builder


@contextlib.contextmanager
def _quiet_progress():
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()  # half a second of work
    try:
        yield
    finally:
        tfds.enable_progress_bar()


@contextlib.contextmanager
def _lock(directory):
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _prepared(tfds, name, data_dir):
    builder = tfds.builder(name, data_dir=data_dir or None, file_format="array_record")
    if not builder.info.splits:
        raise UserError(
            f"data set {name!r} has not been prepared in {builder.data_path}; prepare it with\n"
            f"    python prepare_data.py {name}" + (f" --data_dir={data_dir}" if data_dir else "")
        )
    return builder


def _decode(tfds, builder, split):
    try:
        source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except (ValueError, KeyError) as error:
        raise UserError(
            f"split {split!r} of {builder.name}: not a split; there are "
            f"{', '.join(builder.info.splits)} ({error})."
        ) from error
    images, labels = [], []
    try:
        for start in range(0, len(source), CHUNK):
            for record in source.__getitems__(list(range(start, min(start + CHUNK, len(source))))):
                image = cv2.imdecode(np.frombuffer(record["image"], np.uint8), cv2.IMREAD_UNCHANGED)
                if image is None:
                    raise ValueError("it holds no image")
                image = image[:, :, ::-1] if image.ndim == 3 else image[:, :, None]  # BGR → RGB
                images.append(image)
                labels.append(record["label"])
    except (*DAMAGE, cv2.error) as error:
        raise UserError(
            f"{builder.data_path}: record {len(images)} of split {split!r}, or one of the "
            f"{CHUNK} after it, is damaged ({error}); remove this directory and prepare it again."
        ) from error
    if not images:
        raise UserError(f"split {split!r} of {builder.name} is empty.")
    return np.stack(images), np.asarray(labels, np.int32)


def _read_cache(path):
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["images"], arrays["labels"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # absent or damaged: it is only a copy


def _write_cache(path, images, labels):
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as handle:
            np.savez(handle, images=images, labels=labels)
        temporary.replace(path)
    except OSError:  # a read-only or full disk: decode again next time
        temporary.unlink(missing_ok=True)
