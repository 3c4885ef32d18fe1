"""The paper's testing protocols: which views of an image are scored, and what is averaged.

A protocol turns uint8 images into normalised float views, one `View` per shape; `log_probabilities`
scores them. Everything here runs inside a compiled step.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from data import transforms
from data.normalization import Normalization, normalize
from errors import UserError
from testing import padded


class View(NamedTuple):
    """Views of one shape, of each image of a batch.

    Attributes:
      images: normalised `[batch, views, height, width, channels]`.
      sizes: height and width of each image where it is smaller (`testing.padded`), int32
        `[batch, 2]`; None where the images fill theirs.
    """

    images: Array
    sizes: Array | None = None


Views = tuple[View, ...]
TOP_K = 5


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
    return (View(normalize(images, *normalization)[:, None]),)


CENTER = Protocol("center", single_view)


def crops_as_they_come(images: Array, normalization: Normalization) -> Views:
    """Crops that the host has cut already: uint8 `[batch, crops, height, width, channels]`."""
    return (View(_normalized(images, normalization)),)


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
    both = jnp.stack([images, images[:, :, ::-1]], axis=1)
    views = _normalized(both, normalization)
    batch, count, height, width, channels = views.shape
    shapes = [transforms.resized_shape(height, width, scale) for scale in scales]
    return tuple(
        View(jax.image.resize(views, (batch, count, h, w, channels), "linear")) for h, w in shapes
    )


def unpacked(
    images: Array, normalization: Normalization, *, shapes: Sequence[tuple[int, int]]
) -> Views:
    """Image and mirror image at its own shape for each scale, from `padded.pack_scales`'s bytes."""
    views = []
    for image, sizes in padded.unpack(images, shapes):
        mean, std = (jnp.asarray(constant, jnp.float32) for constant in normalization)
        per_pixel = mean.ndim == 3
        if per_pixel:
            mean = padded.resized(mean, sizes, image.shape[1:3])
        both = jnp.stack([image, padded.mirrored(image, sizes)], axis=1)
        of_each = jax.vmap(normalize, (0, 0 if per_pixel else None, None))
        views.append(View(of_each(both, mean, std), sizes))
    return tuple(views)


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
      views: of each image, one per shape.
      averages_scores: see `Protocol`.
    """

    def scores(view):
        def score(images):
            if view.sizes is not None:
                return padded.mean_scores(model, variables, images, view.sizes)
            _, endpoints = model.apply(variables, images, train=False)
            return endpoints["logits_map"].mean((1, 2))

        # One at a time: the memory of a plain evaluation step, however many views there are.
        return jax.lax.map(score, jnp.moveaxis(view.images, 1, 0))

    of_views = jnp.concatenate([scores(view) for view in views])
    if averages_scores:
        return jax.nn.log_softmax(of_views.mean(0))
    return mean_log_probabilities(jax.nn.log_softmax(of_views))


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
