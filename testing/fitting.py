"""Whether runs can be tested on data: of the same classes, and not changed unawares."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from data.facts import Facts, refuse_change
from errors import UserError
from run.compare import differences
from testing.opened_run import OpenedRun


def check(runs: Sequence[OpenedRun], data: Any, config: ConfigDict) -> None:
    """Raises UserError unless every run fits the others and the data.

    Args:
      runs: the network, or the networks of an ensemble.
      data: what `input_pipeline.open_data` returns.
      config: what to test on (`data`, `eval`).
    """
    for one in runs:
        check_fits(one, runs[0], data.facts)
        _check_unchanged(one, data, config)


def check_fits(one: OpenedRun, first: OpenedRun, facts: Facts) -> None:
    """Raises UserError unless an opened run has the classes and channels of the data."""
    if one.facts.label_names != first.facts.label_names:
        raise UserError(
            f"{one.workdir} was trained on {_classes(one.facts)}, {first.workdir} on "
            f"{_classes(first.facts)}; an ensemble needs networks of the same classes."
        )
    if one.facts.label_names != facts.label_names:
        raise UserError(
            f"{one.workdir} was trained on {_classes(one.facts)}, and {facts.dataset} has "
            f"{_classes(facts)}; test it on data of the same classes."
        )
    if one.facts.image_shape[-1] != facts.image_shape[-1]:
        raise UserError(
            f"{one.workdir} takes images of {one.facts.image_shape[-1]} channel(s), and "
            f"{facts.dataset} has {facts.image_shape[-1]}."
        )


def _classes(facts: Facts):
    names = ", ".join(facts.label_names[:5]) + (", …" if facts.num_classes > 5 else "")
    return f"{facts.num_classes} classes ({names})"


def _check_unchanged(one, data, config):
    """Refuses a split of the run's own data that is no longer what it was."""
    used = {config.eval.split} | ({"train"} if config.eval.precise_bn else set())
    for name in sorted(used & set(one.facts.splits)):
        then, now = one.facts.splits[name], data.listing(name)
        if (one.facts.dataset, then.split) == (data.facts.dataset, now.split):
            now = now.as_far_as(then)
            changes = differences(then._asdict(), now._asdict(), ("then", "now"))
            what = f"{one.workdir}: the {name} images have changed since the run began"
            refuse_change(what, changes, config)
