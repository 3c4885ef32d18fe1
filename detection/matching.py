"""Which annotated box an anchor or a proposal has to find."""

import jax
import jax.numpy as jnp

BELOW = -1  # background
BETWEEN = -2  # neither: left out of the loss


def match(
    iou: jax.Array,
    high: float,
    low: float,
    low_quality: bool = False,
    valid: jax.Array | None = None,
) -> jax.Array:
    """Gives each prediction an annotated box, as torchvision's `Matcher`.

    With `low_quality`, the predictions that overlap an annotated box most, ties included, are
    matched too, however little it is: each with the box that it overlaps most itself. So a box that
    no prediction touches matches all that touch none, as in torchvision.

    Args:
      iou: `[boxes, predictions]` from 0 to 1; NaN, of two boxes without area, counts as 0.
      high: matched from this overlap on.
      low: background below it.
      low_quality: see above.
      valid: bool `[boxes]`; False for rows that only fill up. All by default.

    Returns:
      int32 `[predictions]`: the box, `BELOW` or `BETWEEN`; without boxes all are `BELOW`.
    """
    boxes, predictions = iou.shape
    if boxes == 0:
        return jnp.full(predictions, BELOW, jnp.int32)
    valid = (jnp.ones(boxes, bool) if valid is None else valid)[:, None]
    iou = jnp.where(valid, jnp.nan_to_num(iou, nan=0.0), -1.0)
    best, overlap = iou.argmax(0).astype(jnp.int32), iou.max(0)
    found = jnp.where(overlap < low, BELOW, jnp.where(overlap < high, BETWEEN, best))
    if low_quality:
        most = iou == iou.max(1, keepdims=True, initial=-1.0)
        found = jnp.where((most & valid).any(0), best, found)
    return jnp.where(valid.any(), found, BELOW)
