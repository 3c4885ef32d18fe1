"""The paper's testing protocols: which views of an image are scored, and what is averaged.

A protocol turns uint8 images into normalised float views `[batch, views, height, width, channels]`,
one array per shape; `log_probabilities` scores them. Everything here runs inside a compiled step.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from PIL import Image

from data import transforms
from data.normalization import Normalization, normalize
from errors import UserError

Views = tuple[Array, ...]

TOP_K = 5
# Longer over shorter side of what multi-scale testing scores. An image takes the nearest, so that
# there are at most 15 shapes per scale (both orientations); photographs are mostly 4/3 and 3/2.
ASPECTS = (1, 9 / 8, 5 / 4, 4 / 3, 3 / 2, 5 / 3, 16 / 9, 2)


class Protocol(NamedTuple):
    """How one image is tested.

    Attributes:
      name: 'center', '10crop' or 'multiscale'.
      views: `(images, normalization) → tuple of views`, see the module's docstring.
      averages_scores: average the scores before the softmax, instead of the probabilities.
    """

    name: str
    views: Callable
    averages_scores: bool = False


def single_view(images: Array, normalization: Normalization) -> Views:
    """The image as it is: the center crop, or the CIFAR networks' single view (section 4.2)."""
    return (normalize(images, *normalization)[:, None],)


CENTER = Protocol("center", single_view)


def crops_as_they_come(images: Array, normalization: Normalization) -> Views:
    """Crops that the host has cut already: uint8 `[batch, crops, height, width, channels]`."""
    return (_normalized(images, normalization),)


def ten_crops(images: Array, normalization: Normalization, *, pad: int) -> Views:
    """The standard 10-crop test (section 3.4) for images that are as small as the crops.

    Crops of the original size are taken from the image with `pad` zeros on each side, as training
    pads it: top left, top right, bottom left, bottom right, center, then the five mirrored.
    """
    _, height, width, _ = images.shape
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    corners = [(0, 0), (0, 2 * pad), (2 * pad, 0), (2 * pad, 2 * pad), (pad, pad)]
    crops = jnp.stack([padded[:, y : y + height, x : x + width] for y, x in corners], axis=1)
    return crops_as_they_come(jnp.concatenate([crops, crops[:, :, :, ::-1]], 1), normalization)


def resized_on_device(
    images: Array, normalization: Normalization, *, scales: Sequence[int]
) -> Views:
    """Image and mirror image with their shorter side at each scale, from images of one size.

    Normalised first: a per-pixel mean is resized with the image.
    """
    views = _normalized(_with_mirror(images), normalization)
    batch, count, height, width, channels = views.shape
    shapes = [transforms.resized_shape(height, width, scale) for scale in scales]
    return tuple(
        jax.image.resize(views, (batch, count, h, w, channels), "linear") for h, w in shapes
    )


def unpacked(
    images: Array, normalization: Normalization, *, shapes: Sequence[tuple[int, int]]
) -> Views:
    """Image and mirror image at each of `shapes`, from `pack_scales`'s bytes `[batch, size]`."""
    views, start = [], 0
    for height, width in shapes:
        stop = start + height * width * 3
        image = images[:, start:stop].reshape(-1, height, width, 3)
        views.append(_normalized(_with_mirror(image), normalization))
        start = stop
    return tuple(views)


def _with_mirror(images):
    return jnp.stack([images, images[:, :, ::-1]], axis=1)


def _normalized(views, normalization):
    mean, std = (jnp.asarray(constant, jnp.float32) for constant in normalization)
    if mean.ndim == 3 and mean.shape[:2] != views.shape[2:4]:
        mean = jax.image.resize(mean, (*views.shape[2:4], mean.shape[-1]), "linear")
    flat = views.reshape(-1, *views.shape[2:])
    return normalize(flat, mean, std).reshape(views.shape)


def log_probabilities(
    model: nn.Module, variables: Any, views: Views, averages_scores: bool
) -> Array:
    """Log-probabilities float32 `[batch, classes]` of the views of each image.

    The head is applied at every position of the last feature map (a 1×1 convolution) and its scores
    are averaged over the positions. Then either the scores are averaged over all views, scales
    included, before the softmax ("average the scores at multiple scales", section 3.4), or the
    softmax probabilities are (10-crop).

    Args:
      model: a network of `models.create`.
      variables: its `params` and `batch_stats`.
      views: tuple of normalised `[batch, views, height, width, channels]`.
      averages_scores: see `Protocol`.
    """

    def score(images):
        _, endpoints = model.apply(variables, images, train=False)
        return endpoints["logits_map"].mean((1, 2))

    # One view at a time: the memory of a plain evaluation step, however many views there are.
    scores = jnp.concatenate([jax.lax.map(score, jnp.moveaxis(v, 1, 0)) for v in views])
    if averages_scores:
        return jax.nn.log_softmax(scores.mean(0))
    return mean_log_probabilities(jax.nn.log_softmax(scores))


def mean_log_probabilities(log_probabilities: Array) -> Array:
    """The logarithm of the mean probability over the first axis, without leaving log space."""
    return jax.nn.logsumexp(log_probabilities, axis=0) - math.log(len(log_probabilities))


def score_sums(scores: Array, labels: Array, valid: Array) -> tuple[Array, ...]:
    """Sums over the valid examples: cross-entropy, top-1 errors, top-5 errors, their number.

    Args:
      scores: logits or log-probabilities, float32 `[batch, classes]`.
      labels: int32 `[batch]`; valid: bool `[batch]`.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, labels)
    _, top = jax.lax.top_k(scores, min(TOP_K, scores.shape[-1]))
    hits = top == labels[:, None]
    return (
        jnp.where(valid, losses, 0).sum(),
        (valid & ~hits[:, 0]).sum(),
        (valid & ~hits.any(-1)).sum(),
        valid.sum(),
    )


def stride(model: Any) -> int:
    """Input pixels per position of the last feature map."""
    return 4 if model.stem == "cifar" else model.output_stride


def check_scales(model: Any, scales: Sequence[int], source: str = "config.eval.scales") -> None:
    """Raises UserError when a scale leaves the network no position to score."""
    if not scales:
        raise UserError(f"{source}=(): expected at least one shorter side in pixels.")
    for scale in scales:
        if scale < stride(model):
            raise UserError(
                f"{source}: a shorter side of {scale} pixels is smaller than the network's stride "
                f"of {stride(model)}; expected scales ≥ {stride(model)}."
            )


def aspect_bucket(height: int, width: int) -> int:
    """Index into the shapes of `bucket_shape`: the nearest of `ASPECTS`, negative when upright."""
    ratio = max(height, width) / min(height, width)
    nearest = min(range(len(ASPECTS)), key=lambda i: abs(math.log(ratio / ASPECTS[i])))
    return -nearest if height > width else nearest


def bucket_shape(bucket: int, scale: int) -> tuple[int, int]:
    """`(height, width)` of images of a bucket whose shorter side is `scale` pixels."""
    longer = round(scale * ASPECTS[abs(bucket)])
    return (longer, scale) if bucket < 0 else (scale, longer)


def pack_scales(image: np.ndarray, shapes: Sequence[tuple[int, int]]) -> np.ndarray:
    """One image `[height, width, 3]` resized, antialiased, to every shape, as uint8 `[size]`.

    Images beyond 2:1 lose the ends of their longer side.
    """
    height, width, _ = image.shape
    longest = round(min(height, width) * ASPECTS[-1])
    top, left = max(0, (height - longest) // 2), max(0, (width - longest) // 2)
    picture = Image.fromarray(image[top : top + longest, left : left + longest])
    resized = [picture.resize((w, h), Image.Resampling.BILINEAR) for h, w in shapes]
    return np.concatenate([np.asarray(r).reshape(-1) for r in resized])
