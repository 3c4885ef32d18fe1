"""Semantic segmentation as a task: what `training.task.Task` asks for."""

import functools
import itertools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data.feed import Batch
from data.normalization import Normalization
from detection import build, draw, learning
from detection.images import MULTIPLE
from detection.mean_iou import confusion, mean_iou
from detection.segmentation import Segmenter
from run.processes import gathered
from run.workdir import Workdir

LOSSES = ("loss_pixels", "loss_auxiliary")

check, create = build.check_segmentation, build.segmenter
off = build.OFF | build.OF_DETECTORS | build.OF_BOTH | build.OF_LOCALIZATION
load, learned = learning.load, learning.learned


def init(model: Segmenter, key: jax.Array, image_shape: tuple[int, int, int]) -> Any:
    """Random variables; those of images of any size are the same."""
    del image_shape
    size = jnp.full((1, 2), 2 * MULTIPLE, jnp.int32)
    return model.init(key, jnp.zeros((1, 2 * MULTIPLE, 2 * MULTIPLE, 3)), size)


def sums(config: ConfigDict) -> dict[str, jax.Array]:
    """Zeros of both parts of the loss."""
    del config
    return dict.fromkeys(LOSSES, jnp.float32(0))


def prepare(
    config: ConfigDict,
    model: Segmenter,
    normalization: Normalization,
    step: jax.Array,
    batch: Batch,
) -> Batch:
    """What `learning.prepared` makes of images, and the classes of their pixels."""
    found = learning.prepared(config, normalization, step, batch)
    return found | {"classes": batch["classes"]}


def loss(
    config: ConfigDict, model: Segmenter, variables: Any, part: Batch, key: jax.Array
) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
    """The mean over the pixels that count, of both heads."""
    del key  # of each image there is one
    sizes = part["sizes"]
    whole = jnp.array(part["images"].shape[1:3], jnp.int32)[None]
    shown = sizes if config.model.frozen_bn else jnp.where(sizes > 0, whole, 0)
    found, updated = model.apply(
        learning.kept(config, variables),
        *(part["images"], shown, part["classes"].astype(jnp.int32), part["keys"]),
        method="losses",
        mutable=["batch_stats"],
    )
    total, shares = learning.added(config, found, sizes)
    return total, (updated.get("batch_stats", variables["batch_stats"]), shares)


@functools.lru_cache(maxsize=8)
def _classes(model):
    def classes(variables, images, sizes, batch):
        whole = jnp.array(images.shape[1:3], jnp.int32)[None]
        return model.apply(variables, images, jnp.where(sizes > 0, sizes, whole)).argmax(-1)

    return classes


def _enlarged(classes, size, original):
    """The classes of an image's own pixels `[height, width]`, by the nearest neighbour."""
    rows, columns = (np.arange(new) * old // new for old, new in zip(size, original, strict=True))
    return classes[rows][:, columns]


def measure(
    model: Segmenter,
    variables: Any,
    data: Any,
    split: str,
    mesh: Mesh,
    stop: Callable[[], int] | None = None,
) -> dict[str, Any] | None:
    """Mean IoU over a split, in percent, of the pixels that count at the size of the annotations.

    Args:
      data: what `detection.data.open_data` returns.
      stop: asked before each batch; what is not 0 ends testing without a result.

    Returns:
      `{'mIoU', 'pixel_accuracy', 'IoU_<label>', 'error', 'images'}`; 'error' is 1 less the first as
      a share. With corrupt records also `'masked_images'` and `'masked_records'`.
    """
    count, number = data.facts.num_classes, data.split_size(split)
    pixels, images = np.zeros((count, count), np.int64), 0
    constants, truth = (variables, data.facts.normalization), data.annotated(split)
    batches = data.evaluation(split)
    for rows in learning.outputs(_classes(model), *constants, batches, mesh, number):
        if stop and stop():
            return None
        for index, size, original, classes in rows:
            right = truth[index].decoded().classes
            pixels += confusion(_enlarged(classes, size, original), right, count)
            images += 1
    parts = gathered([json.dumps([jax.process_index(), images, pixels.tolist()])])
    images = sum(json.loads(part)[1] for part in parts)
    result = mean_iou(np.sum([json.loads(part)[2] for part in parts], axis=0))
    error = 1 - result["mIoU"] / 100
    return data.corrupt.beside(result | {"error": error, "images": images}, split)


def conclude(
    result: dict[str, Any],
    model: Segmenter,
    variables: Any,
    data: Any,
    mesh: Mesh,
    folder: Workdir,
) -> dict[str, Any]:
    """Paints the classes of the first test images into the workdir."""
    del result
    first, names = itertools.islice(data.evaluation("test"), 1), data.facts.label_names
    constants = variables, data.facts.normalization
    (rows,) = learning.outputs(_classes(model), *constants, first, mesh, 0)
    found = {index: classes[: size[0], : size[1]] for index, size, _, classes in rows}
    learning.draw_first(
        found, lambda image, one: draw.classes(draw.as_tile(image), one, names), data, folder
    )
    return {}


def said(result: dict[str, Any]) -> str:
    """A result in words."""
    accuracy, images = result["pixel_accuracy"], result["images"]
    return f"mIoU {result['mIoU']:.1f}, {accuracy:.1f} % of the pixels right ({images} images)"
