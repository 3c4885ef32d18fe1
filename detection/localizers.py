"""What localization is tested with: several networks and sizes, one crop, classifiers' classes."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from data.normalization import CONSTANTS
from detection import images, rcnn, roi
from detection.boosted import ratio, rescaled, scales_of
from detection.faster_rcnn import Detections, mean
from detection.learning import cut, padded
from detection.per_class import PerClassRPN, named
from detection.rpn import joined
from errors import UserError


class Classifier(NamedTuple):
    """What says which classes an image shows.

    Attributes:
      model: of images with `side` pixels a side.
      share: of an image's shorter side, which these show of its middle.
    """

    model: nn.Module
    side: int
    share: float

    def probabilities(self, variables: Any, batch: Array, sizes: Array) -> Array:
        """Of each class, `[batch, classes]`; of normalised images of these sizes."""
        half = 0.5 * self.share * sizes.min(1, keepdims=True)
        middle = 0.5 * sizes[:, ::-1]
        square = jnp.concatenate([middle - half, middle + half], 1)[:, None]
        crop = jax.vmap(lambda image, box: roi.align(image, box, self.side, 1.0, aligned=True)[0])
        logits, _ = self.model.apply(variables, crop(batch, square), train=False)
        return jax.nn.softmax(logits)


class Localizers(NamedTuple):
    """Networks as one, which is tested like one.

    Attributes:
      models: per-class RPNs, or R-CNNs, as `rcnn.located` takes them.
      classifiers: whose mean names the classes; without any, the models' own scores do.
      scales: sizes of the image in which anchors are looked at, 1 as it is given.
      crop: side of the central square in which they are looked at instead; 0: the whole image.
      asks: see `FasterRCNN`.
    """

    models: tuple[Any, ...]
    classifiers: tuple[Classifier, ...] = ()
    scales: tuple[float, ...] = (1.0,)
    crop: int = 0
    asks: tuple[str, ...] = PerClassRPN.asks

    def apply(
        self, variables: Any, batch: Array, sizes: Array, to: Array, own: Array | None = None
    ) -> Detections:
        """`RCNN`'s arguments and result, but variables of each model and of each classifier."""
        del to
        bound = [one.bind(its) for one, its in zip(self.models, variables[0], strict=True)]
        views = list(self._views(batch, sizes))
        levels = []
        for one in bound:
            seen = [
                (one.anchored(image, padded(image, size)), factor, shift)
                for image, size, factor, shift in views
            ]
            levels.append(
                joined(
                    [x._replace(anchors=x.anchors * factor + shift) for x, factor, shift in seen]
                )
            )
        scores = named(levels)
        if self.classifiers:
            both = zip(self.classifiers, variables[1], strict=True)
            scores = mean([one.probabilities(its, batch, sizes) for one, its in both])
        return rcnn.located(bound, levels, scores, batch, sizes, own)

    def _views(self, batch: Array, sizes: Array) -> Iterator[tuple[Array, Array, Any, Any]]:
        """Images, their sizes, and what their boxes are times and plus in the given images."""
        if self.crop:
            image, size, start = central(batch, sizes, self.crop)
            yield image, size, 1.0, jnp.tile(start, 2)[:, None, ::-1]
            return
        for scale in sorted(set(self.scales)):
            image, size = (batch, sizes) if scale == 1 else rescaled(batch, sizes, scale)
            yield image, size, ratio(sizes, size), 0.0


def central(batch: Array, sizes: Array, side: int) -> tuple[Array, Array, Array]:
    """The middle of images `[batch, height, width, 3]`, `side` pixels or as many as there are.

    Returns:
      The crops, their sizes, and where they begin: top and left, int32 `[batch, 2]`.
    """
    own = jnp.minimum(sizes, side)
    start, (height, width) = (sizes - own) // 2, images.padded((side, side))
    moved = jax.vmap(lambda image, at: jnp.roll(image, -at, (0, 1)))(batch, start)
    return cut(moved[:, :height, :width], own), own, start


def of(config: ConfigDict, runs: Sequence[Any], namers: Sequence[tuple[Any, float]]) -> Any:
    """What `config.eval` asks to test, made of opened runs, and its variables.

    Args:
      namers: opened classifiers, and which share of an image's shorter side each is shown.

    Raises:
      UserError: runs are of different kinds, or a classifier has other classes or takes images that
        are normalised otherwise.
    """
    scales, crop = scales_of(config), config.eval.image_size
    if len(runs) == 1 and scales == (1.0,) and not crop and not namers:
        return runs[0].model, runs[0].variables
    kinds = {one.workdir: one.config.detection.network for one in runs}
    if len(set(kinds.values())) > 1:
        raise UserError(f"{kinds}: expected an ensemble of one kind, of rpn or of rcnn.")
    classifiers = []
    for run, share in namers:
        known, constants = runs[0].facts.label_names[1:], CONSTANTS["imagenet"]
        if run.facts.label_names != known or not all(
            np.array_equal(a, b) for a, b in zip(run.facts.normalization, constants, strict=True)
        ):
            raise UserError(
                f"{run.workdir}: expected a classifier of {', '.join(known[:5])}, … "
                f"({len(known)} classes) with data.normalization=imagenet, to name them."
            )
        classifiers.append(Classifier(run.model, run.facts.image_shape[0], share))
    variables = tuple(one.variables for one in runs), tuple(run.variables for run, _ in namers)
    models = tuple(one.model for one in runs)
    return Localizers(models, tuple(classifiers), scales, crop), variables
