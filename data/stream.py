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
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import grain
import numpy as np

from data import decode, keys, policies, transforms
from data.sources import Source
from errors import UserError

# Far more images than any run trains on.
ENDLESS = 2**50

Transform = Callable[[bytes, np.random.Generator], np.ndarray]
EvalTransform = Callable[[bytes], np.ndarray]
# What stands at a position: the number of a record, and what makes of it the arrays of a row.
Example = tuple[int, Callable[[Any], Mapping[str, np.typing.ArrayLike]]]


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
    policy: str = "none",
    magnitude: float = 0.0,
    max_pixels: int = decode.MAX_PIXELS,
) -> Transform:
    """The host's share of a training augmentation: (bytes, generator) → uint8 [size, size, 3].

    Args:
      kind: 'random_resized_crop' (`area`, `aspect`), 'scale_jitter' (`resize_min`, `resize_max`),
        or 'none' and 'pad_crop_flip', which only bring the image to its size here: padding,
        cropping and flipping then happen on the device.
      image_size: side of the result.
      flip: mirror half of the images; not for 'none' and 'pad_crop_flip'.
      policy, magnitude: what happens to the image of that size: see `policies.apply`, or 'none'.
      max_pixels: the largest number of pixels to decode.
    """
    resize = eval_transform(resize=image_size, image_size=image_size, max_pixels=max_pixels)

    def crop(data: bytes, generator: np.random.Generator) -> np.ndarray:
        if kind not in ("random_resized_crop", "scale_jitter"):
            return resize(data)
        shape = decode.image_size(data)
        if kind == "scale_jitter":
            sides = (image_size, resize_min, resize_max)
            box = transforms.scale_jitter_box(generator, *shape, *sides)
            box = transforms.rounded(box, image_size)
        else:
            box = transforms.random_resized_crop_box(generator, *shape, area, aspect)
        mirrored = flip and generator.random() < 0.5
        return transforms.decode_crop(
            data, box, size=image_size, flip=mirrored, max_pixels=max_pixels
        )

    if policy == "none":
        return crop
    return lambda data, generator: policies.apply(
        policy, crop(data, generator), generator, magnitude
    )


def eval_transform(
    *, resize: int, image_size: int, max_pixels: int = decode.MAX_PIXELS
) -> EvalTransform:
    """Shorter side to `resize`, antialiased, and the central crop: bytes → uint8 [size, size, 3].

    Args:
      resize, image_size: 1 ≤ image_size ≤ resize.
      max_pixels: the largest number of pixels to decode.
    """
    return lambda data: transforms.resize_and_crop(
        decode.decode(data, max_pixels), resize=resize, size=image_size
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
    seed: int,
    batch_size: int,
    start_step: int = 0,
    image_shape: tuple[int, ...],
    repeats: int = 1,
    **options: Any,
) -> Iterator[HostBatch]:
    """This process's rows of the training batches start_step, start_step + 1, …, without end.

    Args:
      source: the training split.
      transform: see `train_transform`.
      seed: of order and augmentation.
      batch_size: global; a multiple of `repeats` and of the processes.
      start_step: the first batch; resuming is starting here.
      image_shape: of an image.
      repeats: copies of an image in a batch, each with a position, hence a crop, of its own
        (Hoffer et al. 2020). They lie batch_size / repeats rows apart, so that copies are no
        partners in mixup and, on that many devices, never share one.
      options: see `batches`.
    Raises:
      UserError: the split is empty; at `next`: a corrupt record.
    """
    if not len(source):
        raise UserError("the training split is empty")
    order, images = record_order(len(source), seed), batch_size // repeats

    def example(position: int) -> Example:
        step, row = divmod(position, batch_size)
        record = order(step * images + row % images)
        return record, _classified(lambda x: transform(x, keys.host_generator(seed, position)))

    blank = _blank(image_shape)
    return batches(source, example, ENDLESS, start_step, blank, batch_size=batch_size, **options)


def eval_stream(
    source: Source, transform: EvalTransform, *, image_shape: tuple[int, ...], **options: Any
) -> Iterator[HostBatch]:
    """This process's rows of every record once, in order.

    Every process gets `eval_batches(len(source), batch_size)` batches of the same shape; rows
    beyond the last record are zeros with valid = False. Arguments and errors as in
    `train_stream`; `image_shape` may be that of several crops.
    """
    row = _classified(transform)
    blank = _blank(image_shape)
    return batches(source, lambda position: (position, row), len(source), 0, blank, **options)


def _classified(transform):
    """What makes the arrays of a row of a `Record`."""
    return lambda record: {"image": transform(record.image), "label": record.label}


def _blank(image_shape):
    """What makes empty rows of images and labels."""
    return lambda step, rows: {
        "image": np.zeros((rows, *image_shape), np.uint8),
        "label": np.zeros(rows, np.int32),
    }


def eval_batches(length: int, batch_size: int) -> int:
    """Number of batches that hold `length` examples."""
    return -(-length // batch_size)


def batches(
    source: Any,
    example: Callable[[int], Example | None],
    length: int,
    start_step: int,
    blank: Callable[[int, int], dict[str, np.ndarray]],
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 0,
    prefetch: int = 4,
    on_corrupt: str = "error",
) -> Iterator[HostBatch]:
    """Batches in order from `start_step` on, computed on threads ahead of use.

    Args:
      source: of records with a `name`.
      example: what stands at a position; None: nothing, so that the row is padding.
      length: number of positions; rows beyond are padding.
      blank: (step, rows) → the arrays of that many rows of padding, without `valid`. What a row is
        given is laid into their upper left corner.
      batch_size: global; a multiple of process_count.
      num_threads: 0 for as many as this process may use cores.
      prefetch: batches kept ready.
      on_corrupt: 'error' names the record; 'mask' yields zeros with valid = False.
    """
    rows = batch_size // process_count

    def batch(step: int) -> HostBatch:
        arrays = blank(step, rows) | {"valid": np.zeros(rows, bool)}
        corrupt = []
        first = step * batch_size + process_index * rows
        for row, position in enumerate(range(first, min(first + rows, length))):
            found = example(position)
            if found is None:
                continue
            index, transform = found
            name = ""
            try:
                record = source[index]
                name = record.name
                parts = transform(record)
            except decode.DecodeError as error:
                name = name or error.record
                if on_corrupt == "error":
                    raise UserError(
                        f"corrupt record {name} (number {index}): {error}; repair or remove it, "
                        "or set config.data.on_corrupt = 'mask'"
                    ) from error
                corrupt.append(name)
                continue
            for key, part in parts.items():
                place: Any = (row, *map(slice, np.shape(part)))
                arrays[key][place] = part
            arrays["valid"][row] = True
        return HostBatch(step, arrays, tuple(corrupt))

    threads = num_threads or len(os.sched_getaffinity(0))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(1, prefetch, threads))
    whole = grain.MapDataset.range(eval_batches(length, batch_size)).map(batch)[start_step:]
    return iter(whole.to_iter_dataset(options))
