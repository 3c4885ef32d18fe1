"""R-CNN (Girshick et al. 2014) on the proposals of a per-class RPN: the paper's appendix C."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from detection import boxes, learning, roi
from detection.faster_rcnn import BOX_WEIGHTS, Detections, mean, over_regions
from detection.heads import Siblings
from detection.layers import of_class
from detection.localization import NAMED
from detection.losses import Loss, annotated, region_losses, sampled_regions
from detection.per_class import PerClassRPN, best_of_each_class, named
from detection.rpn import Level, Limits, joined, proposals
from detection.sampling import Sampling, at_random
from models.resnet import ResNet


class RCNN(nn.Module):
    """A classifier of regions that are cut out of the image, each warped to a square of one size.

    It says of a region, for every class, whether it shows an object of it and where the object's
    box is: two sibling layers, for 1,000 classes of 1,000 logistic regressions and 4,000 numbers.

    Attributes:
      proposer: a trained network, which stays as it is.
      backbone: a `ResNet` without a head.
      side: of the squares, in pixels.
      limits, training_limits: of the proposals of a class in testing and in training.
      regions: what is learned from.
    """

    proposer: PerClassRPN
    backbone: ResNet
    side: int
    limits: Limits
    training_limits: Limits
    regions: Sampling
    asks = PerClassRPN.asks

    def setup(self) -> None:
        """Makes the two sibling layers."""
        self.siblings = Siblings(self.proposer.num_classes - 1)

    def __call__(
        self, images: Array, sizes: Array, padded: Array, own: Array | None = None
    ) -> Detections:
        """The best box of the most probable classes, five at most; see `located`."""
        levels = [self.anchored(images, padded)]
        return located([self], levels, named(levels), images, sizes, own)

    def anchored(self, images: Array, padded: Array) -> Level:
        """See `PerClassRPN`."""
        return self.proposer.anchored(images, padded)

    def judged(self, images: Array, regions: Array, classes: Array) -> tuple[Array, Array]:
        """Whether regions show an object of a class, and its box.

        Args:
          images: normalised `[batch, height, width, 3]`.
          regions: `[batch, n, 4]`.
          classes: int `[batch, n]`, from 0 on.

        Returns:
          Probabilities `[batch, n]` and boxes `[batch, n, 4]`.
        """
        logits, deltas = _of_class(classes, *self._of_regions(images, regions, train=False))
        return jax.nn.sigmoid(logits), boxes.decode(deltas, regions, BOX_WEIGHTS)

    def losses(
        self,
        images: Array,
        sizes: Array,
        padded: Array,
        boxes: Array,
        labels: Array,
        masks: None,
        keys: Array,
    ) -> dict[str, Loss]:
        """The training losses of a batch; see `FasterRCNN`.

        Proposals are those of the images' own class, as of a test, and are taken as they come.
        """
        del padded, masks
        level = self.anchored(images, learning.padded(images, sizes))
        classes = jnp.maximum(labels[:, :1] - 1, 0)
        regions, valid = proposals_of(
            jax.lax.stop_gradient(level), classes, sizes, self.training_limits
        )
        objects = annotated(boxes, labels, sizes)
        taken = sampled_regions(
            keys, regions[:, 0], valid[:, 0], objects, self.regions, choose=at_random
        )
        logits, deltas = self._of_regions(images, taken.boxes, train=True)
        return region_losses(logits, deltas, taken, objects, BOX_WEIGHTS, per_class=True)

    def _of_regions(self, images, regions, train):
        """Logits `[batch, n, classes]` and deltas `[batch, n, classes, 4]`."""

        def warped(image: Array, own: Array) -> Array:
            return roi.align(image, own, self.side, 1.0, aligned=True)

        def pooled(squares: Array) -> Array:
            _, endpoints = self.backbone(squares, train=train)
            return endpoints["stage4"].astype(jnp.float32).mean((1, 2))

        return self.siblings(over_regions(pooled, jax.vmap(warped)(images, regions)))


def proposals_of(level: Level, classes: Array, sizes: Array, limits: Limits) -> tuple[Array, Array]:
    """The proposals of some classes of each image, as of `proposals`.

    Args:
      level: with an axis of classes after that of anchors.
      classes: int `[batch, k]`, from 0 on.
      sizes: of the images, int32 `[batch, 2]`.

    Returns:
      boxes `[batch, k, limits.after, 4]`, and which of them are any, bool.
    """

    def of_one(own: Array) -> tuple[Array, Array]:
        logits, deltas = _of_class(own[:, None], level.logits, level.deltas)
        return proposals([Level(logits, deltas, level.anchors)], sizes, limits)

    return jax.vmap(of_one, 1, 1)(classes)


def located(
    networks: Sequence[Any],
    levels: Sequence[Level],
    scores: Array,
    images: Array,
    sizes: Array,
    own: Array | None,
) -> Detections:
    """The best boxes of classes in each image, the most probable class first.

    Per-class RPNs say that of all classes, each the box of the best anchor of all networks. R-CNNs
    say it of the five most probable classes and of the true one, if that is known: proposals of all
    networks are united; of each, what the networks say is averaged, probabilities and boxes.

    Args:
      networks: of one kind, bound to their variables.
      levels: of the `anchored` of each.
      scores: how probable each class is in an image, `[batch, classes]`.
      images: normalised `[batch, height, width, 3]`.
      sizes: of the images, int32 `[batch, 2]`.
      own: int `[batch]`, the true class, from 0 on; None: not known.
    """
    if not isinstance(networks[0], RCNN):
        return jax.vmap(best_of_each_class)(joined(levels), scores, sizes)
    _, classes = jax.lax.top_k(scores, min(NAMED, scores.shape[1]))
    if own is not None:
        classes = jnp.concatenate([classes, own[:, None]], 1)
    found = [
        proposals_of(level, classes, sizes, one.limits)
        for one, level in zip(networks, levels, strict=True)
    ]
    regions, valid = (jnp.concatenate(parts, 2) for parts in zip(*found, strict=True))
    flat, asked = regions.reshape(len(images), -1, 4), jnp.repeat(classes, valid.shape[2], 1)
    judged = mean([one.judged(images, flat, asked) for one in networks])
    sure = jnp.where(valid, judged[0].reshape(valid.shape), -1)
    best = sure.argmax(2)[..., None]
    chosen = jnp.take_along_axis(judged[1].reshape(regions.shape), best[..., None], 2)[:, :, 0]
    return Detections(
        jax.vmap(boxes.clip)(chosen, sizes[:, 0], sizes[:, 1]),
        jnp.take_along_axis(sure, best, 2)[..., 0],
        1 + classes,
        jnp.ones(classes.shape, bool),
    )


def _of_class(classes, logits, deltas):
    """What is said of one class of each of `[batch, n, classes]`: `[batch, n]`, `[batch, n, 4]`."""
    return of_class(logits, classes), of_class(deltas.swapaxes(-1, -2), classes[..., None])
