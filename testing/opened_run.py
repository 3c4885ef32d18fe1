"""A workdir, opened again: the network, its weights and what it knows of its data."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

import models
from configs import workdir as workdir_config
from errors import UserError
from input_pipeline import Facts
from run.checkpoint import Checkpoints
from weights import door as pretrained

LOG = logging.getLogger("residual")


class Restored(NamedTuple):
    """What `load` found in a workdir.

    Attributes:
      workdir: the folder.
      config: of the run, complete.
      facts: image shape, class names and normalisation (`input_pipeline.Facts`).
      model: the network with its blocks one by one (`scan_blocks=False`), as they lie on disk.
      variables: `params` and `batch_stats` as NumPy arrays; the averaged ones with `ema_decay`.
      step: training steps behind these weights.
    """

    workdir: str
    config: Any
    facts: Facts
    model: nn.Module
    variables: Any
    step: int


def load(workdir, which="last"):
    """Opens a workdir; nothing but the folder is needed, and nothing in it is changed.

    Args:
      workdir: folder of a run.
      which: 'last', or 'best' on validation data.

    Raises:
      UserError: it is not a run's folder, or it holds no finished checkpoint of its network.
    """
    config = workdir_config.get_config(workdir)
    facts = Facts.load(workdir)
    model = models.create(config.model, facts.num_classes).clone(scan_blocks=False, remat="none")
    image = jnp.zeros((1, *facts.image_shape))
    template = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))
    averaged = bool(config.optim.ema_decay)
    folder = Path(workdir) / "checkpoints"
    if not folder.is_dir():
        raise _no_checkpoint(folder)
    checkpoints = Checkpoints(workdir, read_only=True)
    found = checkpoints.restore({"ema": template} if averaged else template, which=which)
    if found is None:
        raise _no_checkpoint(folder)
    step, variables, _ = found
    return Restored(
        str(workdir), config, facts, model, variables["ema"] if averaged else variables, step
    )


def from_weight_file(config, facts):
    """Opens `config.init_from`, weights from elsewhere, as the network of `config.model`.

    Args:
      config: what `pretrained.adopted` returns.
      facts: of the data that `config` opens.

    Raises:
      UserError: the file cannot be read or does not fit the network or the number of classes.
    """
    model = models.create(config.model, facts.num_classes).clone(scan_blocks=False, remat="none")
    image = jnp.zeros((1, *facts.image_shape))
    # The file replaces every array, so the template is one of shapes.
    template = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))
    variables, notes = pretrained.load_weights(config.init_from, config.model, template)
    for note in notes:
        LOG.info(note)
    return Restored(config.init_from, config, facts, model, variables, 0)


def _no_checkpoint(folder):
    return UserError(
        f"{folder}: holds no finished checkpoint; expected the folder of a run that has saved at "
        "least once (checkpoint_every steps). Train it first, or give another --workdir."
    )
