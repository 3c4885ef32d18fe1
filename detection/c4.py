"""Faster R-CNN without a pyramid, as the paper has it in appendix A: "C4"."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from detection import roi
from detection.anchors import FPN_SIZES
from detection.boxes import areas, decode
from detection.faster_rcnn import BOX_WEIGHTS, FasterRCNN, View, over_regions
from detection.heads import Siblings
from detection.rpn import Level, Limits, RPNHead, located
from detection.sampling import Sampling
from models.padded import OwnSizes

POOLED = 14  # sides that regions are pooled to; conv5 halves them
SCALE = 1 / 16  # of conv4
CANONICAL = 224  # pixels: side of the images that the layers after the pooling have learned from


class C4(FasterRCNN):
    """conv1 to conv4 once for an image, conv5 for each of its regions.

    The proposal network and the regions share conv4, of stride 16. RoI max pooling comes before
    conv5_1; conv5's mean goes to two sibling layers, classes and boxes. BN uses the stored
    averages. What `FasterRCNN` has of a pyramid, of hidden layers and of masks is not used.

    Attributes:
      sizes: of the anchors at each position, the largest of 32, 64, … 512 pixels. Ren et al. have
        three, and four for COCO.
      regions: learned from (Girshick 2015, section 2.3: 128 in a step).
    """

    limits: Limits = Limits(before=6000, after=300)
    training_limits: Limits = Limits(before=12000, after=2000)
    regions: Sampling = Sampling(128, 0.25, 0.5, 0.5)
    sizes: int = 3

    def setup(self) -> None:
        """Makes the layers beside the backbone."""
        self.rpn = RPNHead(self.rpn_convs, self.sizes * len(self.ratios))
        self.box_head = Siblings(self.num_classes, self.context)

    def shared(
        self, images: Array, padded: Array, train: bool = False
    ) -> tuple[list[Array], list[Level]]:
        """See `FasterRCNN`; `train` changes nothing."""
        own = OwnSizes(self.backbone, images.shape[1:3], padded)
        with own.respected():
            _, endpoints = self.backbone(images, train=False)
            shared = endpoints["stage3"]
            found = self.rpn([shared])
        levels = located(found, own, padded, (FPN_SIZES[-self.sizes :],), self.ratios)
        # After a ReLU the zeros beyond an image are no maximum, as if the map ended there.
        return [jnp.where(own.inside(shared), shared, 0)], levels

    def judged(self, views: Sequence[View], regions: Array, sizes: Array) -> tuple[Array, Array]:
        """See `FasterRCNN`; of several views the maximum of what a region is pooled to.

        Of two views, as appendix B has it: `adjacent`.
        """
        shown = self._with_whole(regions, sizes)
        pooled = [self._pooled(maps, shown * scale, POOLED) for maps, scale in views]
        sides = [jnp.sqrt(areas(shown * scale)) for _, scale in views]
        logits, deltas = self._of_pooled(adjacent(pooled, sides))
        return jax.nn.softmax(logits), decode(deltas, regions[:, :, None], BOX_WEIGHTS)

    def _pooled(self, maps, regions, side):
        return jax.vmap(functools.partial(roi.max_pool, size=side, scale=SCALE))(*maps, regions)

    def _of_regions(self, maps, regions, train=False):
        return self._of_pooled(self._pooled(maps, regions, POOLED))

    def _of_pooled(self, pooled):
        return self.box_head(over_regions(self._conv5, pooled))

    def _conv5(self, pooled):
        """The mean over positions of what the backbone's last stage makes of regions."""
        own = {kind: tree["stage4"] for kind, tree in self.backbone.variables.items()}
        found = self.backbone.stage(4, parent=None).apply(own, pooled, train=False)
        return found.astype(jnp.float32).mean((1, 2))


def adjacent(pooled: Sequence[Array], sides: Sequence[Array]) -> Array:
    """The maximum of each region at two adjacent sizes (appendix B).

    Which two is not said there. Here they are the last at which the region has at most `CANONICAL`
    pixels a side, and the next.

    Args:
      pooled: `[batch, n, s, s, c]` for each size of the image, the smallest first; after a ReLU.
      sides: of the regions, `[batch, n]` for each size of the image, in pixels.
    """
    fitting = sum((side <= CANONICAL).astype(jnp.int32) for side in sides)
    first = jnp.clip(fitting - 1, 0, max(0, len(pooled) - 2))
    near = [((first == i) | (first == i - 1))[..., None, None, None] for i in range(len(pooled))]
    # 0 is no maximum of what is not below it.
    return functools.reduce(jnp.maximum, [p * n for p, n in zip(pooled, near, strict=True)])
