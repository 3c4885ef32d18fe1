"""The folder of a run: the names of its files, whose it is, and reading what it says of itself."""

import functools
import hashlib
import json
import logging
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import base
from errors import UserError, first_line
from run import files, whole_folders

LOG = logging.getLogger("residual")
RUN = "run"  # the field by which a file says whose it is
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
    "data.on_change",
    "data.max_pixels",
    "data.max_corrupt_fraction",
    "optim.on_nonfinite",
)


class Workdir:
    """Where everything of a run lies; nobody else spells these names.

    Raises:
      UserError: see `run.files.at`.
    """

    def __init__(self, path: str | Path):
        self.path = files.at(path)
        self.config = self.path / "config.json"
        self.facts = self.path / "data.json"
        self.checkpoints = self.path / "checkpoints"
        self.lock = self.checkpoints / ".lock"  # of who trains
        self.metrics = self.path / "metrics.jsonl"
        self.timing = self.path / "timing.jsonl"
        self.events = self.path / "events"  # the beginning of the names of TensorBoard's files
        self.curves = self.path / "curves.png"
        self.detections = self.path / "detections.png"
        self.evaluation = self.path / "evaluation.json"
        self.precise_bn = self.path / "precise_bn.npz"
        self.analysis = self.path / "analysis"
        self.cam = self.path / "cam"
        self.export = self.path / "export"

    def __str__(self) -> str:
        return str(self.path)

    def saved_config(self) -> dict[str, Any] | None:
        """What config.json holds, as nested dictionaries, or None for a new workdir.

        Raises:
          UserError: it cannot be read.
        """
        saved = self._config_file()
        fields = saved and {name: value for name, value in saved.items() if name != RUN}
        return fields and base.as_meant(fields, str(self.config))

    @functools.cached_property
    def run(self) -> str | None:
        """What tells this run from all others; None without config.json or in one of older code.

        Raises:
          UserError: config.json cannot be read.
        """
        return (self._config_file() or {}).get(RUN)

    def _config_file(self):
        try:
            return _unsealed(self.config) if self.config.exists() else None
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.config}: cannot be used ({error}); choose another --workdir, or the folder "
                "of a run whose config.json is whole."
            ) from error

    def write(
        self, path: Path, fields: Mapping[str, Any], advice: str = "", indent: int | None = None
    ) -> None:
        """Writes a JSON file of this run, with a checksum and whose it is; `read` is the inverse.

        Raises:
          UserError: it cannot be written; `advice` says what to do.
        """
        owner = {RUN: self.run} if self.run else {}
        files.write_text(path, files.sealed({**fields, **owner}, indent) + "\n", advice)

    def read(self, path: Path) -> dict[str, Any]:
        """The fields of a JSON file of this run. Older files without a checksum are noted.

        Raises:
          OSError: there is no such file.
          ValueError: it is damaged, or another run wrote it.
        """
        fields = _unsealed(path)
        if fields.pop(RUN, self.run) != self.run:
            raise ValueError("it belongs to another run")
        return fields

    def read_config(self) -> ConfigDict:
        """The complete config of a run that must exist; new fields have today's defaults.

        Raises:
          UserError: there is no config.json, or it cannot be read.
        """
        saved = self.saved_config()
        if saved is None:
            raise not_a_run(self.config, "there is no such file")
        return base.from_dict(saved)

    def begun_config(self) -> dict[str, Any] | None:
        """`saved_config` of a run that has begun; None where nothing binds."""
        return self.saved_config() if self._has_begun() else None

    def claim(self, config: ConfigDict, write: bool = True) -> bool:
        """Writes config.json into a new workdir, or checks that an existing one is this run's.

        A run that ended before its first checkpoint or line of metrics binds nobody.

        Args:
          config: of the run, complete.
          write: False only checks. Who writes holds the lock (`run.checkpoint`).

        Returns:
          whether the run had begun before.

        Raises:
          UserError: the folder cannot be written, or its config differs in a way that matters.
        """
        fields, saved = base.to_dict(config), self.begun_config()
        if saved is None:
            if write:
                self.__dict__["run"] = secrets.token_hex(8)
                self.write(self.config, fields, "choose another --workdir", indent=2)
            return False
        # A field that is newer than the run had the value that is its default today.
        then = base.flatten(base.to_dict(base.base())) | base.flatten(saved)
        now = base.flatten(fields)
        differing = [
            f"{key}: {then.get(key)!r} there, {now.get(key)!r} now"
            for key in sorted(now | then)
            if now.get(key) != then.get(key) and not is_free(key)
        ]
        if differing:
            raise UserError(
                f"--workdir={self} holds a run with another config ({'; '.join(differing)}). "
                "Use another --workdir, or the same config to continue."
            )
        return True

    def _has_begun(self) -> bool:
        has_line = self.metrics.exists() and self.metrics.stat().st_size > 0
        return has_line or bool(self.committed_steps())

    def committed_steps(self) -> list[int]:
        """Steps of the checkpoints, ascending; none without the folder."""
        if not self.checkpoints.is_dir():
            return []
        numbered = [path for path in self.checkpoints.iterdir() if path.name.isdecimal()]
        names = [path.name for path in numbered if whole_folders.is_whole(path)]
        return sorted(int(name) for name in names if str(int(name)) == name)

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Writes what the run knows of its data.

        Raises:
          UserError: it cannot be written.
        """
        advice = "free space or make the folder writable, then run the same command again"
        self.write(self.facts, facts, advice)

    def read_facts(self) -> dict[str, Any]:
        """The inverse of `write_facts`.

        Raises:
          UserError: there is no such file, or it is damaged.
        """
        try:
            return self.read(self.facts)
        except (OSError, ValueError) as error:
            raise not_a_run(self.facts, first_line(error)) from error


def digest(config: ConfigDict) -> str:
    """Twelve hex digits that name what a run is: the fields on which its numbers depend.

    Fields with their default value do not count, so that a new field renames no run.
    """
    default = base.flatten(base.to_dict(base.base()))
    fields = base.flatten(base.to_dict(config))
    chosen = {k: v for k, v in fields.items() if v != default[k] and not is_free(k)}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]


def _unsealed(path):
    fields, had_checksum = files.unsealed(path.read_text(encoding="utf-8"))
    if not had_checksum:
        _note_missing_checksum(path)
    return fields


@functools.cache
def _note_missing_checksum(path):
    LOG.info("%s has no checksum, as in runs of older code: damage to it would not be seen.", path)


def not_a_run(path: Path, reason: str) -> UserError:
    """What is said of a file that every workdir has and this one has not, or not whole."""
    return UserError(
        f"{path}: cannot be read ({reason}); expected --workdir to be the folder of a run that "
        "`python main.py --config=… --workdir=…` has started."
    )


def is_free(key: str) -> bool:
    """Whether a run may be continued with another value of a field."""
    return any(key == free or key.startswith(free + ".") for free in FREE_FIELDS)
