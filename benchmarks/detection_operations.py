"""The operations of `detection`, torchvision's, and random arrays for both."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from detection import anchors, boxes, matching, nms, roi

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
FPN_SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
HEIGHT, WIDTH = 150, 200  # of the image


class Operation(NamedTuple):
    """One operation, ours and torchvision's.

    Attributes:
      make: `(generator, n)` → NumPy arrays of a case of n boxes.
      ours: of these arrays; compiled once.
      theirs: of torch tensors of them.
      exact: indices, which have to be the same.
    """

    make: Callable[..., tuple[np.ndarray, ...]]
    ours: Callable[..., Any]
    theirs: Callable[..., Any]
    exact: bool = False


def random_boxes(random: np.random.Generator, n: int) -> np.ndarray:
    """`[n, 4]` of all kinds: across the border, outside, on whole pixels, narrow, without area."""
    corner = random.uniform(-40, WIDTH + 40, (n, 2))
    found = np.concatenate([corner, corner + random.exponential(40, (n, 2))], 1)
    kind = random.integers(0, 10, n)
    found[kind < 3] = found[kind < 3].round()
    found[kind == 3, 2] = found[kind == 3, 0]
    found[kind == 4, 2:] = found[kind == 4, :2]
    found[kind == 5] += 5 * WIDTH
    return found.astype(np.float32)


def _with_area(random, n):
    found = random_boxes(random, n)
    found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + np.float32(0.1))
    return found


def _several(*makers):
    return lambda random, n: tuple(make(random, n) for make in makers)


BOXES = _several(random_boxes)


def _deltas(random, n):
    return 6 * random.standard_normal((n, 4)).astype(np.float32), _with_area(random, n)


def _overlaps(random, n):
    overlaps = np.asarray(boxes.iou(_with_area(random, max(1, n // 8)), _with_area(random, n)))
    return (np.where(random.random(overlaps.shape) < 0.1, 0.5, overlaps).astype(np.float32),)


def _scored(random, n):
    """Boxes in heaps, scores with and without ties."""
    heaps = random_boxes(random, max(1, n // 6))[random.integers(0, max(1, n // 6), n)]
    found = heaps + random.choice([0, 3, 12]) * random.standard_normal((n, 4))
    found = (found.round() if random.random() < 0.5 else found).astype(np.float32)
    scores = random.random(n).round(random.choice([1, 2, 7])).astype(np.float32)
    return found, scores, random.random(n) < random.choice([0.0, 0.6, 1.0], p=[0.05, 0.45, 0.5])


def _classed(random, n):
    return *_scored(random, n), random.integers(0, random.choice([1, 3, 90]), n).astype(np.int32)


def _many(random, n):
    """More than torchvision shifts; without ties, of which its order is then not defined."""
    found, _, _, classes = _classed(random, 30 * n)
    scores = random.permutation(30 * n).astype(np.float32)
    return found, scores, np.ones(30 * n, bool), classes


def _map(height, width):
    def make(random: np.random.Generator, n: int) -> tuple[np.ndarray, ...]:
        features = random.standard_normal((height, width, 4)).astype(np.float32)
        return features.round(1), random_boxes(random, n)  # many equal values

    return make


def _pyramid(random, n):
    sides = [(-(-HEIGHT // s), -(-WIDTH // s)) for s in (4, 8, 16, 32)]
    features = [random.standard_normal((*side, 3)).astype(np.float32) for side in sides]
    found = random_boxes(random, n)
    found[:, 2:] += random.exponential(200, (n, 2)).astype(np.float32)  # all levels
    return *features, found


def kept(threshold: float) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Non-maximum suppression, ours and theirs: indices of boxes, at the end -1."""

    def ours(found: jax.Array, scores: jax.Array, valid: jax.Array, *classes: Any) -> Any:
        limit = len(scores) + 3
        index, any_ = nms.keep(found, scores, valid, threshold, *classes, limit=limit)
        return jnp.where(any_, index, -1)

    def theirs(found: Any, scores: Any, valid: Any, *classes: Any) -> Any:
        import torch
        from torchvision.ops import batched_nms, nms

        real = torch.where(valid)[0]
        suppress = batched_nms if classes else nms
        kept = suppress(found[real], scores[real], *(c[real] for c in classes), threshold)
        result = torch.full((len(scores) + 3,), -1, dtype=torch.int64)
        result[: len(kept)] = real[kept]
        return result

    return ours, theirs


def _with_gradient(pool):
    """What a pooling returns, and the gradient of a weighted sum of it by the features."""

    def both(features: jax.Array, found: jax.Array) -> Any:
        pooled, back = jax.vjp(lambda f: pool(f, found), features)
        return pooled, back(
            jnp.cos(jnp.arange(pooled.size, dtype=jnp.float32)).reshape(pooled.shape)
        )[0]

    return both


def _theirs_with_gradient(name, *arguments):
    def both(features: Any, found: Any) -> Any:
        import torch
        import torchvision

        planes = features.permute(2, 0, 1)[None].contiguous().requires_grad_()
        pooled = getattr(torchvision.ops, name)(planes, [found], *arguments)
        pooled = pooled.permute(0, 2, 3, 1)
        weights = torch.cos(torch.arange(pooled.numel(), dtype=torch.float32))
        (pooled * weights.reshape(pooled.shape)).sum().backward()
        return pooled.detach(), planes.grad[0].permute(1, 2, 0)

    return both


def _pooling(name, ours, *arguments):
    pool = _with_gradient(lambda features, found: ours(features, found, *arguments))
    return pool, _theirs_with_gradient(name, *arguments)


def _torchvision(name, *more):
    """A function of torchvision.ops, given the arrays and `more`."""

    def theirs(*arrays: Any) -> Any:
        import torchvision

        return getattr(torchvision.ops, name)(*arrays, *more)

    return theirs


def _coder(method):
    def theirs(a: Any, b: Any) -> Any:
        from torchvision.models.detection._utils import BoxCoder

        return getattr(BoxCoder(WEIGHTS), method)(a, b)

    return theirs


def _their_anchors(_):
    import torch
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    made = AnchorGenerator((anchors.C4_SIZES,), (anchors.RATIOS,))
    return made.grid_anchors([[5, 7]], [[torch.tensor(15), torch.tensor(16)]])[0]


def _their_matches(low_quality):
    def theirs(overlaps: Any) -> Any:
        from torchvision.models.detection._utils import Matcher

        return Matcher(0.7, 0.3, low_quality)(overlaps)

    return theirs


def _small(found):
    import torch
    from torchvision.ops import remove_small_boxes

    return torch.isin(torch.arange(len(found)), remove_small_boxes(found, 3.0))


def _their_levels(found):
    from torchvision.ops.poolers import LevelMapper

    return LevelMapper(2, 5)([found])


def torchvision_pyramid(arrays: Any, size: tuple[int, int]) -> Any:
    """MultiScaleRoIAlign of maps and, last, boxes of an image of `size`."""
    from torchvision.ops import MultiScaleRoIAlign

    maps = {str(i): f.permute(2, 0, 1)[None].contiguous() for i, f in enumerate(arrays[:-1])}
    return MultiScaleRoIAlign(list(maps), 7, 2)(maps, [arrays[-1]], [size]).permute(0, 2, 3, 1)


def _our_pyramid(*arrays):
    return roi.align_pyramid(arrays[:-1], arrays[-1], 7, FPN_SCALES)


OPERATIONS: Mapping[str, Operation] = {
    "areas": Operation(BOXES, boxes.areas, _torchvision("box_area")),
    "iou": Operation(_several(random_boxes, random_boxes), boxes.iou, _torchvision("box_iou")),
    "clip": Operation(
        BOXES,
        lambda b: boxes.clip(b, HEIGHT, WIDTH),
        _torchvision("clip_boxes_to_image", (HEIGHT, WIDTH)),
    ),
    "large": Operation(BOXES, lambda b: boxes.large(b, 3.0), _small, exact=True),
    "encode": Operation(
        _several(_with_area, _with_area),
        lambda a, b: boxes.encode(a, b, WEIGHTS),
        _coder("encode_single"),
    ),
    "decode": Operation(_deltas, lambda a, b: boxes.decode(a, b, WEIGHTS), _coder("decode_single")),
    "anchors": Operation(
        BOXES,
        lambda _: anchors.grid((5, 7), (15, 16), anchors.base(anchors.C4_SIZES)),
        _their_anchors,
    ),
    "match": Operation(
        _overlaps, lambda x: matching.match(x, 0.7, 0.3), _their_matches(False), exact=True
    ),
    "match, low quality": Operation(
        _overlaps, lambda x: matching.match(x, 0.7, 0.3, True), _their_matches(True), exact=True
    ),
    "nms, IoU > 0.3": Operation(_scored, *kept(0.3), exact=True),
    "nms, IoU > 0.7": Operation(_scored, *kept(0.7), exact=True),
    "nms by class, IoU > 0.5": Operation(_classed, *kept(0.5), exact=True),
    "nms by class of 30 times as many": Operation(_many, *kept(0.5), exact=True),
    "RoIAlign 7, 2 samples": Operation(
        _map(10, 13), *_pooling("roi_align", roi.align, 7, 1 / 16, 2)
    ),
    "RoIAlign (3, 5), aligned, adaptive": Operation(
        _map(10, 13), *_pooling("roi_align", roi.align, (3, 5), 1 / 16, 0, True)
    ),
    "RoIAlign 2, adaptive, 1×1 map": Operation(
        _map(1, 1), *_pooling("roi_align", roi.align, 2, 1 / 64, 0)
    ),
    "RoI max pooling 7": Operation(_map(10, 13), *_pooling("roi_pool", roi.max_pool, 7, 1 / 16)),
    "RoI max pooling (3, 5), 1×1 map": Operation(
        _map(1, 1), *_pooling("roi_pool", roi.max_pool, (3, 5), 1 / 64)
    ),
    "levels": Operation(BOXES, lambda b: roi.levels(b, 2, 5), _their_levels, exact=True),
    "RoIAlign of a pyramid": Operation(
        _pyramid, _our_pyramid, lambda *arrays: torchvision_pyramid(arrays, (HEIGHT, WIDTH))
    ),
}
