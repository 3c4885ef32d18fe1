"""What a run starts from: random weights, or a weight file whose conventions it takes over."""

import logging
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from configs import base
from configs.fields import FIELDS
from data import facts as data_facts
from data.facts import Facts
from errors import UserError
from run.workdir import Workdir, is_free
from training import task
from training.step import TrainState, create_state, state_from

LOG = logging.getLogger("residual")
# What a weight file can say of its network, and the part of the config that has the field.
CONVENTIONS = {"downsample_in": "model", "stem_pool": "model", "normalization": "data"}


def check_weights(config: ConfigDict) -> None:
    """Raises UserError for a new run that needs pretrained weights and has none.

    Random weights have no statistics that frozen batch normalisation could use: nothing keeps the
    activations in range, and a few steps later the loss is NaN.
    """
    needs = {"model.frozen_bn": config.model.frozen_bn, "replace_head": config.replace_head}
    for name, needed in needs.items():
        if needed and not config.init_from:
            raise UserError(
                f"init_from='': {name}=True needs pretrained weights, and random ones would become "
                "NaN or teach nothing. Give a weight file, --config.init_from=resnet50.safetensors "
                "(docs/coming_from_elsewhere.md says which are read), or train from scratch: "
                f"--config.{name}=False."
            )


def claim(folder: Workdir, config: ConfigDict, facts: Facts) -> None:
    """Makes a workdir this run's: writes its config and facts, or compares them with what is there.

    The caller holds the lock.

    Args:
      folder: the workdir.
      config: of the run, complete.
      facts: with the listings of all splits (`data.facts.of_run`).

    Raises:
      UserError: config or data differ from those of the run, or it cannot be written.
    """
    if not folder.claim(config):
        return folder.write_facts(facts.to_dict())
    if not folder.facts.exists():
        LOG.warning("%s is missing: nobody can say whether the data are the same.", folder.facts)
        return folder.write_facts(facts.to_dict())
    then = data_facts.read_facts(folder)
    if not then.splits:
        LOG.info("%s lists no files, as in runs of older code; it does from now on.", folder.facts)
    what = f"{folder}: the data have changed since the run began"
    data_facts.refuse_change(what, data_facts.changes(then, facts), config)
    if then.to_dict() != facts.to_dict():
        folder.write_facts(facts.to_dict())
    return None


def initial_state(config: ConfigDict, model: nn.Module, facts: Facts) -> TrainState:
    """The state of step 0: a function of `config.seed`, with the weights that it builds on.

    Raises:
      UserError: the weight file of `config.init_from` cannot be read or does not fit the network,
        or the run of `detection.proposals_from` does not.
    """
    state = create_state(config, model, facts.image_shape)
    folder = config.detection.proposals_from
    base = task.opened(folder, config.task) if folder else None
    if not (config.init_from or base):
        return state
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return state_from(config, task.of(config).load(config, facts, variables, base))


def adopted(config: ConfigDict, saved: Mapping[str, Any] | None = None) -> ConfigDict:
    """A copy of a run's config that has what the run, or its weights, began with.

    A field that is newer than the run keeps its default. From `config.init_from` come stride,
    pooling and normalisation of the ImageNet networks, where the file's origin is known
    (`weights.Conventions`). Each change is logged.

    Args:
      config: a whole config.
      saved: the config that the workdir's run began with; if it had the same file, its fields are
        taken, and the file is not read.

    Raises:
      UserError: for a file that cannot be read.
    """
    config = config.copy_and_resolve_references()
    fields = base.flatten(config)
    for name in sorted(set(fields) - set(base.flatten(saved))) if saved else ():
        default = FIELDS[name].default
        if fields[name] != default and not is_free(name):
            LOG.info("This run began before there was %s: it goes on with %s.", name, default)
            config.update_from_flattened_dict({name: default})
    if not config.init_from or config.model.stem == "cifar":
        return config
    if saved and saved.get("init_from") == config.init_from:
        for name, part in CONVENTIONS.items():
            config[part][name] = saved.get(part, {}).get(name, config[part][name])
        return config
    import weights

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
