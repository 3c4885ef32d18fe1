"""Greedy non-maximum suppression with static shapes."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from detection.boxes import iou, rounded

VOTES = 0.5  # IoU with a box from which another has a vote on it
BLOCK = 128  # boxes that one step of the loop decides
# torchvision's `batched_nms` on a CPU: up to so many boxes are shifted apart by class.
MAX_SHIFTED = 1000


def keep(
    boxes: jax.Array,
    scores: jax.Array,
    valid: jax.Array,
    threshold: float,
    classes: jax.Array | None = None,
    *,
    limit: int,
) -> tuple[jax.Array, jax.Array]:
    """Keeps the best of the boxes that overlap: torchvision's `nms` and `batched_nms`.

    From the highest score down, and of equal scores from the first on, a box is kept unless its IoU
    with one that was kept is above the threshold. It ends after `limit` boxes.

    With classes, only boxes of one class suppress each other. torchvision moves up to 1,000 boxes
    apart by class · (the largest coordinate + 1), and so decides by rounded coordinates; of more
    boxes it takes class by class. Here likewise, so that the same boxes are kept.

    Args:
      boxes: `[n, 4]`.
      scores: `[n]`.
      valid: bool `[n]`; others are neither kept nor do they suppress.
      threshold: IoU from 0 to 1.
      classes: integers `[n]`, e.g. of a class, or of a level of a pyramid.
      limit: the most boxes that are kept.

    Returns:
      `(indices, valid)`, int32 and bool `[limit]`: the boxes that are kept, the best first; where
      `valid` is False, the index is 0.
    """
    # Nothing here has a derivative.
    boxes, scores = jax.lax.stop_gradient((boxes.astype(jnp.float32), scores))
    count = valid.sum()
    label = jnp.zeros(len(boxes), jnp.int32)
    if classes is not None:
        few = count <= MAX_SHIFTED
        largest = jnp.where(valid[:, None], boxes, -jnp.inf).max(initial=-jnp.inf)
        shift = rounded(classes.astype(jnp.float32) * (largest + 1))
        boxes = boxes + jnp.where(few & valid, shift, 0)[:, None]
        label = jnp.where(few, 0, classes.astype(jnp.int32))

    order = jnp.lexsort((-scores, ~valid)).astype(jnp.int32)  # stable
    padding = BLOCK * max(1, math.ceil(len(boxes) / BLOCK)) - len(boxes)
    boxes, label, order = (
        jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))
        for x in (boxes[order], label[order], order)
    )
    positions = _first_kept(boxes, label, count, _float32_below(threshold), limit)
    kept = jnp.arange(limit) < positions[1]
    return jnp.where(kept, order[positions[0]], 0), kept


def vote(
    kept: jax.Array,
    boxes: jax.Array,
    scores: jax.Array,
    valid: jax.Array,
    classes: jax.Array,
    overlap: float = VOTES,
) -> jax.Array:
    """Box voting (Gidaris & Komodakis 2015).

    Each of the `kept` boxes, int `[k]` of `keep`, becomes the mean of all of its class whose IoU
    with it is at least `overlap`, weighted by their scores; itself is one of them.

    Args:
      boxes, scores, valid, classes: of `keep`; others than the valid ones have no vote.

    Returns:
      `[k, 4]`. A box without area, which overlaps nothing, stays.
    """
    near = (iou(boxes[kept], boxes) >= overlap) & (classes[kept][:, None] == classes[None])
    weights = jnp.where(near & valid[None], scores[None], 0)
    total = weights.sum(-1, keepdims=True)
    means = jnp.matmul(weights, boxes, precision=jax.lax.Precision.HIGHEST) / total
    return jnp.where(total > 0, means, boxes[kept])


def _first_kept(boxes, label, count, threshold, limit):
    """Of sorted boxes, `count` of them real: the positions `[limit]` of those kept; how many.

    One loop step decides on a block of boxes: first by all that were kept before, then among
    themselves.
    """
    upper = jnp.triu(jnp.ones((BLOCK, BLOCK), bool), 1)

    def undecided(state):
        start, number, _ = state
        return (start < count) & (number < limit)

    def decide(state):
        start, number, kept = state
        position = start + jnp.arange(BLOCK, dtype=jnp.int32)
        block, its_label = boxes[position], label[position]

        def suppresses(a, label_a):
            same = label_a[:, None] == its_label[None]
            return ((iou(a, block) > threshold) & same).astype(jnp.float32)

        is_kept = (jnp.arange(len(kept)) < number).astype(jnp.float32)
        free = position < count
        free &= is_kept @ suppresses(boxes[kept], label[kept]) == 0
        free = _greedy(free, suppresses(block, its_label) * upper)
        first = position[jnp.argsort(~free)]  # stable: those that are kept, then the others
        after = jnp.arange(limit) - number  # the last of those that were kept
        kept = jnp.where(after < 0, kept, first[jnp.clip(after, 0, BLOCK - 1)])
        return start + BLOCK, number + free.sum(dtype=jnp.int32), kept

    start = (jnp.int32(0), jnp.int32(0), jnp.zeros(limit, jnp.int32))
    _, number, kept = jax.lax.while_loop(undecided, decide, start)
    return kept, number


def _greedy(free, suppresses):
    """Which of a block's boxes `[n]` stay, where `suppresses[i, j]` is 0 unless i < j.

    All at once from what is known of the earlier ones, until nothing changes: after k rounds the
    first k boxes are right, and mostly all after a few.
    """

    def round_(state):
        _, now = state
        return now, free & (now.astype(jnp.float32) @ suppresses == 0)

    return jax.lax.while_loop(
        lambda state: (state[0] != state[1]).any(), round_, (jnp.zeros_like(free), free)
    )[1]


def _float32_below(threshold):
    """torchvision compares with a double; the largest float32 up to it decides the same."""
    nearest = np.float32(threshold)
    return nearest if float(nearest) <= threshold else np.nextafter(nearest, np.float32(-1))
