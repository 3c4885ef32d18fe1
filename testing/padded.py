"""Images of any shape in few compiled programs, each image scored at its own shape.

A program takes one shape. So an image is laid into the upper left corner of the next larger of a
few shapes (a *bucket*). The scores are those of the image alone (`models.padded`), up to rounding.
"""

import bisect
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image

from data import transforms
from data.decode import MAX_PIXELS, DecodeError
from models.padded import OwnSizes
from models.resnet import ResNet

# Longer over shorter side of the buckets. Photographs are mostly 4/3 and 3/2, which lose nothing;
# up to 2:1 at most an eighth of a bucket is empty.
_NEAR = (
    Fraction(1),
    *(Fraction(n, d) for n, d in ((9, 8), (5, 4), (4, 3), (3, 2), (5, 3), (16, 9))),
)
ASPECTS = (*_NEAR, *(Fraction(n * 2**k) for k in range(26) for n in (2, 3)))
_SIZE_BYTES = 8  # two int32 in front of an image: its height and width


def aspect_bucket(height: int, width: int, scales: Sequence[int] = ()) -> int:
    """Index into the shapes of `bucket_shape`, negative for upright images.

    Bucket 0, the square, stands also for images that no bucket of `scales` has room for, because
    their longer side would be absurd; `pack_scales` refuses them.
    """
    index = bisect.bisect_left(ASPECTS, Fraction(max(height, width), min(height, width)))
    if any(scale * (scale * ASPECTS[index]) > MAX_PIXELS for scale in scales):
        return 0
    return -index if height > width else index


def bucket_shape(bucket: int, scale: int) -> tuple[int, int]:
    """`(height, width)` of a bucket whose shorter side is `scale` pixels."""
    longer = int(scale * ASPECTS[abs(bucket)])
    return (longer, scale) if bucket < 0 else (scale, longer)


def packed_size(shapes: Sequence[tuple[int, int]]) -> int:
    """Bytes that `pack_scales` returns."""
    return sum(_SIZE_BYTES + 3 * height * width for height, width in shapes)


def pack_scales(image: np.ndarray, shapes: Sequence[tuple[int, int]]) -> np.ndarray:
    """One image `[height, width, 3]` resized, antialiased, for every shape of its bucket.

    Returns:
      uint8 `[packed_size(shapes)]`: for each shape the image's own height and width, and its pixels
      in the upper left corner of a black one of that shape.

    Raises:
      DecodeError: the image is too long for any bucket.
    """
    parts, (height, width, _) = [], image.shape
    for shape in shapes:
        size = transforms.resized_shape(height, width, min(shape))
        if size[0] > shape[0] or size[1] > shape[1]:
            raise DecodeError(
                f"an image of {height:,} × {width:,} pixels would have {size[0]:,} × {size[1]:,} "
                f"in multi-scale testing; expected {MAX_PIXELS:,} pixels at most. Lower eval.scales"
                ", or remove it from the data set"
            )
        resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
        laid = np.zeros((*shape, 3), np.uint8)
        laid[: size[0], : size[1]] = np.asarray(resized)
        parts += [np.array(size, np.int32).view(np.uint8), laid.reshape(-1)]
    return np.concatenate(parts)


def unpack(packed: Array, shapes: Sequence[tuple[int, int]]) -> list[tuple[Array, Array]]:
    """For each shape `(images, sizes)`: uint8 `[batch, height, width, 3]`, int32 `[batch, 2]`."""
    found, start = [], 0
    for height, width in shapes:
        begin = start + _SIZE_BYTES
        sizes = packed[:, start:begin].reshape(-1, 2, 4)
        start = begin + height * width * 3
        images = packed[:, begin:start].reshape(-1, height, width, 3)
        found.append((images, jax.lax.bitcast_convert_type(sizes, jnp.int32)))
    return found


def mirrored(images: Array, sizes: Array) -> Array:
    """The mirror image of each image, in the same corner."""
    column = sizes[:, 1:] - 1 - jnp.arange(images.shape[2])[None]
    return jnp.take_along_axis(images, jnp.maximum(column, 0)[:, None, :, None], axis=2)


def resized(image: Array, sizes: Array, shape: Sequence[int]) -> Array:
    """One float image `[h, w, c]` at each of `sizes`, `[batch, *shape, c]`."""

    def at(size: Array) -> Array:
        scale = size / jnp.array(image.shape[:2], jnp.float32)
        to = (*shape, image.shape[-1])
        return jax.image.scale_and_translate(image, to, (0, 1), scale, jnp.zeros(2), "linear")

    return jax.vmap(at)(sizes)


def mean_scores(model: ResNet, variables: Any, images: Array, sizes: Array) -> Array:
    """The scores of every position of the last feature map, averaged over each image's own.

    Args:
      model: a network of `models.create`, with its blocks one by one.
      variables: its `params` and `batch_stats`.
      images: normalised `[batch, height, width, channels]`.
      sizes: height and width of each image, from its upper left corner, int32 `[batch, 2]`.

    Returns:
      float32 `[batch, classes]`.
    """
    own = OwnSizes(model, images.shape[1:3], sizes)
    with own.respected():
        _, endpoints = model.apply(variables, images, train=False)
    scores = endpoints["logits_map"]
    here = own.inside(scores)
    return jnp.where(here, scores, 0).sum((1, 2)) / here.sum((1, 2))
