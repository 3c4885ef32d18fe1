"""A weight file as a detector or segmenter, and what it finds in images of any sizes."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import models
import weights
from detection import images as prepared
from detection import masks
from detection.c4 import C4
from detection.classes import names
from detection.faster_rcnn import FasterRCNN
from detection.segmentation import Segmenter

# What is built, and its resized images' shorter and longest side: torchvision's, and for C4 the
# paper's. Segmenters' images have no longest side.
KINDS: dict[str, tuple[type[nn.Module], int, int]] = {
    "segmenter": (Segmenter, 520, 0),
    "fpn": (FasterRCNN, 800, 1333),
    "c4": (C4, 600, 1000),
}


class Network(NamedTuple):
    """A detector or segmenter with its weights.

    Attributes:
      model: a `FasterRCNN` or a `Segmenter`.
      variables: `params` and `batch_stats`.
      label_names: of the classes, the background first.
      shorter, longer: of resized images, as `images.prepare` takes them; `longer` 0: segments.
    """

    model: nn.Module
    variables: Any
    label_names: tuple[str, ...]
    shorter: int
    longer: int


class Objects(NamedTuple):
    """What is found in one image, the best first.

    Attributes:
      boxes: `[n, 4]`: left, top, right, bottom in pixels of the image.
      scores: probabilities `[n]`.
      labels: int `[n]`, from 1 on.
      masks: probabilities `[n, height, width]`, or None.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None


def open_weights(
    path: weights.Given, shorter: int = 0, longer: int = 0
) -> tuple[Network, str] | None:
    """Opens a file of torchvision's detectors or segmenters; None if it holds none.

    Args:
      path: as `weights.load_weights` takes it.
      shorter, longer: of resized images; what the file says, or torchvision's (800 and 1333, or
        520), unless given.

    Returns:
      The network, and a sentence that says what was taken to be so.

    Raises:
      UserError: the file cannot be read, or its arrays are not those of one network, as when a head
        is another network's.
    """
    found = weights.detector(path)
    if found is None:
        return None
    backbone = models.create(found.backbone, 1).clone(num_classes=0)
    kind, *sides = KINDS[found.kind]
    model = kind(backbone, **found.fields)
    variables = weights.load_detector(found, variable_shapes(model))
    shorter = shorter or found.shorter or sides[0]
    longer = sides[1] and max(shorter, longer or found.longer or sides[1])
    count = found.fields["num_classes"]
    label_names, whose = names(count)
    if found.label_names:
        label_names, whose = found.label_names, "named by the file"
    if len(label_names) != count:
        label_names, whose = names(count)
        whose += f"; the file's {len(found.label_names or ())} names do not fit"
    size = f"shorter side {shorter}" + (f", longer at most {longer}" if longer else "")
    said = f"{found.path}: {found.name}; {size}; normalisation: imagenet; "
    said += f"{count} classes with the background: {whose}"
    if found.epsilon == 0:
        said += "; frozen batch normalisation with ε = 0"
    return Network(model, variables, label_names, shorter, longer), " ".join(
        [f"{said}.", *found.notes]
    )


def of_run(run: Any) -> Network:
    """The detector or segmenter of a run that `testing.opened_run.load` has opened."""
    d = run.config.detection
    sides = int(d.sides[-1]), 0 if run.config.task == "segmentation" else d.longer
    return Network(run.model, run.variables, run.facts.label_names, *sides)


@functools.lru_cache(maxsize=8)
def variable_shapes(model: nn.Module) -> Any:
    """The shapes of a network's variables."""
    sizes = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    more = (sizes,) if isinstance(model, Segmenter) else (sizes, sizes)
    return jax.eval_shape(functools.partial(model.init, jax.random.key(0)), images, *more)


def find(
    network: Network,
    images: Sequence[np.ndarray],
    batch_size: int = 1,
    together: bool = False,
    min_score: float = 0.0,
) -> Iterator[Objects]:
    """Finds objects in images of any sizes.

    Each image is computed as if it were alone, in batches of those on a canvas of the same shape:
    one program is compiled for each shape.

    Args:
      network: a detector.
      images: uint8 `[height, width, 3]`, as `images.prepare` takes them.
      batch_size: images computed at once.
      together: as torchvision computes a list of images: the zeros below and beside a smaller one
        belong to it, up to the largest of them, and what is found changes a little with them.
      min_score: of objects. Those up to 0.05 are never found, as in torchvision.

    Yields:
      `Objects` of each image, in order.
    """
    resized = [prepared.prepare(image, network.shorter, network.longer) for image in images]
    padded = [prepared.padded(image.shape[:2]) for image in resized]
    if together and padded:
        padded = [tuple(np.max(padded, 0).tolist())] * len(padded)
    found = _in_batches(network, resized, padded, batch_size)
    for image, small, (boxes, scores, labels, valid, inside) in zip(
        images, resized, found, strict=True
    ):
        scale = np.divide(image.shape[:2], small.shape[:2], dtype=np.float32)
        valid = valid & (scores >= min_score)  # before masks of the image's size take memory
        boxes = boxes[valid] * scale[[1, 0, 1, 0]]
        pasted = None if inside is None else masks.paste(inside[valid], boxes, *image.shape[:2])
        yield Objects(boxes, scores[valid], labels[valid], pasted)


def segment(
    network: Network, images: Sequence[np.ndarray], batch_size: int = 1
) -> Iterator[np.ndarray]:
    """A segmenter's scores of every class, float32 `[height, width, classes]`, of each image.

    Height and width are the resized image's, whose shorter side is `network.shorter`; the rest is
    as in `find`.
    """
    resized = [prepared.prepare(image, network.shorter) for image in images]
    found = _in_batches(network, resized, [image.shape[:2] for image in resized], batch_size)
    for (height, width, _), logits in zip((i.shape for i in resized), found, strict=True):
        yield logits[:height, :width]


def _in_batches(network, resized, padded, batch_size):
    """What the network says of each image, as NumPy arrays without the batch's axis; in order."""
    by_canvas: dict[tuple[int, int], list[int]] = {}
    for i, size in enumerate(padded):
        shape = prepared.canvas(*size, network.shorter, network.longer)
        by_canvas.setdefault(shape, []).append(i)
    results: dict[int, Any] = {}
    for shape, members in by_canvas.items():
        for start in range(0, len(members), batch_size):
            part = members[start : start + batch_size]
            batch = prepared.batched([resized[i] for i in part], shape, batch_size)
            own = [
                [resized[i].shape[:2], padded[i]]
                for i in part + part[:1] * (batch_size - len(part))
            ]
            sizes = np.array(own, np.int32).swapaxes(0, 1)[: 2 if network.longer else 1]
            output = compiled(network.model)(network.variables, batch, *sizes)
            output = jax.tree.map(np.asarray, output)
            for place, i in enumerate(part):
                results[i] = jax.tree.map(lambda x, place=place: x[place], output)
    return [results[i] for i in range(len(resized))]


@functools.lru_cache(maxsize=8)
def compiled(model: nn.Module) -> Any:
    """The network's `apply`, compiled once for each shape of a batch."""
    return jax.jit(model.apply)
