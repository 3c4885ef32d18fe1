"""Features of regions of interest (RoIs): RoIAlign, RoI max pooling, levels of a pyramid.

Boxes are in pixels of the image, and `scale` makes them positions of a feature map: 1/16 at stride
16. Nothing has a derivative by the boxes, as in torchvision; the networks stop there.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from detection.boxes import areas, rounded
from errors import UserError
from models.ops.pool import largest_in_bins
from models.ops.transposed import linear

CHUNK = 32  # boxes computed at once, so that intermediate arrays stay small
MOST_SAMPLES = 4096  # of a bin along one axis where the box decides: for boxes that are not finite
Size = int | tuple[int, int]  # bins along both axes, or (down, across)


def align(
    features: jax.Array,
    boxes: jax.Array,
    size: Size,
    scale: float,
    sampling: int = 0,
    aligned: bool = False,
) -> jax.Array:
    """RoIAlign (He et al. 2017), torchvision's `roi_align`: means of bilinear samples.

    With a fixed number of samples a pyramid of one level. Otherwise two products with matrices of
    interpolation weights, one along each axis, whose cost grows with the map; so the derivative.

    Args:
      features: `[height, width, channels]`.
      boxes: `[n, 4]`. Samples more than one position outside of the map count as 0.
      size: of the result.
      scale: positions of the map per pixel of the image.
      sampling: samples of a bin along each axis; 0: as many as the bin has positions, rounded up.
      aligned: whether a pixel's value belongs to its middle (Detectron2) instead of to its corner;
        if not, boxes are taken to be at least one position wide.

    Returns:
      `[n, down, across, channels]` of the features' type.
    """
    if sampling:
        return align_pyramid([features], boxes, size, (scale,), sampling, aligned)
    axes = _axes(boxes, size, scale, 0, aligned)
    lengths = features.shape[:2]
    weights = [_weights(axis, length) for axis, length in zip(axes, lengths, strict=True)]
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

    def pooled(rows, columns):
        return product("qw,pwc->pqc", columns, product("ph,hwc->pwc", rows, features))

    return _by_chunks(jax.vmap(pooled), *weights).astype(features.dtype)


def align_pyramid(
    features: Sequence[jax.Array],
    boxes: jax.Array,
    size: Size,
    scales: Sequence[float],
    sampling: int = 2,
    aligned: bool = False,
    canonical_size: int = 224,
) -> jax.Array:
    """RoIAlign of each box on the level of its size: torchvision's `MultiScaleRoIAlign`.

    The levels lie in one table, of which each sample reads the four rows around it; with products,
    every box would cost as much as on all levels. The derivative, which would have to add to these
    rows one after the other, is products all the same.

    Args:
      features: `[height, width, channels]` of each level, the largest map first.
      boxes, size, aligned: as `align`.
      scales: of the levels: powers of 2, each half of the one before; of one alone any.
      sampling: as `align`, but at least 1.
      canonical_size: as `levels`.

    Returns:
      `[n, down, across, channels]` of the features' type.

    Raises:
      UserError: `sampling` < 1.
    """
    if sampling < 1:
        raise UserError(f"sampling={sampling}: a pyramid's bins have at least 1 sample; set 2.")
    lowest = round(-math.log2(scales[0]))
    level = levels(boxes, lowest, lowest + len(scales) - 1, canonical_size)
    arguments = scales, size, sampling, aligned
    return linear(
        functools.partial(_of_levels, *arguments),
        functools.partial(_to_levels, *arguments, [(f.shape, f.dtype) for f in features]),
        (boxes, level),
        list(features),
    )


def _of_levels(scales, size, sampling, aligned, regions, features):
    """The table of all levels, read around each sample."""
    boxes, level = regions
    heights, widths = (jnp.array([f.shape[k] for f in features]) for k in (0, 1))
    starts = jnp.cumsum(heights * widths) - heights * widths
    table = jnp.concatenate([f.reshape(-1, f.shape[-1]) for f in features])
    axes = _axes(boxes, size, jnp.array(scales)[level][:, None], sampling, aligned)
    rows, columns = (
        list(_corners(axis, lengths[level][:, None], sampling))
        for axis, lengths in zip(axes, (heights, widths), strict=True)
    )

    def pooled(rows, columns, start, width):
        """Sums over pairs of a corner down `[down]` and one across `[across]`."""
        return sum(
            (wy[:, None] * wx[None])[..., None] * table[start + (y * width)[:, None] + x[None]]
            for y, wy in rows
            for x, wx in columns
        )

    of_boxes = rows, columns, starts[level], widths[level]
    return _by_chunks(jax.vmap(pooled), *of_boxes).astype(table.dtype)


def _to_levels(scales, size, sampling, aligned, kinds, regions, gradient):
    """What the gradient of the regions is of each level."""
    boxes, level = regions
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

    def add(total, chunk):
        rows, columns, gradient = chunk
        return total + product("nph,npwc->hwc", rows, product("nqw,npqc->npwc", columns, gradient))

    found = []
    for i, ((shape, dtype), scale) in enumerate(zip(kinds, scales, strict=True)):
        axes = _axes(boxes, size, scale, sampling, aligned)
        rows, columns = (
            _dense(_corners(axis, length, sampling), length)
            for axis, length in zip(axes, shape[:2], strict=True)
        )
        rows = jnp.where((level == i)[:, None, None], rows, 0)
        chunks = _chunked((rows, columns, gradient.astype(jnp.float32)))
        nothing = jnp.zeros(shape, jnp.float32)
        total = jax.lax.scan(lambda total, chunk: (add(total, chunk), None), nothing, chunks)[0]
        found.append(total.astype(dtype))
    return found


def levels(
    boxes: jax.Array,
    lowest: int,
    highest: int,
    canonical_size: int = 224,
    canonical_level: int = 4,
) -> jax.Array:
    """The level of a pyramid for each box: equation 1 of the FPN paper (Lin et al. 2017).

    Args:
      boxes: `[n, 4]`.
      lowest, highest: levels that there are; level k has stride 2^k.
      canonical_size: square root of the area of a box that belongs to the `canonical_level`.

    Returns:
      int32 `[n]` from 0 (the lowest) on.
    """
    sides = jnp.sqrt(jnp.maximum(areas(boxes), 0))
    level = canonical_level + jnp.log2(_divided(sides, canonical_size)) + 1e-6
    return jnp.clip(jnp.floor(level), lowest, highest).astype(jnp.int32) - lowest


def max_pool(features: jax.Array, boxes: jax.Array, size: Size, scale: float) -> jax.Array:
    """RoI max pooling (Girshick 2015), torchvision's `roi_pool`.

    Boxes are rounded to whole positions, both ends within; bins that share a position both have it.
    The derivative goes to the first of a bin's largest positions, row by row.

    Args:
      features: `[height, width, channels]`, finite.
      boxes: `[n, 4]`.
      size: of the result.
      scale: positions of the map per pixel of the image.

    Returns:
      `[n, down, across, channels]`; 0 where a bin has no position on the map.
    """
    boxes = _round(jax.lax.stop_gradient(boxes.astype(jnp.float32)) * scale)
    rows, columns = (
        _bins(boxes[:, k], boxes[:, k + 2], bins, length)
        for k, bins, length in zip((1, 0), _pair(size), features.shape[:2], strict=True)
    )

    def largest(rows, columns):
        """Along each row of the map, and then down: of equal ones the first, row by row."""
        across = largest_in_bins(features, *columns)
        return largest_in_bins(across.swapaxes(1, 2), *rows).swapaxes(1, 2)

    found = _by_chunks(largest, rows, columns)
    return jnp.where(found > jnp.finfo(found.dtype).min, found, 0)


class _Axis(NamedTuple):
    """Where boxes lie along one axis of a map, in positions: arrays `[n, 1]`.

    Attributes:
      start: of the first bin.
      bin: length of a bin.
      samples: in a bin.
      bins: how many.
    """

    start: jax.Array
    bin: jax.Array
    samples: jax.Array
    bins: int

    def sample(self, i: int | jax.Array) -> jax.Array:
        """Where each bin has its sample i: `[n, bins]`."""
        bins = jnp.arange(self.bins, dtype=jnp.float32)[None]
        within = _divided((i + 0.5) * self.bin, self.samples)
        return self.start + rounded(bins * self.bin) + within


def _axes(boxes, size, scale, sampling, aligned) -> Iterator[_Axis]:
    """Of rows, then of columns."""
    boxes = rounded(jax.lax.stop_gradient(boxes.astype(jnp.float32)) * scale) - 0.5 * aligned
    for bins, start, end in zip(
        _pair(size), (boxes[:, 1:2], boxes[:, :1]), (boxes[:, 3:], boxes[:, 2:3]), strict=True
    ):
        length = end - start if aligned else jnp.maximum(end - start, 1)
        bin_ = _divided(length, bins)
        samples = jnp.ceil(bin_) if not sampling else jnp.full_like(bin_, sampling)
        yield _Axis(start, bin_, jnp.clip(samples, 0, MOST_SAMPLES), bins)


def _weights(axis: _Axis, length: int) -> jax.Array:
    """What each position of the map adds to each bin: `[n, bins, length]`."""
    positions = jnp.arange(length, dtype=jnp.float32)[None, None]

    def add(i, total):
        at = axis.sample(i)
        counts = (at >= -1) & (at <= length) & (i < axis.samples)
        near = jnp.maximum(1 - jnp.abs(jnp.clip(at, 0, length - 1)[..., None] - positions), 0)
        return total + jnp.where(counts[..., None], near, 0)

    nothing = jnp.zeros((len(axis.start), axis.bins, length))
    most = axis.samples.max(initial=0).astype(jnp.int32)
    total = jax.lax.fori_loop(0, most, add, nothing)
    return total / jnp.maximum(axis.samples, 1)[..., None]


def _corners(
    axis: _Axis, lengths: jax.Array | int, sampling: int
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """The positions on both sides of each sample and their weights, `[n, bins]` each.

    Args:
      lengths: of the map of all boxes, or `[n, 1]` of each.
    """
    for i in range(sampling):
        at = axis.sample(i)
        counts = ((at >= -1) & (at <= lengths)) / axis.samples
        at = jnp.clip(at, 0, lengths - 1)
        below = jnp.floor(at).astype(jnp.int32)
        share = at - below
        yield below, (1 - share) * counts
        yield jnp.minimum(below + 1, lengths - 1), share * counts


def _dense(corners, length):
    """The weights of `_corners` at all positions of a map: `[n, bins, length]`."""
    positions = jnp.arange(length)[None, None]
    return sum(jnp.where(at[..., None] == positions, w[..., None], 0) for at, w in corners)


def _bins(start, end, bins, length):
    """The first position of each bin, and the one behind its last: int32 `[n, bins]` each."""
    size = _divided(jnp.maximum(end - start + 1, 1), bins)[:, None]
    i, start = jnp.arange(bins, dtype=jnp.float32)[None], start[:, None]
    edges = jnp.floor(i * size) + start, jnp.ceil((i + 1) * size) + start
    return [jnp.clip(edge, 0, length).astype(jnp.int32) for edge in edges]


def _round(x):
    """Rounds halves away from 0, as C does."""
    whole = jnp.trunc(x)
    return whole + jnp.sign(x) * (jnp.abs(x - whole) >= 0.5)


def _divided(x, n):
    """x / n to the last bit: of a constant, XLA would take the reciprocal and multiply."""
    return x / jnp.where(x == x, n, 1)


def _pair(size: Size) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


def _by_chunks(each: Callable[..., jax.Array], *of_boxes: Any) -> jax.Array:
    """`each` of boxes, computed for CHUNK at a time, now and again for the derivative."""
    each = jax.checkpoint(each, prevent_cse=False)
    n = len(jax.tree.leaves(of_boxes)[0])
    if n <= CHUNK:
        return each(*of_boxes)
    results = jax.lax.map(lambda chunk: each(*chunk), _chunked(of_boxes))
    return results.reshape(-1, *results.shape[2:])[:n]


def _chunked(of_boxes):
    """Arrays `[n, …]` as `[chunks, boxes, …]`, filled up with zeros."""
    n = len(jax.tree.leaves(of_boxes)[0])
    chunks = max(1, -(-n // CHUNK))
    boxes = -(-n // chunks)

    def chunked(x):
        x = jnp.pad(x, [(0, chunks * boxes - n)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(chunks, boxes, *x.shape[1:])

    return jax.tree.map(chunked, of_boxes)
