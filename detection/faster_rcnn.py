"""Faster R-CNN (Ren et al. 2015) on a feature pyramid, and Mask R-CNN (He et al. 2017).

The arithmetic of testing is torchvision's, so that its weights give its boxes. Where it only pads
with zeros to a multiple of 32 pixels, an array here may be larger still (`models.padded`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from detection import boxes, nms, roi
from detection.heads import BoxHead, MaskHead
from detection.pyramid import FeaturePyramid
from detection.rpn import Limits, RPNHead, proposals
from models.padded import OwnSizes
from models.resnet import ResNet

BOX_SIDE, MASK_SIDE = 7, 14  # of what regions are pooled to
SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)  # of the levels that regions are pooled from
SAMPLES = 2  # of RoIAlign in each direction of a bin
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of a region's deltas


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


class FasterRCNN(nn.Module):
    """A two-stage detector.

    Attributes:
      backbone: a `ResNet` without a head, of output stride 32.
      num_classes: with the background, class 0.
      width: channels of the pyramid.
      hidden, box_convs: `BoxHead`'s.
      rpn_convs: `RPNHead`'s.
      mask_convs: `MaskHead`'s; 0: no masks.
      norm: BN instead of biases in the pyramid and the mask head.
      limits: of proposals.
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
    norm: bool = False
    limits: Limits = Limits()
    score: float = 0.05
    threshold: float = 0.5
    most: int = 100

    @nn.compact
    def __call__(self, images: Array, sizes: Array, padded: Array) -> Detections:
        """Finds objects in images of any sizes, each as if it were alone.

        Args:
          images: normalised `[batch, height, width, 3]`, each in the upper left corner and 0
            elsewhere; height and width are multiples of 32.
          sizes: their own heights and widths, int32 `[batch, 2]`.
          padded: the same with the zeros that count as part of the image, in multiples of 32.
        """
        own = OwnSizes(self.backbone, images.shape[1:3], padded)
        with own.respected():
            _, endpoints = self.backbone(images, train=False)
            pyramid = FeaturePyramid(self.width, self.norm, name="fpn")
            levels = pyramid([endpoints[f"stage{i}"] for i in (1, 2, 3, 4)])
            found = RPNHead(self.rpn_convs, name="rpn")(levels)
        regions, any_region = proposals(found, own, sizes, padded, self.limits)
        # Regions end at the padded image's border, and so do torchvision's maps.
        levels = [own.continued(x) for x in levels[:4]]
        head = BoxHead(self.num_classes, self.hidden, self.box_convs, name="box_head")
        logits, deltas = over_regions(head, _pooled(levels, regions, BOX_SIDE))
        objects = jax.vmap(self._chosen)
        detections = Detections(*objects(logits, deltas, regions, any_region, sizes))
        if not self.mask_convs:
            return detections
        mask_head = MaskHead(self.num_classes, self.mask_convs, self.norm, name="mask_head")
        pooled = _pooled(levels, detections.boxes, MASK_SIDE)
        return detections._replace(masks=over_regions(mask_head, pooled, detections.labels))

    def _chosen(self, logits, deltas, regions, any_region, size):
        """An image's detections: of every region and class the box, and then the best."""
        found = boxes.clip(boxes.decode(deltas, regions[:, None], BOX_WEIGHTS), *size)[:, 1:]
        scores = jax.nn.softmax(logits)[:, 1:]
        valid = any_region[:, None] & (scores > self.score) & boxes.large(found, 1e-2)
        labels = jnp.broadcast_to(jnp.arange(1, self.num_classes), scores.shape)
        found, scores, labels = found.reshape(-1, 4), scores.reshape(-1), labels.reshape(-1)
        index, kept = nms.keep(
            found, scores, valid.reshape(-1), self.threshold, labels, limit=self.most
        )
        return found[index], scores[index], labels[index], kept


def _pooled(levels, regions, side):
    """RoIAlign of each image's own regions: `[batch, n, side, side, c]`."""

    def pooled(maps: list[Array], own: Array) -> Array:
        return roi.align_pyramid(maps, own, side, SCALES, SAMPLES)

    return jax.vmap(pooled)(levels, regions)


def over_regions(head: Callable[..., Any], *of_regions: Array) -> Any:
    """What a head says of the regions of all images, `[batch, n, …]`."""
    batch = of_regions[0].shape[:2]
    found = head(*(x.reshape(-1, *x.shape[2:]) for x in of_regions))
    return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), found)
