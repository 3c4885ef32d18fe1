"""Faster R-CNN (Ren et al. 2015) on a feature pyramid, and Mask R-CNN (He et al. 2017).

The arithmetic of testing is torchvision's, so that its weights give its boxes. Where it only pads
with zeros to a multiple of 32 pixels, an array here may be larger still (`models.padded`).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from detection import boxes, nms, roi
from detection.anchors import RATIOS
from detection.heads import BoxHead, MaskHead
from detection.losses import (
    Loss,
    anchor_losses,
    annotated,
    mask_losses,
    region_losses,
    sampled_regions,
)
from detection.pyramid import FeaturePyramid
from detection.rpn import FPN, Level, Limits, RPNHead, located, proposals
from detection.sampling import ANCHORS, REGIONS, Sampling
from models.padded import OwnSizes
from models.resnet import ResNet

BOX_SIDE, MASK_SIDE = 7, 14  # of what regions are pooled to
SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)  # of the levels that regions are pooled from
SAMPLES = 2  # of RoIAlign in each direction of a bin
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of a region's deltas
VOTED = 0.3  # IoU of suppression before boxes vote (appendix B)


class Detections(NamedTuple):
    """What is found in a batch, the best first; where `valid` is False, there is nothing.

    Attributes:
      boxes: `[batch, n, 4]` in pixels of the images as they were given.
      scores: probabilities `[batch, n]`.
      labels: int32 `[batch, n]`, from 1 on.
      valid: bool `[batch, n]`.
      masks: probabilities `[batch, n, 28, 28]` inside the boxes, or None.
    """

    boxes: Array
    scores: Array
    labels: Array
    valid: Array
    masks: Array | None = None


class View(NamedTuple):
    """An image at one size.

    Attributes:
      maps: of the network's `shared`.
      scale: of this size to that of the image's boxes: `[batch, 1, 4]`, of left, top and so on, or
        one number.
    """

    maps: list[Array]
    scale: Array | float


class FasterRCNN(nn.Module):
    """A two-stage detector.

    Attributes:
      backbone: a `ResNet` without a head, of output stride 32.
      num_classes: with the background, class 0.
      width: channels of the pyramid.
      hidden, box_convs: `BoxHead`'s.
      rpn_convs: `RPNHead`'s.
      context: what is in the whole image counts for each region (appendix B).
      mask_convs: `MaskHead`'s; 0: no masks.
      norm: BN instead of biases in the pyramid and the mask head.
      anchor_sizes: of each of the five levels, in pixels.
      ratios: height / width of anchors.
      canonical_size: of a region that is pooled from the level of stride 16 (Lin et al. 2017,
        equation 1).
      limits, training_limits: of proposals in testing and in training.
      anchors, regions: what is learned from.
      score, threshold, most: detections have a score above `score` and, within a class, an IoU of
        at most `threshold`; there are at most so many in an image.
    """

    backbone: ResNet
    num_classes: int
    width: int = 256
    hidden: int = 1024
    rpn_convs: int = 1
    box_convs: int = 0
    mask_convs: int = 0
    context: bool = False
    norm: bool = False
    anchor_sizes: tuple[tuple[float, ...], ...] = FPN
    ratios: tuple[float, ...] = RATIOS
    canonical_size: int = 224
    limits: Limits = Limits()
    training_limits: Limits = Limits(before=2000, after=2000)
    anchors: Sampling = ANCHORS
    regions: Sampling = REGIONS
    score: float = 0.05
    threshold: float = 0.5
    most: int = 100
    asks = ()  # what batches have besides that a network is given

    def setup(self) -> None:
        """Makes the layers after the backbone."""
        self.fpn = FeaturePyramid(self.width, self.norm)
        self.rpn = RPNHead(self.rpn_convs, len(self.anchor_sizes[0]) * len(self.ratios))
        self.box_head: nn.Module = BoxHead(
            self.num_classes, self.hidden, self.box_convs, self.context
        )
        if self.mask_convs:
            self.mask_head = MaskHead(self.num_classes, self.mask_convs, self.norm)

    def __call__(self, images: Array, sizes: Array, padded: Array) -> Detections:
        """Finds objects in images of any sizes, each as if it were alone.

        Args:
          images: normalised `[batch, height, width, 3]`, each in the upper left corner and 0
            elsewhere; height and width are multiples of 32.
          sizes: their own heights and widths, int32 `[batch, 2]`.
          padded: the same with the zeros that count as part of the image, in multiples of 32.
        """
        maps, levels = self.shared(images, padded)
        regions, any_region = proposals(levels, sizes, self.limits)
        views = [View(maps, 1.0)]
        detections = self.chosen(*self.judged(views, regions, sizes), any_region, sizes)
        if not self.mask_convs:
            return detections
        masks = self.masked(views, detections.boxes, detections.labels)
        return detections._replace(masks=masks)

    def judged(self, views: Sequence[View], regions: Array, sizes: Array) -> tuple[Array, Array]:
        """Probabilities `[batch, n, classes]` and boxes `[batch, n, classes, 4]` of regions.

        Of several views their means (appendix B). In a pyramid every view shows a region at about
        one size already, and its maps are sums that no ReLU follows: a maximum has no meaning.

        Args:
          views: of each image at one or several sizes.
          regions: `[batch, n, 4]`.
          sizes: of the images, int32 `[batch, 2]`.
        """
        shown = self._with_whole(regions, sizes)
        each = [self._of_regions(maps, shown * scale) for maps, scale in views]
        found = [
            (jax.nn.softmax(logits), boxes.decode(deltas, regions[:, :, None], BOX_WEIGHTS))
            for logits, deltas in each
        ]
        return mean(found)

    def masked(self, views: Sequence[View], boxes: Array, labels: Array) -> Array:
        """Probabilities of masks in boxes `[batch, n, 4]` of some labels; of views their mean."""
        pooled = [self._pooled(maps, boxes * scale, MASK_SIDE) for maps, scale in views]
        return mean([jax.nn.sigmoid(over_regions(self.mask_head, one, labels)) for one in pooled])

    def losses(
        self,
        images: Array,
        sizes: Array,
        padded: Array,
        boxes: Array,
        labels: Array,
        masks: Array | None,
        keys: Array,
    ) -> dict[str, Loss]:
        """The training losses of a batch: torchvision's names, each as its sum and its count.

        A loss is the sum over the count, both added up over all devices before they are divided.
        Batch normalisation is the backbone's: `frozen_bn`, or statistics of the batch.

        Args:
          images, sizes, padded: as for finding; an image of size 0 counts 0.
          boxes: `[batch, n, 4]` in pixels.
          labels: int32 `[batch, n]`, from 1 on; 0: no object in this place.
          masks: bits of the objects' masks, uint8 `[batch, n, height, width / 8]` (of
            `np.packbits`), where there is a mask head.
          keys: one of each image, `[batch]`: what is sampled is a function of it.
        """
        maps, levels = self.shared(images, padded, train=True)
        objects = annotated(boxes, labels, sizes)
        of_anchors, of_regions = jax.vmap(jax.random.split, out_axes=1)(keys)
        found = anchor_losses(of_anchors, levels, objects, sizes, self.anchors)
        regions, any_region = proposals(jax.lax.stop_gradient(levels), sizes, self.training_limits)
        taken = sampled_regions(of_regions, regions, any_region, objects, self.regions)
        logits, deltas = self._of_regions(maps, self._with_whole(taken.boxes, sizes), True)
        found |= region_losses(logits, deltas, taken, objects, BOX_WEIGHTS)
        if not self.mask_convs:
            return found
        taken = jax.tree.map(lambda x: x[:, : self.regions.most_objects], taken)
        pooled = self._pooled(maps, taken.boxes, MASK_SIDE)
        head = functools.partial(self.mask_head, train=self._learns_statistics(True))
        return found | mask_losses(over_regions(head, pooled, taken.labels), taken, masks)

    def _learns_statistics(self, train):
        """Whether BN after the backbone has statistics of the batch: as the backbone has."""
        return train and not self.backbone.frozen_bn

    def shared(
        self, images: Array, padded: Array, train: bool = False
    ) -> tuple[list[Array], list[Level]]:
        """What is computed once for an image: maps for its regions, and the anchors' scores."""
        own = OwnSizes(self.backbone, images.shape[1:3], padded)
        with own.respected():
            _, endpoints = self.backbone(images, train=train)
            stages = [endpoints[f"stage{i}"] for i in (1, 2, 3, 4)]
            levels = self.fpn(stages, self._learns_statistics(train))
            found = self.rpn(levels)
        # Regions end at the padded image's border, and so do torchvision's maps.
        maps = [own.continued(x) for x in levels[:4]]
        return maps, located(found, own, padded, self.anchor_sizes, self.ratios)

    def _of_regions(self, maps, regions, train=False):
        """Logits and deltas of every class of the images' regions, which are `_with_whole`."""
        pooled = self._pooled(maps, regions, BOX_SIDE)
        return self.box_head(pooled, train=self._learns_statistics(train))

    def _with_whole(self, regions, sizes):
        """With context the whole image is one region more, the last."""
        if not self.context:
            return regions
        whole = jnp.concatenate([jnp.zeros_like(sizes), sizes[:, ::-1]], -1)
        return jnp.concatenate([regions, whole[:, None].astype(regions.dtype)], 1)

    def _pooled(self, maps, regions, side):
        """RoIAlign of each image's own regions: `[batch, n, side, side, c]`."""

        def pooled(maps: list[Array], own: Array) -> Array:
            return roi.align_pyramid(
                maps, own, side, SCALES, SAMPLES, canonical_size=self.canonical_size
            )

        return jax.vmap(pooled)(maps, regions)

    def chosen(
        self,
        scores: Array,
        found: Array,
        any_region: Array,
        sizes: Array,
        vote: bool = False,
    ) -> Detections:
        """The best of the boxes of all regions and classes, without masks.

        Args:
          scores, found: of `judged`.
          any_region: which of the regions are any, bool `[batch, n]`.
          sizes: of the images, int32 `[batch, 2]`.
          vote: those that are kept become means of those that are not (`nms.vote`), and suppress at
            `VOTED` (appendix B).
        """
        threshold = VOTED if vote else self.threshold

        def best(scores: Array, found: Array, any_region: Array, size: Array) -> Detections:
            found, scores = boxes.clip(found, *size)[:, 1:], scores[:, 1:]
            valid = any_region[:, None] & (scores > self.score) & boxes.large(found, 1e-2)
            labels = jnp.broadcast_to(jnp.arange(1, self.num_classes), scores.shape)
            found, scores, labels, valid = (
                x.reshape(-1, *x.shape[2:]) for x in (found, scores, labels, valid)
            )
            index, kept = nms.keep(found, scores, valid, threshold, labels, limit=self.most)
            final = nms.vote(index, found, scores, valid, labels) if vote else found[index]
            return Detections(final, scores[index], labels[index], kept)

        return jax.vmap(best)(scores, found, any_region, sizes)


def mean(found: Sequence[Any]) -> Any:
    """The mean of trees of arrays."""
    return jax.tree.map(lambda *each: sum(each[1:], each[0]) / len(each), *found)


def over_regions(head: Callable[..., Any], *of_regions: Array) -> Any:
    """What a head says of the regions of all images, `[batch, n, …]`."""
    batch = of_regions[0].shape[:2]
    found = head(*(x.reshape(-1, *x.shape[2:]) for x in of_regions))
    return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), found)
