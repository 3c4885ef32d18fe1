"""Whose folder a workdir is: the config that it was started with, and whether a run may go on."""

import json
from pathlib import Path

import jax

from configs import common
from errors import UserError
from run.checkpoint import FOLDER, committed_steps
from run.logs import METRICS

CONFIG_FILE = "config.json"

# A run may be continued with other values of these: they change no number of the training, but for
# what happens after a fault, which a run that stopped there is told to choose.
FREE_FIELDS = (
    "data_dir",
    "tensorboard",
    "checkpoint_every",
    "keep_checkpoints",
    "eval",
    "model.remat",
    "data.num_threads",
    "data.prefetch",
    "data.on_corrupt",
    "data.max_corrupt_fraction",
    "optim.on_nonfinite",
)


def saved_config(workdir):
    """What config.json of a workdir holds, as dictionaries, or None for a new one.

    Raises:
      UserError: it cannot be read.
    """
    path = Path(workdir) / CONFIG_FILE
    try:
        saved = json.loads(path.read_text()) if path.exists() else None
        if not isinstance(saved, dict | None):
            raise ValueError("no JSON object")
        return saved
    except (OSError, ValueError) as error:
        raise UserError(
            f"--workdir={workdir}: cannot be used ({error}); choose another folder, or the folder "
            "of a run whose config.json is whole."
        ) from error


def claim(config, workdir):
    """Writes config.json into a new workdir, or checks that an existing one belongs to this run.

    A run that ended before its first checkpoint or line of metrics binds nobody.

    Raises:
      UserError: the folder cannot be written, or its config differs in a way that matters.
    """
    path = Path(workdir) / CONFIG_FILE
    fields = json.loads(config.to_json_best_effort())
    saved = saved_config(workdir)
    try:
        if not _has_begun(Path(workdir)):
            saved = None
        Path(workdir).mkdir(parents=True, exist_ok=True)
        if saved is None and jax.process_index() == 0:
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(fields, indent=2))
            temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"--workdir={workdir}: cannot be used ({error}); choose a folder that can be written."
        ) from error
    if saved is not None:
        differing = [
            key
            for key in _differences(saved, fields)
            if not _is_free(key) and not _is_new(key, saved, fields)
        ]
        if differing:
            listed = "; ".join(
                f"{key}: {_lookup(saved, key)!r} there, {_lookup(fields, key)!r} now"
                for key in differing
            )
            raise UserError(
                f"--workdir={workdir} holds a run with another config ({listed}). "
                "Use another --workdir, or the same config to continue."
            )


def _has_begun(workdir):
    metrics = workdir / METRICS
    has_line = metrics.exists() and metrics.stat().st_size > 0
    return has_line or bool(committed_steps(workdir / FOLDER))


def _is_free(key):
    return any(key == free or key.startswith(free + ".") for free in FREE_FIELDS)


def _is_new(key, saved, fields):
    """Whether the run began before there was this field, whose default is what it did."""
    default = _lookup(json.loads(common.base().to_json_best_effort()), key)
    return _lookup(saved, key) is None and _lookup(fields, key) == default


def _differences(a, b, prefix=""):
    keys = []
    for key in sorted(set(a) | set(b)):
        x, y = a.get(key), b.get(key)
        if isinstance(x, dict) and isinstance(y, dict):
            keys += _differences(x, y, f"{prefix}{key}.")
        elif x != y:
            keys.append(prefix + key)
    return keys


def _lookup(fields, dotted):
    for key in dotted.split("."):
        fields = fields.get(key) if isinstance(fields, dict) else None
    return fields
