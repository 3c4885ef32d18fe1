"""What a run starts from: random weights, or a weight file whose conventions it takes over."""

import logging
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

import weights
from data.facts import Facts
from training.step import TrainState, create_state, state_from

LOG = logging.getLogger("residual")
# What a weight file can say of its network, and the part of the config that has the field.
CONVENTIONS = {"downsample_in": "model", "stem_pool": "model", "normalization": "data"}


def initial_state(config: ConfigDict, model: nn.Module, facts: Facts) -> TrainState:
    """The state of step 0: a function of `config.seed`, with the weights of `config.init_from`.

    Raises:
      UserError: the weight file cannot be read or does not fit the network.
    """
    state = create_state(config, model, facts.image_shape)
    if not config.init_from:
        return state
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    variables, notes = weights.load_weights(
        config.init_from, config.model, variables, replace_head=config.replace_head
    )
    for note in notes:
        LOG.info(note)
    return state_from(config, variables)


def adopted(config: ConfigDict, saved: Mapping[str, Any] | None = None) -> ConfigDict:
    """A copy of a run's config that has what the weights of `config.init_from` were trained with.

    That is stride, pooling and normalisation of the ImageNet networks, where the file's origin is
    known (`weights.Conventions`); each change is logged.

    Args:
      config: a whole config.
      saved: the config that the workdir holds; if it began with the same file, its fields are
        taken, and the file is not read.

    Raises:
      UserError: for a file that cannot be read.
    """
    config = config.copy_and_resolve_references()
    if not config.init_from or config.model.stem != "imagenet":
        return config
    if saved and saved.get("init_from") == config.init_from:
        for name, part in CONVENTIONS.items():
            config[part][name] = saved.get(part, {}).get(name, config[part][name])
        return config
    known = weights.conventions(config.init_from)
    for name, part in CONVENTIONS.items():
        value = getattr(known, name)
        if value and value != config[part][name]:
            LOG.info(
                "%s was trained with %s.%s=%s, which replaces %s.",
                *(config.init_from, part, name, value, config[part][name]),
            )
            config[part][name] = value
    return config
