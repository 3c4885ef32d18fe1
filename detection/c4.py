"""Faster R-CNN without a pyramid, as the paper has it in appendix A: "C4"."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from detection import roi
from detection.anchors import FPN_SIZES
from detection.faster_rcnn import Detections, FasterRCNN, over_regions
from detection.rpn import Limits, RPNHead, proposals
from models.padded import OwnSizes

POOLED = 14  # sides that regions are pooled to; conv5 halves them
SCALE = 1 / 16  # of conv4


class C4(FasterRCNN):
    """conv1 to conv4 once for an image, conv5 for each of its regions.

    The proposal network and the regions share conv4, of stride 16. RoI max pooling comes before
    conv5_1; conv5's mean goes to two sibling layers, classes and boxes. BN uses the stored
    averages. What `FasterRCNN` has of a pyramid, of hidden layers and of masks is not used.

    Attributes:
      sizes: of the anchors at each position, the largest of 32, 64, … 512 pixels. Ren et al. have
        three, and four for COCO.
    """

    limits: Limits = Limits(before=6000, after=300)
    sizes: int = 3

    @nn.compact
    def __call__(self, images: Array, sizes: Array, padded: Array) -> Detections:
        """Finds objects in images of any sizes; arguments as `FasterRCNN` takes them."""
        own = OwnSizes(self.backbone, images.shape[1:3], padded)
        with own.respected():
            _, endpoints = self.backbone(images, train=False)
            found = RPNHead(self.rpn_convs, self.sizes, name="rpn")([endpoints["stage3"]])
        anchor_sizes = (FPN_SIZES[-self.sizes :],)
        regions, any_region = proposals(found, own, sizes, padded, self.limits, anchor_sizes)
        # After a ReLU the zeros beyond an image are no maximum, as if the map ended there.
        shared = jnp.where(own.inside(endpoints["stage3"]), endpoints["stage3"], 0)
        pool = functools.partial(roi.max_pool, size=POOLED, scale=SCALE)
        conv5 = over_regions(self._conv5, jax.vmap(pool)(shared, regions))
        logits, deltas = Siblings(self.num_classes, name="box_head")(conv5)
        return Detections(*jax.vmap(self._chosen)(logits, deltas, regions, any_region, sizes))

    def _conv5(self, pooled):
        """The mean over positions of what the backbone's last stage makes of regions."""
        own = {kind: tree["stage4"] for kind, tree in self.backbone.variables.items()}
        return self.backbone.stage(4, parent=None).apply(own, pooled, train=False).mean((1, 2))


class Siblings(nn.Module):
    """Class and box by one layer each (Girshick 2015)."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Regions `[…, c]` to logits `[…, classes]` and deltas `[…, classes, 4]`."""
        normal = nn.initializers.normal  # deviations of Girshick 2015, section 2.3
        logits = nn.Dense(self.num_classes, kernel_init=normal(0.01), name="scores")(x)
        deltas = nn.Dense(4 * self.num_classes, kernel_init=normal(0.001), name="deltas")(x)
        return logits, deltas.reshape(*x.shape[:-1], -1, 4)
