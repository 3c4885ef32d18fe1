"""A run, opened again: the network, its weights and what it knows of its data."""

import logging
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

import models
import weights
from data.facts import Facts, read_facts
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


def load(workdir: str, which: str = "last") -> OpenedRun:
    """Opens a workdir; nothing but the folder is needed, and nothing in it is changed.

    Args:
      workdir: folder of a run.
      which: 'last', or 'best' on validation data.

    Raises:
      UserError: it is not a run's folder, or it holds no finished checkpoint of its network.
    """
    folder = Workdir(workdir)
    config = folder.read_config()
    facts = read_facts(folder)
    model, template = _network(config, facts)
    if config.optim.ema_decay:
        template = {"ema": template}
    if not folder.checkpoints.is_dir():
        raise _no_checkpoint(folder)
    checkpoints = Checkpoints(workdir, read_only=True)
    try:
        found = checkpoints.restore(template, which=which)
    finally:
        checkpoints.close()
    if found is None:
        raise _no_checkpoint(folder)
    step, variables, _ = found
    return OpenedRun(str(workdir), config, facts, model, variables.get("ema", variables), step)


def from_weight_file(config: ConfigDict, facts: Facts) -> OpenedRun:
    """Opens `config.init_from`, weights from elsewhere, as the network of `config.model`.

    Args:
      config: what `training.start.adopted` returns.
      facts: of the data that `config` opens.

    Raises:
      UserError: the file cannot be read or does not fit the network or the number of classes.
    """
    model, template = _network(config, facts)
    variables, notes = weights.load_weights(config.init_from, config.model, template)
    for note in notes:
        LOG.info(note)
    return OpenedRun(config.init_from, config, facts, model, variables, 0)


def _network(config, facts):
    """The network with its blocks one by one, and the shapes of its variables."""
    model = models.create(config.model, facts.num_classes).clone(scan_blocks=False, remat="none")
    image = jnp.zeros((1, *facts.image_shape))
    return model, jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))


def _no_checkpoint(folder):
    return UserError(
        f"{folder.checkpoints}: holds no finished checkpoint; expected the folder of a run that "
        "has saved at least once (checkpoint_every steps). Train it first, or give another "
        "--workdir."
    )
