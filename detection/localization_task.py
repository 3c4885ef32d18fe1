"""Localization as a task: what `training.task.Task` asks for.

Of two kinds: the per-class RPN (`detection.per_class`), and R-CNN on its proposals
(`detection.rcnn`).
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data.facts import Facts
from detection import build, learning
from detection import task as detection
from detection.localization import NAMED, Located, localization_errors
from errors import UserError
from models.scanned import stack_blocks
from run.compare import differences
from run.processes import gathered
from run.workdir import Workdir

check, create = build.check_localization, build.localizer
off = build.OFF | build.OF_DETECTORS
init, learned = detection.init, learning.learned
prepare, loss = detection.prepare, detection.loss
# Fields of a network that make no difference to what a trained one says.
OF_TRAINING = ("sync_bn", "bn_group_size", "frozen_bn", "zero_init_residual")
OF_COMPUTING = ("remat", "scan_blocks", "space_to_depth")


def load(config: ConfigDict, facts: Facts, variables: Any, base: Any = None) -> Any:
    """What `learning.load` says, and in an R-CNN the per-class RPN of `base` in its place.

    Args:
      base: the opened run of `detection.proposals_from`.

    Raises:
      UserError: it is no per-class RPN, or of another network, other anchors or classes; or see
        there.
    """
    if config.init_from:
        variables = learning.load(config, facts, variables)
    if base is None:
        return variables

    def said(network: str, c: ConfigDict, names: Sequence[str]) -> dict[str, Any]:
        fields = {n: x for n, x in c.model.items() if n not in OF_TRAINING + OF_COMPUTING}
        kind = {"network": network, "anchors": list(c.detection.anchors)}
        return {"model": fields, "detection": kind, "label_names": list(names)}

    there = said(base.config.detection.network, base.config, base.facts.label_names)
    where = f"in {base.workdir}", "here"
    if found := differences(there, said("rpn", config, facts.label_names), where):
        raise UserError(
            f"detection.proposals_from={base.workdir}: expected a per-class RPN of the same "
            f"network, anchors and classes; {'; '.join(found)}."
        )
    proposer = stack_blocks(base.variables) if config.model.scan_blocks else base.variables
    return {kind: tree | {"proposer": proposer[kind]} for kind, tree in variables.items()}


def sums(config: ConfigDict) -> dict[str, jax.Array]:
    """Zeros of both parts of the loss: of anchors, or of regions."""
    first = 2 * (config.detection.network == "rcnn")
    return dict.fromkeys(detection.LOSSES[first : first + 2], jnp.float32(0))


def measure(
    model: Any,
    variables: Any,
    data: Any,
    split: str,
    mesh: Mesh,
    stop: Callable[[], int] | None = None,
) -> dict[str, Any] | None:
    """Localization errors over a split, in percent, of the best box of each class.

    The predicted classes are those with the highest scores.

    Args:
      model: a `PerClassRPN`, an `RCNN`, or `Localizers`.
      data: what `detection.data.open_data` returns.
      stop: asked before each batch; what is not 0 ends testing without a result.

    Returns:
      what `localization_errors` returns, and `'error'`, the first of it as a share, and `'images'`.
      With corrupt records also `'masked_images'` and `'masked_records'`.
    """
    truth, number, rows = data.annotated(split), data.split_size(split), []
    batches = _evaluation(data, split)
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


def _evaluation(data, split):
    """Batches of a split with the true classes of their images, which R-CNN asks for."""
    truth = data.annotated(split)
    labels = np.array([truth[i].labels[0] - 1 for i in range(data.split_size(split))], np.int32)
    for batch in data.evaluation(split):
        yield batch | {"own": labels[batch["index"]]}


def conclude(
    result: dict[str, Any], model: Any, variables: Any, data: Any, mesh: Mesh, folder: Workdir
) -> dict[str, Any]:
    """Draws what is found in the first test images into the workdir."""
    batches = _evaluation(data, "test")
    return detection.conclude(result, model, variables, data, mesh, folder, batches)


def said(result: dict[str, Any]) -> str:
    """A result in words."""
    own, top5 = (result[f"{name}localization_error"] for name in ("", "top5_"))
    images = result["images"]
    return f"localization error {own:.2f} % (true class), {top5:.2f} % (top 5; {images} images)"
