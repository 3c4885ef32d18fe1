"""A proposal network that knows the classes: the paper's appendix C, ImageNet localization."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from detection import boxes
from detection.faster_rcnn import Detections, mean
from detection.losses import Loss, anchor_losses, annotated
from detection.rpn import Level, located
from detection.sampling import Sampling
from models.ops.conv import conv
from models.padded import OwnSizes
from models.resnet import ResNet

SQUARE = (1.0,)  # height / width of the anchors
ANCHORS = Sampling(8, 0.5, 0.7, 0.3)  # of an image, half of them with the object


class PerClassRPN(nn.Module):
    """On every position of the last stage, for every class whether it is there, and where.

    A score is that of a logistic regression of its own, so for 1,000 classes and one anchor there
    are 1,000 scores and 4,000 numbers of boxes.

    Attributes:
      backbone: a `ResNet` without a head.
      num_classes: with the background, class 0, of which nothing is said.
      sides: of the square anchors of a position, in pixels.
      anchors: what is learned from.
    """

    backbone: ResNet
    num_classes: int
    sides: tuple[float, ...]
    anchors: Sampling = ANCHORS
    asks = ("own",)  # of each batch

    def setup(self) -> None:
        """Makes the two sibling layers."""
        count, normal = len(self.sides) * (self.num_classes - 1), nn.initializers.normal(0.01)
        self.scores = conv(count, 1, use_bias=True, kernel_init=normal)
        self.deltas = conv(4 * count, 1, use_bias=True, kernel_init=normal)

    def __call__(
        self, images: Array, sizes: Array, padded: Array, own: Array | None = None
    ) -> Detections:
        """The best box of each class in the whole image, the most probable class first.

        Arguments as of `FasterRCNN`; there are `num_classes` − 1 detections of each image, whatever
        its true class `own`.
        """
        del own
        level = self.anchored(images, padded)
        return jax.vmap(best_of_each_class)(level, named([level]), sizes)

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
        """The training losses of a batch; see `FasterRCNN`."""
        del masks
        level = self.anchored(images, padded, train=True)
        objects = annotated(boxes, labels, sizes)
        return anchor_losses(keys, [level], objects, sizes, self.anchors)

    def anchored(self, images: Array, padded: Array, train: bool = False) -> Level:
        """What is said of every anchor: `Level` with an axis of classes after that of anchors."""
        own = OwnSizes(self.backbone, images.shape[1:3], padded)
        with own.respected():
            _, endpoints = self.backbone(images, train=train)
        x, classes = endpoints["stage4"], self.num_classes - 1
        found = [(self.scores(x), self.deltas(x))]
        (level,) = located(found, own, padded, (self.sides,), SQUARE)
        logits, deltas, anchors = level
        shape = *anchors.shape[:2], classes
        return Level(logits.reshape(shape), deltas.reshape(*shape, 4), anchors)


def named(levels: Sequence[Level]) -> Array:
    """How probable each class is in an image, `[batch, classes]`: the mean of its best anchors'.

    Args:
      levels: of each network.
    """
    return mean([jax.nn.sigmoid(level.logits.max(1)) for level in levels])


def best_of_each_class(level: Level, scores: Array, size: Array) -> Detections:
    """The box of the best anchor of each class, the most probable class first; of one image.

    Args:
      level: with an axis of classes after that of anchors.
      scores: of the classes.
      size: height and width, at which boxes are cut off.
    """
    logits, deltas, anchors = level
    best, classes = logits.argmax(0), jnp.arange(logits.shape[1])
    found = boxes.clip(boxes.decode(deltas[best, classes], anchors[best]), *size)
    scores, order = jax.lax.top_k(scores, len(classes))
    return Detections(found[order], scores, 1 + order, jnp.ones(len(classes), bool))
