"""What a detector is trained to make small: torchvision's losses, with static shapes.

Each is a sum and the count that it is divided by, so that the parts of a batch on several devices
add up to that of the whole batch.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jax import Array

from detection import boxes as box
from detection import roi
from detection.layers import of_class
from detection.matching import BELOW, match
from detection.mean_iou import IGNORED
from detection.rpn import Level, joined
from detection.sampling import Sampled, Sampling, balanced
from models.padded import inside

BETA = 1 / 9  # where the smooth L1 loss turns from a square to a line
Loss = tuple[Array, Array]  # sum and count, float32


class Truth(NamedTuple):
    """The annotated objects of a batch.

    Attributes:
      boxes: `[batch, n, 4]` in pixels of the resized images.
      labels: int `[batch, n]`, from 1 on; 0: no object in this place.
      real: bool `[batch, n]`: a label, a box with an area, an image with one.
    """

    boxes: Array
    labels: Array
    real: Array


def annotated(boxes: Array, labels: Array, sizes: Array) -> Truth:
    """The objects in images of `sizes`, int `[batch, 2]`; an image of size 0 has none."""
    has_area = (boxes[..., 2:] > boxes[..., :2]).all(-1)
    real = (labels > 0) & has_area & (sizes > 0).all(1, keepdims=True)
    return Truth(jnp.where(real[..., None], boxes, 0), labels, real)


class Regions(NamedTuple):
    """The regions of a batch that are learned from, those with objects first.

    Attributes:
      boxes: `[batch, n, 4]`.
      labels: int32 `[batch, n]`, 0: background.
      match: int32 `[batch, n]`, which of the image's objects.
      valid: bool `[batch, n]`.
    """

    boxes: Array
    labels: Array
    match: Array
    valid: Array


def sampled_regions(
    keys: Array,
    proposals: Array,
    any_region: Array,
    objects: Truth,
    sampling: Sampling,
    choose: Callable[..., Sampled] = balanced,
) -> Regions:
    """Takes some of the proposals and of the annotated boxes themselves.

    Args:
      keys: `[batch]`.
      proposals: `[batch, n, 4]`, and which of them are any, bool `[batch, n]`.
      choose: a function of `detection.sampling`.
    """

    def of_image(key, proposals, any_region, objects):
        candidates = jnp.concatenate([proposals, objects.boxes])
        valid = jnp.concatenate([any_region, objects.real])
        overlap = box.iou(objects.boxes, candidates)
        found = match(overlap, sampling.high, sampling.low, valid=objects.real)
        taken = choose(key, valid & (found >= 0), valid & (found == BELOW), sampling)
        matched = jnp.maximum(found[taken.indices], 0)
        labels = jnp.where(taken.is_object, objects.labels[matched], 0)
        return Regions(candidates[taken.indices], labels, matched, taken.valid)

    return jax.vmap(of_image)(keys, jax.lax.stop_gradient(proposals), any_region, objects)


def anchor_losses(
    keys: Array, levels: Sequence[Level], objects: Truth, sizes: Array, sampling: Sampling
) -> dict[str, Loss]:
    """The proposal network's: whether an anchor has an object, and where its box is.

    Per class, whether it has one of the class is asked of every class, and added up; the box is
    that of the object's class.

    Args:
      keys: `[batch]`.
      levels: with an axis of classes after that of anchors, if there are any.
      sizes: int `[batch, 2]`; an image of size 0 counts 0.
    """

    def of_image(key, level, objects, size):
        logits, deltas, anchors = level
        # Not "finite": what diverged has to be seen.
        inside = (logits[:, 0] != -jnp.inf) & (size > 0).all()
        overlap = jnp.where(inside[None], box.iou(objects.boxes, anchors), -1)
        found = match(overlap, sampling.high, sampling.low, True, objects.real)
        taken = balanced(key, inside & (found >= 0), inside & (found == BELOW), sampling)
        matched = jnp.maximum(found[taken.indices], 0)
        classes = objects.labels[matched] - 1 if per_class else jnp.zeros_like(matched)
        logits = jnp.where(taken.valid[:, None], logits[taken.indices], 0)
        entropy = _of_every_class(logits, classes, taken.is_object)
        targets = box.encode(objects.boxes[matched], anchors[taken.indices])
        own = of_class(deltas[taken.indices].swapaxes(1, 2), classes[:, None])
        distance = _box_distance(own, targets, taken.is_object)
        return (entropy * taken.valid).sum(), distance, taken.valid.sum()

    whole = joined(levels)
    per_class = whole.logits.ndim == 3
    if not per_class:
        whole = whole._replace(logits=whole.logits[..., None], deltas=whole.deltas[:, :, None])
    return _named(
        ("loss_objectness", "loss_rpn_box_reg"), jax.vmap(of_image)(keys, whole, objects, sizes)
    )


def region_losses(
    logits: Array,
    deltas: Array,
    regions: Regions,
    objects: Truth,
    weights: box.Weights,
    per_class: bool = False,
) -> dict[str, Loss]:
    """The box head's: the class of a region, and where the box of its object is.

    Args:
      logits: `[batch, n, classes]`.
      deltas: `[batch, n, classes, 4]`, with these `weights`.
      per_class: there is no background among the classes, and each is a logistic regression of its
        own, as those of `anchor_losses`.
    """

    def of_image(logits, deltas, regions, objects):
        classes, is_object = regions.labels, regions.labels > 0
        if per_class:
            classes = jnp.maximum(classes - 1, 0)
            entropy = _of_every_class(logits, classes, is_object)
        else:
            entropy = _entropy(logits, classes)
        targets = box.encode(objects.boxes[regions.match], regions.boxes, weights)
        own = of_class(deltas.swapaxes(1, 2), classes[:, None])
        distance = _box_distance(own, targets, is_object)
        return jnp.where(regions.valid, entropy, 0).sum(), distance, regions.valid.sum()

    found = jax.vmap(of_image)(logits, deltas, regions, objects)
    return _named(("loss_classifier", "loss_box_reg"), found)


def mask_losses(logits: Array, regions: Regions, masks: Array) -> dict[str, Loss]:
    """The mask head's: which pixels of a region are its object's.

    Args:
      logits: `[batch, n, side, side]` of the regions' own classes.
      masks: bits of the annotated objects' masks, uint8 `[batch, objects, height, width / 8]`.
    """
    side = logits.shape[-1]

    def of_image(boxes, match, masks):
        def of_region(region):
            box, match = region
            mask = jnp.unpackbits(masks[match], axis=-1)[..., None].astype(jnp.float32)
            return roi.align(mask, box[None], side, 1.0)[0, ..., 0]

        # Some at a time: unpacked, each mask is as large as the image.
        return jax.lax.map(of_region, (boxes, match), batch_size=roi.CHUNK)

    targets = jax.vmap(of_image)(regions.boxes, regions.match, masks)
    entropy = optax.sigmoid_binary_cross_entropy(logits, targets).mean((2, 3))
    is_object = regions.labels > 0
    return _named(("loss_mask",), (jnp.where(is_object, entropy, 0), is_object))


def pixel_losses(logits: Array, targets: Array, sizes: Array) -> Loss:
    """A segmenter's: the cross-entropy of each pixel's class, in nats.

    Args:
      logits: `[batch, height, width, classes]`.
      targets: int `[batch, height, width]`, classes, or `IGNORED`.
      sizes: int `[batch, 2]` of the images; what lies beyond does not count.
    """
    counts = (targets != IGNORED) & inside(targets.shape[1:], sizes.T)
    labels = jnp.where(counts, targets, 0).astype(jnp.int32)
    entropy = _entropy(logits, labels)
    return _named(("loss",), (jnp.where(counts, entropy, 0), counts))["loss"]


def learned(params: Any, freeze_at: int, frozen_bn: bool) -> Any:
    """Which parameters of a detector or segmenter training changes: a tree of bool.

    What is False has to be kept from weight decay too.

    Args:
      params: of the network, with its `backbone`.
      freeze_at: so many parts of the backbone stay as they are: the stem, stage 1, stage 2, … (2 in
        fine-tuning: Detectron's, and torchvision's with three trainable layers).
      frozen_bn: whether scales and biases of batch normalisation stay. So does a `proposer`.
    """
    frozen = tuple(["stem", "stage1", "stage2", "stage3", "stage4"][:freeze_at])
    flat = traverse_util.flatten_dict(params)

    def stays(path: tuple[str, ...]) -> bool:
        of_others = path[0] == "proposer"
        in_backbone = path[0] == "backbone" and path[1].startswith(frozen)
        return (
            of_others or in_backbone or (frozen_bn and (*path[:-1], "scale") in flat)
        )  # only BN has a scale

    return traverse_util.unflatten_dict({path: not stays(path) for path in flat})


def _entropy(logits, labels):
    """Minus the logarithm of the probability of each one's class."""
    return jax.nn.logsumexp(logits, -1) - of_class(logits, labels)


def _of_every_class(logits, classes, is_object):
    """The entropy of whether each of `[n]` is an object of a class, added up over the classes."""
    is_class = is_object[:, None] & jax.nn.one_hot(classes, logits.shape[1], dtype=bool)
    return optax.sigmoid_binary_cross_entropy(logits, is_class).sum(1)


def _box_distance(deltas, targets, which):
    """The sum of the smooth L1 losses of those boxes of `[n, 4]`."""
    which = which[:, None]
    # Where there is no object, the targets need not be finite.
    difference = jnp.where(which, deltas - jnp.where(which, targets, 0), 0)
    return optax.huber_loss(difference, delta=BETA).sum() / BETA


def _named(names, of_images):
    """The losses of these names from sums `[batch]` and the count that they share."""
    *sums, count = (x.sum().astype(jnp.float32) for x in of_images)
    return {name: (value, count) for name, value in zip(names, sums, strict=True)}
