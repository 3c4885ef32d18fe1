"""What the paper's appendix B does in testing: refined boxes, several sizes, several networks."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from ml_collections import ConfigDict

from detection import boxes, images
from detection.faster_rcnn import Detections, FasterRCNN, View, mean
from detection.learning import cut, padded
from detection.resize import resized_batch
from detection.rpn import proposals


class Boosted(NamedTuple):
    """Detectors as one, which is tested like one.

    Attributes:
      models: the networks. Their proposals are united, and what their heads say of each of them,
        probabilities and boxes, is averaged; so are masks, of those that have any.
      scales: sizes of the image, 1 as it is given. Proposals come from that one; what the heads see
        of them, from all of these (`judged` of the networks).
      refine: the box of each region's likeliest class is a region again; of what is said of both,
        boxes are chosen that vote.
      asks: see `FasterRCNN`.
    """

    models: tuple[FasterRCNN, ...]
    scales: tuple[float, ...] = (1.0,)
    refine: bool = False
    asks: tuple[str, ...] = FasterRCNN.asks

    @property
    def mask_convs(self) -> int:
        """Above 0 where any of the networks has masks."""
        return max(model.mask_convs for model in self.models)

    def apply(self, variables: Sequence[Any], image: Array, sizes: Array, to: Array) -> Detections:
        """What is found in a batch: `FasterRCNN`'s arguments and result, but variables of each."""
        bound = [model.bind(own) for model, own in zip(self.models, variables, strict=True)]
        given = [model.shared(image, to) for model in bound]
        proposed = [
            proposals(levels, sizes, model.limits)
            for model, (_, levels) in zip(bound, given, strict=True)
        ]
        regions, valid = (jnp.concatenate(parts, 1) for parts in zip(*proposed, strict=True))
        views: list[list[View]] = [[] for _ in bound]
        for scale in sorted(set(self.scales)):
            if scale == 1:
                seen = [View(maps, 1.0) for maps, _ in given]
            else:
                other, own = rescaled(image, sizes, scale)
                to = padded(other, own)
                seen = [View(model.shared(other, to)[0], ratio(own, sizes)) for model in bound]
            for of_model, view in zip(views, seen, strict=True):
                of_model.append(view)
        both = list(zip(bound, views, strict=True))

        def judged(regions: Array) -> tuple[Array, Array]:
            return mean([model.judged(own, regions, sizes) for model, own in both])

        scores, found = judged(regions)
        if self.refine:
            likeliest = scores[..., 1:].argmax(-1)[..., None, None] + 1
            again = jnp.take_along_axis(found, likeliest, 2)[:, :, 0]
            again = jax.vmap(boxes.clip)(again, sizes[:, 0], sizes[:, 1])
            scores, found, valid = (
                jnp.concatenate(pair, 1)
                for pair in zip((scores, found, valid), (*judged(again), valid), strict=True)
            )
        detections = bound[0].chosen(scores, found, valid, sizes, vote=self.refine)
        masks = [
            model.masked(own, detections.boxes, detections.labels)
            for model, own in both
            if model.mask_convs
        ]
        return detections._replace(masks=mean(masks) if masks else None)


def of(config: ConfigDict, runs: Sequence[Any]) -> tuple[Any, Any]:
    """The network that `config.eval` asks for, made of opened runs, and its variables."""
    scales = scales_of(config)
    if len(runs) == 1 and scales == (1.0,) and not config.eval.refine_boxes:
        return runs[0].model, runs[0].variables
    models, variables = zip(*((one.model, one.variables) for one in runs), strict=True)
    return Boosted(models, scales, config.eval.refine_boxes), variables


def scales_of(config: ConfigDict) -> tuple[float, ...]:
    """Sizes of the images that `config.eval` asks for, 1 as they are given."""
    if config.eval.protocol != "multiscale":
        return (1.0,)
    return tuple(side / config.detection.sides[-1] for side in config.eval.scales)


def ratio(new: Array, old: Array) -> Array:
    """What boxes are multiplied with when images of `old` sizes, `[batch, 2]`, have `new` ones.

    Returns:
      `[batch, 1, 4]`, of left, top and so on.
    """
    return jnp.tile(new / jnp.maximum(old, 1), 2)[:, None, ::-1]


def rescaled(batch: Array, sizes: Array, scale: float) -> tuple[Array, Array]:
    """Normalised images `[batch, height, width, 3]` at another size, and their own sizes there."""
    own = jnp.maximum(jnp.round(sizes * scale).astype(jnp.int32), sizes > 0)
    shape = images.padded([math.ceil(n * scale) for n in batch.shape[1:3]])
    return cut(resized_batch(batch, [sizes[:, 0], sizes[:, 1]], shape, own), own), own
