"""A run, opened again: the network, its weights and what it knows of its data."""

import contextlib
import logging
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import models
from configs import base
from data.class_names import imagenet_classes
from data.facts import Facts, read_facts
from data.normalization import CONSTANTS, Normalization
from errors import UserError
from run.checkpoint import Checkpoints
from run.workdir import Workdir

LOG = logging.getLogger("residual")


class OpenedRun(NamedTuple):
    """What `load` found in a workdir, or `from_weight_file` in a file.

    Attributes:
      workdir: the folder; for a weight file, the file.
      config: of the run, complete.
      facts: image shape, class names and normalisation.
      model: the network with its blocks one by one (`scan_blocks=False`), as they lie on disk.
      variables: `params` and `batch_stats` as NumPy arrays; the averaged ones with `ema_decay`.
      step: training steps behind these weights.
    """

    workdir: str
    config: ConfigDict
    facts: Facts
    model: nn.Module
    variables: Any
    step: int


def shorter_side(config: ConfigDict, height: int) -> int:
    """To which an image's shorter side is resized before the central crop of `height` pixels.

    Small images (device-resident sets) are scaled to the crop; others have the testing protocol's.
    """
    return height if config.data.resident else max(height, config.eval.resize)


def load(workdir: str, which: str = "last", task: Any = None) -> OpenedRun:
    """Opens a workdir; nothing but the folder is needed, and nothing in it is changed.

    Args:
      workdir: folder of a run.
      which: 'last', or 'best' on validation data.
      task: what the run has learned (`training.task`); None is classification.

    Raises:
      UserError: it is not a run's folder, it has learned something else, or it holds no finished
        checkpoint of its network.
    """
    folder = Workdir(workdir)
    config = folder.read_config()
    facts = read_facts(folder)
    if task is None and config.task != "classification":
        raise UserError(
            f"{workdir}: this run has learned {config.task}; expected one of classification. "
            "`predict.py --workdir` and `main.py --mode=evaluate` take it."
        )
    model, template = _network(config, facts, task)
    if config.optim.ema_decay:
        template = {"ema": template}
    found = None
    if folder.checkpoints.is_dir():
        with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
            found = checkpoints.restore(template, which=which)
    if found is None:
        raise UserError(
            f"{folder.checkpoints}: holds no finished checkpoint; expected the folder of a run "
            "that has saved at least once (checkpoint_every steps). Train it first, or give "
            "another --workdir."
        )
    step, variables, _ = found
    return OpenedRun(str(workdir), config, facts, model, variables.get("ema", variables), step)


def from_weight_file(
    config: ConfigDict, facts: Facts, task: Any = None, file: Any = None
) -> OpenedRun:
    """Opens `config.init_from`, weights from elsewhere, as the network of `config.model`.

    Args:
      config: what `training.start.adopted` returns.
      facts: of the data that `config` opens.
      task: as in `load`.
      file: the weight file, if `weights.opened` has opened it.

    Raises:
      UserError: the file cannot be read or does not fit the network or the number of classes.
    """
    model, template = _network(config, facts, task)
    if task is not None:
        variables = task.load(config, facts, template)
        return OpenedRun(config.init_from, config, facts, model, variables, 0)
    import weights  # readers of foreign files

    variables, notes = weights.load_weights(file or config.init_from, config.model, template)
    for note in notes:
        LOG.info(note)
    return OpenedRun(config.init_from, config, facts, model, variables, 0)


def weights_alone(path: Any) -> tuple[OpenedRun, str]:
    """Opens a weight file without a workdir: what its arrays do not say follows from its origin.

    Args:
      path: as `weights.load_weights` takes it.

    Returns:
      The network, and a sentence that says what was taken to be so.

    Raises:
      UserError: the file cannot be read, or holds no network that can be built here.
    """
    import weights

    file = weights.opened(path)
    found, path = weights.describe(file), file.given
    config = base.base()
    config.init_from = path
    config.model.update(found.model)
    config.data.image_size, config.eval.resize = found.image_shape[0], found.resize
    if isinstance(found.normalization, str):
        config.data.normalization = found.normalization
        normalization, how = CONSTANTS[found.normalization], found.normalization
    else:
        normalization = Normalization(*(np.asarray(c, np.float32) for c in found.normalization))
        per_channel = normalization.mean.ndim == 1
        config.data.normalization = "per_channel" if per_channel else "per_pixel"
        how = f"mean {normalization.mean}, deviation {normalization.std}" if per_channel else "own"
    names = found.label_names or tuple(imagenet_classes())
    facts = Facts(found.origin, names, found.image_shape, normalization, num_train=0)
    which = "ImageNet's" if not found.label_names else f"{names[0]!r} … {names[-1]!r}"
    said = (
        f"{path}: {found.name} of {found.origin}; shorter side {found.resize}, "
        f"central crop {found.image_shape[0]}; normalisation: {how}; {len(names)} classes: {which}"
    )
    if found.assumed:
        said += f". Assumed, since the file does not say it: {' and '.join(found.assumed)}"
    return from_weight_file(config, facts, file=file), f"{said}."


def _network(config, facts, task=None):
    """The network with its blocks one by one, and the shapes of its variables."""
    config = config.copy_and_resolve_references()
    config.model.update(scan_blocks=False, remat="none")
    if task is not None:
        model, key = task.create(config, facts), jax.random.key(0)
        return model, jax.eval_shape(lambda: task.init(model, key, facts.image_shape))
    model = models.create(config.model, facts.num_classes)
    image = jnp.zeros((1, *facts.image_shape))
    return model, jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))
