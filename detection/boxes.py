"""Boxes as `[…, 4]` float32 arrays: left, top, right, bottom in pixels, as torchvision has them.

A pixel is 1 wide, and a box from 3 to 5 is 2 wide. All functions work under `jit`, `vmap` and
`grad`, and broadcast sizes of 1.
"""

import math

import jax
import jax.numpy as jnp

# A box at most 1000 / 16 times as wide as its reference: the exponential of a wild network's
# output stays finite (py-faster-rcnn's, Detectron's and torchvision's number).
MAX_LOG_RATIO = math.log(1000 / 16)
Weights = tuple[float, float, float, float]
UNWEIGHTED: Weights = (1.0, 1.0, 1.0, 1.0)


def rounded(product: jax.Array) -> jax.Array:
    """The product itself, kept from being joined with a sum into one instruction.

    Such an instruction (FMA) rounds once instead of twice. Then the last bit is not torchvision's,
    and may differ between two places that compute the same overlap; with a threshold, or with
    "equal to the largest", the last bit decides.
    """
    return jnp.maximum(product, jnp.finfo(product.dtype).min)


def areas(boxes: jax.Array) -> jax.Array:
    """Areas `[…]` in square pixels of boxes `[…, 4]`."""
    return rounded((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]))


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union, `[…, n, m]` from 0 to 1, of boxes `[…, n, 4]` and `[…, m, 4]`.

    Two boxes without area give NaN, as with torchvision: nothing over nothing.
    """
    a, b = a[..., :, None, :], b[..., None, :, :]
    left_top = jnp.maximum(a[..., :2], b[..., :2])
    sides = jnp.maximum(jnp.minimum(a[..., 2:], b[..., 2:]) - left_top, 0)
    intersection = rounded(sides[..., 0] * sides[..., 1])
    return intersection / (areas(a) + areas(b) - intersection)


def clip(boxes: jax.Array, height: float | jax.Array, width: float | jax.Array) -> jax.Array:
    """Boxes `[…, 4]` cut off at the borders of an image of `height` × `width` pixels.

    A box outside of the image becomes one without area on its border.
    """
    borders = jnp.stack([jnp.asarray(x, boxes.dtype) for x in (width, height)] * 2)
    borders = _along_last(borders, boxes)
    # Not `jnp.clip`, whose derivative on a border is half of torch's.
    boxes = jnp.where(boxes < 0, 0, boxes)
    return jnp.where(boxes > borders, borders, boxes)


def large(boxes: jax.Array, side: float) -> jax.Array:
    """Whether both sides of boxes `[…, 4]` have at least `side` pixels: bool `[…]`.

    What torchvision's `remove_small_boxes` keeps, as a mask.
    """
    return (boxes[..., 2:] - boxes[..., :2] >= side).all(-1)


def _centre_and_size(boxes):
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size


def encode(boxes: jax.Array, reference: jax.Array, weights: Weights = UNWEIGHTED) -> jax.Array:
    """What a network has to say of `reference` boxes so that they become `boxes`.

    Equation 2 of Faster R-CNN (Ren et al. 2015): the centre's shift in sides of the reference and
    the logarithms of the sides' ratios, times the weights.

    Args:
      boxes: `[…, 4]`, e.g. annotated ones.
      reference: `[…, 4]`, e.g. anchors or proposals.
      weights: of x, y, width and height.

    Returns:
      `[…, 4]`: x, y, width, height. Not finite where a box has no area; mask these before a loss.
    """
    centre, size = _centre_and_size(boxes)
    origin, unit = _centre_and_size(reference)
    of_shift, of_size = jnp.split(jnp.asarray(weights, boxes.dtype), 2)
    shift = _along_last(of_shift, centre) * (centre - origin) / unit
    return jnp.concatenate([shift, _along_last(of_size, size) * jnp.log(size / unit)], -1)


def decode(deltas: jax.Array, reference: jax.Array, weights: Weights = UNWEIGHTED) -> jax.Array:
    """The boxes that a network's `deltas` make of `reference`: the inverse of `encode`.

    Args:
      deltas: `[…, 4]`: x, y, width, height; sides grow to at most `exp(MAX_LOG_RATIO)` times.
      reference: `[…, 4]`. With deltas of several classes `[n, classes, 4]`, `[n, 1, 4]`.
      weights: those of `encode`.

    Returns:
      Boxes `[…, 4]`, also beyond the image.
    """
    origin, unit = _centre_and_size(reference)
    deltas = deltas / _along_last(jnp.asarray(weights, deltas.dtype), deltas)
    centre = deltas[..., :2] * unit + origin
    half = 0.5 * (jnp.exp(jnp.minimum(deltas[..., 2:], MAX_LOG_RATIO)) * unit)
    return jnp.concatenate([centre - half, centre + half], -1)


def _along_last(numbers, like):
    return numbers.reshape((1,) * (like.ndim - 1) + (-1,))
