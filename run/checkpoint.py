"""Checkpoints that are either whole or not there.

A step's folder holds the train state (`run.packing`) and, committed with it in one atomic rename,
its step, its run and the CRC-32 of every array. A checkpoint counts as good only when all of that
has been read back and matches; an older one is deleted only after a newer one has passed that test.
Of several processes the first alone touches the folder; what it reads goes to the others over the
network. Orbax writes and reads on this machine; a bucket gets and gives copies.
"""

import contextlib
import json
import logging
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from errors import UserError, first_line
from run import files, packing, processes, whole_folders
from run.mesh import to_host
from run.workdir import Workdir

LOG = logging.getLogger("residual")
VALIDATION_FILE = "validation_errors.json"
FULL = ("RESOURCE_EXHAUSTED", "No space left", "Disk quota exceeded")  # what a full disk says


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves by dotted path, e.g. `params.stage1.block1.conv1.kernel`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def fill(template: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """A tree like `template` with the arrays of a checkpoint; ignores those it does not ask for.

    Raises:
      ValueError: naming what is missing or has another shape.
    """
    wanted = flatten(template)
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise ValueError(f"{len(missing)} arrays are missing, first {missing[0]}")
    for name, leaf in wanted.items():
        if arrays[name].shape != leaf.shape:
            raise ValueError(f"{name} has shape {arrays[name].shape}, expected {leaf.shape}")
    return jax.tree.unflatten(jax.tree.structure(template), [arrays[name] for name in wanted])


def checksums(tree: Any) -> dict[str, int]:
    """CRC-32 of every array of a tree, by dotted path."""
    return {name: packing.checksum(np.asarray(leaf)) for name, leaf in flatten(tree).items()}


class Checkpoints:
    """The checkpoints of one workdir. A writer holds the folder's lock until `close`.

    Every process of a run makes the same calls.

    Args:
      workdir: folder of the run.
      keep: newest checkpoints kept; the one with the least validation error is kept besides.
      read_only: create, lock and change nothing.

    Raises:
      UserError: the folder cannot be written, or another run is writing to it.
    """

    def __init__(self, workdir: str | Path, keep: int = 3, read_only: bool = False):
        self._keep = keep
        self._workdir = Workdir(workdir)
        self._directory = self._workdir.checkpoints.absolute()
        self._verified: set[int] = set()
        self._written: int | None = None  # the step of the last save, until it has been read back
        self._lock = contextlib.ExitStack()
        self._saves_in = self._directory
        self._uploaded: Future | None = None  # into a bucket
        if not read_only:
            processes.on_first(self._take_lock)
        if jax.process_index() > 0:
            return
        if files.is_remote(self._directory) and not read_only:
            self._saves_in = Path(self._lock.enter_context(tempfile.TemporaryDirectory()))
            self._uploads = self._lock.enter_context(ThreadPoolExecutor(1))
        self._hook = sys.unraisablehook
        sys.unraisablehook = self._without_closed_loops
        logging.getLogger("absl").addFilter(_is_not_raised_too)
        alone = ocp.options.MultiprocessingOptions(
            primary_host=0, active_processes={0}, barrier_sync_key_prefix="checkpoints"
        )
        handler = ocp.CompositeCheckpointHandler(
            "state", "facts", composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
        )
        self._orbax = ocp.AsyncCheckpointer(handler, multiprocessing_options=alone)

    def steps(self) -> list[int]:
        """Committed steps, ascending; whether they are good is known only after reading them."""
        return self._workdir.committed_steps()

    def save(self, step: int, tree: Any, validation_error: float | None = None) -> None:
        """Starts writing `tree` (any tree of arrays) as `step` and returns; see `wait`.

        The previous save is completed and verified first, then what the policy no longer keeps is
        deleted. Saving a step twice only records its validation error.
        """
        self.wait()
        if jax.process_index() > 0:
            return
        with self._storage_errors():
            if validation_error is not None:
                self._record(step, validation_error)
            if step in self.steps():
                return
            packed, table = packing.pack(flatten(to_host(tree)))
            facts = {"step": step, "run": self._workdir.run, "arrays": table}
            self._written = step
            self._orbax.save(
                self._saves_in / str(step),
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(packed),
                    facts=ocp.args.JsonSave(json.loads(files.sealed(facts))),
                ),
            )
            if self._saves_in != self._directory:
                self._uploaded = self._uploads.submit(self._upload, step)

    def _upload(self, step):
        self._orbax.wait_until_finished()
        whole_folders.upload(self._saves_in / str(step), self._directory / str(step))

    def wait(self) -> None:
        """Blocks until the last save is committed, reads it back and deletes what is too old.

        Raises:
          UserError: when it could not be written (full disk, no permission).
        """
        if self._written is None:
            return
        step, self._written = self._written, None
        with self._storage_errors():
            self._uploaded.result() if self._uploaded else self._orbax.wait_until_finished()
        try:
            self._read(step)
        except Exception as error:  # damage shows as almost any exception
            LOG.warning(
                "Checkpoint %d does not read back (%s); older ones are kept.",
                step,
                first_line(error),
            )
            return
        self._verified.add(step)
        with self._storage_errors():
            self._delete_old(step)

    def restore(self, template: Any, which: str = "last") -> tuple[int, Any, float | None] | None:
        """Reads the newest good checkpoint, or the best one on validation data.

        Damaged ones are passed over with a warning that names them; `set_aside` moves them.

        Args:
          template: tree of arrays or `jax.ShapeDtypeStruct` with the saved structure, or a part.
          which: 'last' or 'best'.

        Returns:
          `(step, tree of NumPy arrays, validation error or None)`, or None when nothing was saved.

        Raises:
          UserError: checkpoints exist but none is good, or it is that of another network.
        """
        arrays, facts = processes.from_first(lambda: self.read(which))
        if not arrays:
            return None
        step, error = facts
        try:
            return step, fill(template, arrays), error
        except ValueError as problem:
            raise UserError(
                f"{self._directory / str(step)}: not a checkpoint of this network: {problem}. "
                "Use the config it was trained with, or another --workdir."
            ) from problem

    def set_aside(self, newer_than: int) -> None:
        """Renames damaged checkpoints newer than a step, so that the step can be saved again."""
        if jax.process_index() > 0:
            return
        with self._storage_errors():
            for step in [s for s in self.steps() if s > newer_than]:
                number, target = 1, self._directory / f"damaged-{step}"
                while target.exists():
                    number += 1
                    target = self._directory / f"damaged-{step}-{number}"
                (self._directory / str(step)).rename(target)
                LOG.warning("Moved the damaged checkpoint of step %d to %s.", step, target)

    def last_good(self) -> int | None:
        """The newest step known to be good, once a save that is under way has ended."""
        with contextlib.suppress(UserError):
            self.wait()
        return max(self._verified, default=None)

    def close(self) -> None:
        """Completes and verifies the last save; releases the lock."""
        if jax.process_index() > 0:
            return
        try:
            self.wait()
        finally:
            with contextlib.suppress(Exception):  # a failed save has been reported by `wait`
                self._orbax.close()
            sys.unraisablehook = self._hook
            logging.getLogger("absl").removeFilter(_is_not_raised_too)
            self._lock.close()

    def read(
        self, which: str = "last"
    ) -> tuple[dict[str, np.ndarray], tuple[int, float | None] | None]:
        """As `restore`, without a template and on one process.

        Returns:
          `(arrays by dotted name, (step, validation error or None))`; `({}, None)` when nothing
          was saved.
        """
        steps, errors = self.steps(), self._validation_errors()
        if not steps:
            return {}, None
        if which == "best":
            steps = [s for s in self._by_validation_error() if s in steps][::-1]
        problems = []
        for step in steps[::-1]:
            try:
                arrays = self._read(step)
            except UserError:  # the bucket cannot be reached, which is no damage
                raise
            except Exception as error:  # damage shows as almost any exception
                problems.append(f"{self._directory / str(step)}: {first_line(error)}")
                LOG.warning("Checkpoint %s is damaged and passed over.", problems[-1])
                continue
            if problems:
                LOG.warning("Using the checkpoint of step %d instead.", step)
            self._verified.add(step)
            return arrays, (step, errors.get(str(step)))
        raise UserError(
            f"no good checkpoint: {'; '.join(problems) or 'none has a validation error'}. "
            f"To train again from the start, use another --workdir or remove {self._directory}."
        )

    def _without_closed_loops(self, unraisable):
        """Passes on exceptions that nobody can catch, but for those that follow a damaged file.

        Orbax gives up a restore at the first error; what tensorstore's threads read after that
        finds the event loop closed, and each would print a traceback.
        """
        if str(unraisable.exc_value) != "Event loop is closed":
            self._hook(unraisable)

    def _read(self, step):
        """The arrays of a checkpoint by name; raises unless step, run and checksums match."""
        with whole_folders.at_hand(self._directory / str(step)) as folder:
            arrays, facts = self._arrays(folder)
        if facts.get("run") != self._workdir.run:
            raise ValueError("it belongs to another run")
        if (found := facts.get("step", arrays.get("step", step))) != step:
            raise ValueError(f"it is the checkpoint of step {found}")
        return arrays

    def _arrays(self, folder):
        """The arrays in a folder by name, which match their checksums, and the facts."""
        facts = self._orbax.restore(folder, args=ocp.args.Composite(facts=ocp.args.JsonRestore()))
        facts, had_checksum = files.unsealed(json.dumps(facts["facts"]))
        table = facts["arrays"] if had_checksum else None  # older code packed and sealed nothing
        template = packing.templates(table) if table else None
        restored = ocp.args.Composite(state=ocp.args.StandardRestore(template))
        state = self._orbax.restore(folder, args=restored)["state"]
        arrays = {name: np.asarray(array) for name, array in state.items()}
        if table:
            arrays = packing.unpack(arrays, table)
        checksums = {n: crc for n, (*_, crc) in table.items()} if table else facts["digests"]
        packing.verify(arrays, checksums)
        return arrays, facts

    def _validation_errors(self):
        """Validation error by step (a string, as JSON has it)."""
        path = self._directory / VALIDATION_FILE
        try:
            errors = self._workdir.read(path)
            return {str(int(step)): float(error) for step, error in errors.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError) as error:
            LOG.warning("%s: %s; so no checkpoint counts as the best.", path, error)
            return {}

    def _record(self, step, validation_error):
        errors = self._validation_errors() | {str(step): validation_error}
        self._workdir.write(self._directory / VALIDATION_FILE, errors)

    def _by_validation_error(self):
        """Steps with a validation error, the best first and of equals the later."""
        errors = self._validation_errors()
        return sorted(map(int, errors), key=lambda step: (errors[str(step)], -step))

    def _delete_old(self, newest):
        """Deletes what the policy does not keep, now that `newest` has been read back."""
        steps = [step for step in self.steps() if step <= newest]
        best = [step for step in self._by_validation_error() if step in steps][:1]
        for step in set(steps[: -self._keep]) - set(best):
            whole_folders.remove(self._directory / str(step))

    @contextlib.contextmanager
    def _storage_errors(self):
        """Turns whatever orbax or tensorstore raise while writing into a UserError."""
        try:
            yield
        except Exception as error:
            last = f"step {max(self._verified)}" if self._verified else "none of this process"
            full = any(sign in str(error) for sign in FULL)
            reason = "the disk is full" if full else first_line(error)
            raise UserError(
                f"{self._directory}: the checkpoint could not be written ({reason}); "
                f"the last good one is {last}. Free space or choose another --workdir, then run "
                "the same command again."
            ) from error

    def _take_lock(self):
        busy = (
            f"{self._directory}: another process is training in this workdir; wait for it to end "
            "or stop it, or use another --workdir."
        )
        with files.explained(self._directory, "choose another --workdir"):
            self._lock.enter_context(files.lock(self._workdir.lock, busy))
            whole_folders.remove_leftovers(self._directory)


def _is_not_raised_too(record: logging.LogRecord) -> bool:
    """False for a traceback that orbax logs: each of its threads does so, and `wait` raises it."""
    return not (record.exc_info and "orbax" in record.pathname)
