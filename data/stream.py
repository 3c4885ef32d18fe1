"""The host pipeline: source → order → decode, crop, flip on threads → batches of uint8.

Batch k is a pure function of (seed, k): an example is identified by its position
`k * batch_size + row` in the endless sequence of epochs; the record at a position comes from the
epoch's permutation, keyed with (seed, epoch), the crop and the flip from a generator keyed with
(seed, position). Process p of n computes rows [p, p + 1) * batch_size / n of every batch, so that
the global batches are the same arrays for any number of processes and threads, and a run resumes
by starting at its step.
"""

import functools
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import grain
import numpy as np

from data import keys, transforms
from data.decode import DecodeError
from data.sources import Record, Source
from errors import UserError

# What a source raises when a record cannot be read.
_READ_ERRORS = (OSError, ValueError, RuntimeError)
# Far more batches than any run trains on.
_ENDLESS = 2**40

Transform = Callable[[bytes, np.random.Generator], np.ndarray]


class HostBatch(NamedTuple):
    """One process's rows of a global batch.

    `arrays` is {'image': uint8 [rows, height, width, 3], 'label': int32 [rows], 'valid': bool
    [rows]}; padding and corrupt records are zeros with valid = False. `corrupt` names the corrupt
    records among these rows.
    """

    step: int
    arrays: dict[str, np.ndarray]
    corrupt: tuple[str, ...]


def train_transform(
    *,
    kind: str,
    image_size: int,
    flip: bool,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
    resize_min: int = 256,
    resize_max: int = 480,
) -> Transform:
    """The host's share of a training augmentation: (bytes, generator) → uint8 [size, size, 3].

    Args:
      kind: 'random_resized_crop' (`area`, `aspect`), 'scale_jitter' (`resize_min`, `resize_max`),
        or 'none' and 'pad_crop_flip', which only bring the image to its size here: padding,
        cropping and flipping then happen on the device.
      image_size: side of the result.
      flip: mirror half of the images; not for 'none' and 'pad_crop_flip'.
    """
    if kind == "random_resized_crop":
        return functools.partial(
            transforms.random_resized_crop, size=image_size, area=area, aspect=aspect, flip=flip
        )
    if kind == "scale_jitter":
        return functools.partial(
            transforms.scale_jitter_crop,
            size=image_size,
            resize_min=resize_min,
            resize_max=resize_max,
            flip=flip,
        )
    resize = eval_transform(resize=image_size, image_size=image_size)
    return lambda data, generator: resize(data)


def eval_transform(*, resize: int, image_size: int) -> Callable[[bytes], np.ndarray]:
    """Shorter side to `resize`, antialiased, and the central crop: bytes → uint8 [size, size, 3].

    Args:
      resize, image_size: 1 ≤ image_size ≤ resize.
    """
    return lambda data: transforms.resize_and_crop(
        transforms.decode(data), resize=resize, size=image_size
    )


def record_order(length: int, seed: int) -> Callable[[int], int]:
    """The shuffle: position in the endless sequence of epochs → record index.

    Each epoch is a permutation of its own, a pure function of (seed, epoch).
    """

    @functools.lru_cache(maxsize=2)  # batches straddle epochs
    def permutation(epoch: int) -> np.ndarray:
        return keys.host_order_generator(seed, epoch).permutation(np.arange(length, dtype=np.int32))

    return lambda position: int(permutation(position // length)[position % length])


def train_stream(
    source: Source,
    transform: Transform,
    *,
    image_shape: tuple[int, int, int],
    seed: int,
    batch_size: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 0,
    prefetch: int = 4,
    on_corrupt: str = "error",
) -> Iterator[HostBatch]:
    """This process's rows of the training batches start_step, start_step + 1, …, without end.

    Args:
      source: the training split.
      transform: see `train_transform`.
      image_shape: of the transform's result.
      seed: of order and augmentation.
      batch_size: global; a multiple of process_count.
      start_step: the first batch; resuming is starting here.
      num_threads: 0 for as many as this process may use cores.
      prefetch: batches kept ready.
      on_corrupt: 'error' names the record; 'mask' yields zeros with valid = False.
    Raises:
      UserError: a corrupt record ('error'), at `next`; at once for arguments that cannot work.
    """
    rows = _rows_per_process(batch_size, process_count)
    if not len(source):
        raise UserError("the training split is empty")
    order = record_order(len(source), seed)
    load = _loader(source, image_shape, on_corrupt)

    def batch(step: int) -> HostBatch:
        first = step * batch_size + process_index * rows
        examples = (
            (
                order(position),
                lambda data, p=position: transform(data, keys.host_generator(seed, p)),
            )
            for position in range(first, first + rows)
        )
        return load(step, rows, examples)

    return _threaded(batch, _ENDLESS, start_step, num_threads, prefetch)


def eval_stream(
    source: Source,
    transform: Callable[[bytes], np.ndarray],
    *,
    image_shape: tuple[int, ...],
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 0,
    prefetch: int = 4,
    on_corrupt: str = "error",
) -> Iterator[HostBatch]:
    """This process's rows of every record once, in order.

    Every process gets `eval_batches(len(source), batch_size)` batches of the same shape; rows
    beyond the last record are zeros with valid = False. Arguments and errors as in
    `train_stream`; `image_shape` may be that of several crops.
    """
    rows = _rows_per_process(batch_size, process_count)
    length = len(source)
    load = _loader(source, image_shape, on_corrupt)

    def batch(step: int) -> HostBatch:
        first = step * batch_size + process_index * rows
        indices = range(first, min(first + rows, length))
        return load(step, rows, ((index, transform) for index in indices))

    return _threaded(batch, eval_batches(length, batch_size), 0, num_threads, prefetch)


def eval_batches(length: int, batch_size: int) -> int:
    """Number of batches that hold `length` examples."""
    return -(-length // batch_size)


def _rows_per_process(batch_size: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"batch_size={batch_size} is no positive multiple of the {process_count} processes"
        )
    return batch_size // process_count


def _loader(source: Source, image_shape: tuple[int, ...], on_corrupt: str):
    """A function (step, rows, [(record index, transform)]) → HostBatch, padded to `rows`."""

    def load(step: int, rows: int, examples) -> HostBatch:
        arrays = {
            "image": np.zeros((rows, *image_shape), np.uint8),
            "label": np.zeros(rows, np.int32),
            "valid": np.zeros(rows, bool),
        }
        corrupt = []
        for row, (index, transform) in enumerate(examples):
            record = None
            try:
                record = _read(source, index)
                arrays["image"][row] = transform(record.image)
            except DecodeError as error:
                name = record.name if record else error.record or f"record {index}"
                if on_corrupt == "error":
                    raise UserError(
                        f"corrupt record {name} (number {index}): {error}; repair or remove it, "
                        "or set config.data.on_corrupt = 'mask'"
                    ) from error
                corrupt.append(name)
                continue
            arrays["label"][row] = record.label
            arrays["valid"][row] = True
        return HostBatch(step, arrays, tuple(corrupt))

    return load


def _read(source: Source, index: int) -> Record:
    """A record that cannot be read is as corrupt as one that cannot be decoded.

    Our own sources say so themselves, with its name.
    """
    try:
        return source[index]
    except DecodeError:
        raise
    except _READ_ERRORS as error:
        raise DecodeError(f"cannot be read: {error}") from error


def _threaded(
    batch: Callable[[int], HostBatch], length: int, start: int, num_threads: int, prefetch: int
) -> Iterator[HostBatch]:
    """Batches start … length − 1 in order, computed on threads ahead of use."""
    threads = num_threads or len(os.sched_getaffinity(0))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(1, prefetch, threads))
    batches = grain.MapDataset.range(length).map(batch)[start:]
    return iter(batches.to_iter_dataset(options))
