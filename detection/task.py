"""Detection as a task: what `training.task.Task` asks for."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data.feed import Batch
from data.normalization import Normalization
from detection import build, draw, learning
from detection.average_precision import coco_ap, gathered_objects, run_lengths, voc_ap
from detection.faster_rcnn import FasterRCNN
from detection.images import MULTIPLE
from detection.learning import padded
from detection.masks import paste
from detection.network import Objects
from run.processes import gathered
from run.workdir import Workdir

LOSSES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")

check, create = build.check_detection, build.detector
off = build.OFF | build.OF_LOCALIZATION
load, learned = learning.load, learning.learned


def init(model: FasterRCNN, key: jax.Array, image_shape: tuple[int, int, int]) -> Any:
    """Random variables; those of images of any size are the same."""
    del image_shape
    size = jnp.full((1, 2), 2 * MULTIPLE, jnp.int32)
    return model.init(key, jnp.zeros((1, 2 * MULTIPLE, 2 * MULTIPLE, 3)), size, size)


def sums(config: ConfigDict) -> dict[str, jax.Array]:
    """Zeros of every part of the loss."""
    return dict.fromkeys((*LOSSES, *["loss_mask"] * config.detection.masks), jnp.float32(0))


def prepare(
    config: ConfigDict,
    model: FasterRCNN,
    normalization: Normalization,
    step: jax.Array,
    batch: Batch,
) -> Batch:
    """What `learning.prepared` makes of images, and their objects."""
    names = ("boxes", "labels", *["masks"] * config.detection.masks)
    found = learning.prepared(config, normalization, step, batch)
    return found | {name: batch[name] for name in names}


def loss(
    config: ConfigDict, model: FasterRCNN, variables: Any, part: Batch, key: jax.Array
) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
    """The sum of the losses, each over its count on all devices, of a part of the batch."""
    del key  # of each image there is one
    images, sizes = part["images"], part["sizes"]
    found, updated = model.apply(
        learning.kept(config, variables),
        *(images, sizes, padded(images, sizes, whole=not config.model.frozen_bn)),
        *(part["boxes"], part["labels"], part.get("masks"), part["keys"]),
        method="losses",
        mutable=["batch_stats"],
    )
    total, shares = learning.added(config, found, sizes)
    return total, (updated.get("batch_stats", variables["batch_stats"]), shares)


def objects_in(
    model: Any,
    variables: Any,
    data: Any,
    batches: Iterator[Batch],
    mesh: Mesh,
    total: int,
) -> Iterator[dict[int, Objects]]:
    """What is found in the images of each batch that are this process's, by their index.

    Args:
      data: what `detection.data.open_data` returns; batches: of its `evaluation`.
      total: number of images, for a progress bar.

    Yields:
      `Objects` with boxes in pixels of the annotated image, and masks as run lengths.
    """
    constants = variables, data.facts.normalization
    for rows in learning.outputs(_finder(model), *constants, batches, mesh, total):
        yield {index: _objects(size, original, found) for index, size, original, found in rows}


@functools.lru_cache(maxsize=8)
def _finder(model):
    def find(variables, images, sizes, batch):
        asked = (batch[name] for name in model.asks)
        return model.apply(variables, images, sizes, padded(images, sizes), *asked)

    return find


def _objects(size, original, found):
    boxes, scores, labels, valid, inside = found
    scale = (original / size).astype(np.float32)
    boxes, masks = boxes[valid] * scale[[1, 0, 1, 0]], None
    if inside is not None:
        masks = run_lengths(paste(inside[valid], boxes, *original))
    return Objects(boxes, scores[valid], labels[valid], masks)


def measure(
    model: FasterRCNN,
    variables: Any,
    data: Any,
    split: str,
    mesh: Mesh,
    stop: Callable[[], int] | None = None,
) -> dict[str, Any] | None:
    """Average precision over a split, in percent: COCO's, or of Pascal VOC's sets its own.

    Args:
      data: what `detection.data.open_data` returns.
      stop: asked before each batch; what is not 0 ends testing without a result.

    Returns:
      `{'AP', 'AP50', …, 'error', 'images'}`, with masks `'mask_AP'` and so on too; of VOC's sets
      `'mAP'` as its year defines it (2007 with 11 points, later ones by area), and the other one
      as `'mAP_area'` or `'mAP_11points'`. 'error' is 1 less the first of them as a share. With
      corrupt records also `'masked_images'` and `'masked_records'`.
    """
    found: dict[int, Objects] = {}
    number = data.split_size(split)
    for part in objects_in(model, variables, data, data.evaluation(split), mesh, number):
        if stop and stop():
            return None
        found |= part
    there = sorted(map(int, gathered(map(str, found))))
    place = {index: i for i, index in enumerate(there)}  # all, but for corrupt ones
    everything = gathered_objects({place[i]: one for i, one in found.items()}, len(there))
    annotated = data.annotated(split)
    truth = [annotated[index] for index in there]
    if "voc" in data.facts.dataset:
        old = "2007" in f"{data.facts.dataset} {data.listing(split).split}"
        result = voc_ap(everything, truth, eleven_points=old)
        other = voc_ap(everything, truth, eleven_points=not old)["mAP"]
        result["mAP_area" if old else "mAP_11points"] = other
    else:
        result = coco_ap(everything, truth, masks=bool(model.mask_convs))
    error = 1 - next(iter(result.values())) / 100
    return data.corrupt.beside(result | {"error": error, "images": len(there)}, split)


def conclude(
    result: dict[str, Any],
    model: FasterRCNN,
    variables: Any,
    data: Any,
    mesh: Mesh,
    folder: Workdir,
    batches: Iterator[Batch] | None = None,
) -> dict[str, Any]:
    """Draws what is found in the first test images (of `batches`) into the workdir."""
    del result
    first = itertools.islice(batches or data.evaluation("test"), 1)
    (found,) = objects_in(model, variables, data, first, mesh, 0)
    names = data.facts.label_names
    learning.draw_first(found, lambda image, one: draw.certain(image, one, names), data, folder)
    return {}


def said(result: dict[str, Any]) -> str:
    """A result in words."""
    names = [n for n in ("AP", "AP50", "mask_AP", "mask_AP50", "mAP") if n in result]
    return ", ".join(f"{n} {result[n]:.1f}" for n in names) + f" ({result['images']} images)"
