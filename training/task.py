"""What is learned is a task: what the loop, checkpoints, signals and logs leave to others.

A task is a module with the functions of `Task`. A metrics line of an evaluation has `error`, the
number that a checkpoint keeps (of classification's it is `top1_error`).
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs.base import flatten
from data.facts import Facts
from data.feed import Batch
from data.normalization import Normalization
from errors import UserError
from run.mesh import replicate
from run.workdir import Workdir


class Task(Protocol):
    """The functions of a task; `model` is what its `create` returns.

    Attributes:
      off: fields that it would not heed, and the value that says so.
    """

    off: dict[str, Any]

    def check(self, config: ConfigDict) -> None:
        """Raises UserError for a field that cannot work, before any data are opened."""

    def create(self, config: ConfigDict, facts: Facts) -> nn.Module:
        """The network for the data."""

    def init(self, model: Any, key: jax.Array, image_shape: tuple[int, int, int]) -> Any:
        """Random `params` and `batch_stats` (traced)."""

    def load(self, config: ConfigDict, facts: Facts, variables: Any, base: Any = None) -> Any:
        """`variables` with what they build on: the weights of `config.init_from`, or of `base`.

        `base` is the opened run of `config.detection.proposals_from`, if a task takes one.
        """

    def learned(self, config: ConfigDict) -> Callable[[Any], Any] | None:
        """Says which parameters a step may change: their tree as one of bool. None: all."""

    def sums(self, config: ConfigDict) -> Any:
        """Zeros of what `loss` counts besides: for classification errors, else sums by name."""

    def prepare(
        self,
        config: ConfigDict,
        model: Any,
        normalization: Normalization,
        step: jax.Array,
        batch: Batch,
    ) -> Any:
        """What `loss` takes: arrays whose first axis is this device's images (in shard_map).

        `batch` has `weight` besides, float32 [batch]: one over the valid images of the global
        batch, and 0 for others.
        """

    def loss(
        self, config: ConfigDict, model: Any, variables: Any, part: Any, key: jax.Array
    ) -> tuple[jax.Array, tuple[Any, Any]]:
        """`(loss, (batch_stats, sums))` of what `prepare` returned, or a part of it.

        Added up over parts and devices, the loss is the batch's mean; `sums` are sums over images.
        """

    def measure(
        self,
        model: Any,
        variables: Any,
        data: Any,
        split: str,
        mesh: Mesh,
        stop: Any = None,
    ) -> dict[str, Any] | None:
        """The values of a line of metrics.jsonl, or None when `stop()` ended it."""

    def conclude(
        self,
        result: dict[str, Any],
        model: Any,
        variables: Any,
        data: Any,
        mesh: Mesh,
        folder: Workdir,
    ) -> dict[str, Any]:
        """What the last line has besides; may leave files in the workdir (on one process)."""

    def said(self, result: dict[str, Any]) -> str:
        """A result in words."""


def tested(config: ConfigDict, runs: Sequence[Any], data: Any, mesh: Mesh) -> dict[str, Any]:
    """What `measure` says of opened runs, on the split and as `config.eval` asks."""
    from training import classification

    if config.task == "classification":
        return classification.tested(config, runs, data, mesh)
    e, (model, variables) = config.eval, as_one(config, runs)
    result = of(config).measure(model, replicate(variables, mesh), data, e.split, mesh)
    asked = {"crop": e.image_size, "classes_from": list(e.classes_from)}
    return result | {"refine_boxes": e.refine_boxes} | asked


def as_one(config: ConfigDict, runs: Sequence[Any]) -> tuple[Any, Any]:
    """A network for `measure` that is all of the opened runs, and its variables."""
    if config.task == "detection":
        from detection import boosted

        return boosted.of(config, runs)
    if config.task == "localization":
        from detection import localizers

        return localizers.of(config, runs, [_namer(one) for one in config.eval.classes_from])
    return runs[0].model, runs[0].variables


def _namer(folder):
    """A finished classifier, and which share of an image's shorter side it is shown."""
    from testing.opened_run import shorter_side

    run = opened(folder, "classification")
    side = run.facts.image_shape[0]
    return run, side / shorter_side(run.config, side)


def opened(folder: str, learned: str, which: str = "last") -> Any:
    """A finished run of a task, as `testing.opened_run.load` opens it.

    Raises:
      UserError: it has learned something else, or see there.
    """
    from testing import opened_run

    config = Workdir(folder).read_config()
    if config.task != learned:
        raise UserError(f"{folder}: this run has learned {config.task}; expected {learned}.")
    return opened_run.load(folder, which, _besides_classification(config))


def from_weight_file(config: ConfigDict, facts: Facts) -> Any:
    """`config.init_from`, opened as `testing.opened_run.from_weight_file` opens it.

    Raises:
      UserError: its classes are not those of the data, or see there.
    """
    from testing import opened_run
    from training import classification

    if config.task == "classification":
        classification.check_labels(config, facts)
    return opened_run.from_weight_file(config, facts, _besides_classification(config))


def _besides_classification(config):
    return None if config.task == "classification" else of(config)


def check(config: ConfigDict) -> None:
    """Raises UserError for a field that cannot work with the task, or that it would not heed."""
    learned, values = of(config), flatten(config)
    for name, off in learned.off.items():
        if values[name] != off:
            raise UserError(
                f"{name}={values[name]!r}: expected {off!r} with task={config.task}, which has no "
                "other."
            )
    learned.check(config)


def of(config: ConfigDict) -> Task:
    """The task of a config; nothing of the others is imported."""
    from training import classification

    if config.task == "classification":
        return classification
    if config.task == "detection":
        from detection import task

        return task
    if config.task == "localization":
        from detection import localization_task

        return localization_task
    from detection import segmentation_task

    return segmentation_task
