"""Localization as a task: what `training.task.Task` asks for. See `detection.per_class`."""

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from detection import build, learning
from detection import task as detection
from detection.localization import NAMED, Located, localization_errors
from detection.per_class import PerClassRPN
from run.processes import gathered

check, create = build.check_localization, build.per_class_rpn
load, learned = learning.load, learning.learned
init, prepare = detection.init, detection.prepare
loss, conclude = detection.loss, detection.conclude


def sums(config: ConfigDict) -> dict[str, jax.Array]:
    """Zeros of both parts of the loss."""
    del config
    return dict.fromkeys(detection.LOSSES[:2], jnp.float32(0))


def measure(
    model: PerClassRPN,
    variables: Any,
    data: Any,
    split: str,
    mesh: Mesh,
    stop: Callable[[], int] | None = None,
) -> dict[str, Any] | None:
    """Localization errors over a split, in percent, of the best box of each class.

    The predicted classes are those with the highest scores.

    Args:
      data: what `detection.data.open_data` returns.
      stop: asked before each batch; what is not 0 ends testing without a result.

    Returns:
      what `localization_errors` returns, and `'error'`, the first of it as a share, and `'images'`.
      With corrupt records also `'masked_images'` and `'masked_records'`.
    """
    truth, number, rows = data.annotated(split), data.split_size(split), []
    batches = data.evaluation(split)
    for part in detection.objects_in(model, variables, data, batches, mesh, number):
        if stop and stop():
            return None
        for index, found in part.items():
            own = found.boxes[found.labels == truth[index].labels[0]]
            named = found.labels[:NAMED] - 1, found.boxes[:NAMED]
            rows.append(json.dumps([index, own[0].tolist(), *(x.tolist() for x in named)]))
    everything = [json.loads(row) for row in gathered(rows)]
    result = localization_errors(
        [Located(*map(np.array, said)) for _, *said in everything],
        [truth[index].labels[0] - 1 for index, *_ in everything],
        [truth[index].boxes for index, *_ in everything],
    )
    error = result["localization_error"] / 100
    return data.corrupt.beside(result | {"error": error, "images": len(everything)}, split)


def said(result: dict[str, Any]) -> str:
    """A result in words."""
    own, top5 = (result[f"{name}localization_error"] for name in ("", "top5_"))
    images = result["images"]
    return f"localization error {own:.2f} % (true class), {top5:.2f} % (top 5; {images} images)"
