"""One flipped bit after the other, over every file of a workdir: what evaluation and resuming say.

`python benchmarks/faults.py --flips=1000`. Each flip gets a copy of a run that was stopped before
its end, in which the list of runs is made, its last test is read, it is tested anew, and
`train.train` ends it. Everything in the copy is read anew; only the data and the traced programs,
which do not come from it, are made once.
"""

import contextlib
import functools
import hashlib
import json
import logging
import random
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

import evaluate
import train
from benchmarks.runs import Folder, as_killed_after, differences
from configs import base, digits
from errors import UserError, first_line
from run import files, overview
from run.workdir import Workdir
from testing import opened_run

# What a flip may come to, the worst first. Only the first two are failures.
SILENT, TRACEBACK = "silent", "tracebacks"
OUTCOMES = (SILENT, TRACEBACK, "refused", "passed over with a warning", "harmless")
STEPS, STOPPED = 10, 8
OPTIONS = {
    "model.width": 4,
    "batch_size": 8,
    "num_steps": STEPS,
    "steps_per_dispatch": 1,
    "log_every": 2,
    "eval_every": 4,
    "checkpoint_every": 2,
    "data.train_split": "train[:96]",
    "data.test_split": "test[:64]",
    "data.validation_size": 32,
    "optim.ema_decay": 0.9,
    "eval.batch_size": 64,
    "eval.precise_bn": True,
    "eval.precise_bn_batches": 1,
    "eval.store_precise_bn": True,
}


def flip_bits(folder: Folder, number: int, seed: int) -> dict[str, Any]:
    """Flips `number` bits, as many in each file; returns the counts by outcome.

    The counts so far lie in `<folder>/flips.json`: an experiment that was itself stopped goes on.
    """
    folder, config = Path(folder), digits.get_config("resnet8,paper")
    config.update_from_flattened_dict(OPTIONS)
    saved, whole, half = folder / "flips.json", folder / "whole", folder / "half"
    copy = folder / "flipped"  # always here: a result names its workdir
    with _made_once():
        if not saved.exists():
            shutil.rmtree(folder, ignore_errors=True)
            train.train(config, str(whole))
            as_killed_after(STOPPED, whole, copy)
            evaluate.run(Workdir(copy).read_config(), str(copy))
            shutil.copytree(copy, half)
        names = sorted(
            str(path.relative_to(half))
            for path in half.rglob("*")
            if path.is_file() and path.stat().st_size
        )
        counts: dict[str, Any] = {"flips": 0, "files": len(names), **dict.fromkeys(OUTCOMES, 0)}
        counts["of each file"] = {name: {} for name in names}
        counts = json.loads(saved.read_text()) if saved.exists() else counts
        unharmed = _Observed(config, _copied(half, copy), whole)
        assert unharmed.outcome(unharmed) == (OUTCOMES[-1], "")
        with tqdm(total=number, initial=counts["flips"], unit="flip", mininterval=30) as bar:
            while counts["flips"] < number:
                where = counts["flips"]
                name = names[where % len(names)]
                place = _flip(_copied(half, copy) / name, random.Random(f"{seed}-{where}"))
                found = _Observed(config, copy, whole).outcome(unharmed)
                if found[0] in (SILENT, TRACEBACK):
                    print(f"{found[0]}: {name}, {place}: {found[1]}", flush=True)
                of_file = counts["of each file"][name]
                of_file[found[0]] = of_file.get(found[0], 0) + 1
                counts[found[0]] += 1
                counts["flips"] += 1
                files.write_text(saved, json.dumps(counts))
                bar.update()
    return counts


def _copied(source, target):
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target))


def _flip(path, generator):
    """Flips one bit of a file; returns a description of the place."""
    content = bytearray(path.read_bytes())
    byte, bit = generator.randrange(len(content)), generator.randrange(8)
    content[byte] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {byte}"


class _Observed:
    """What the public functions do with a workdir, in which the last one ends the run.

    Attributes:
      parts: by name of the function, `(what it gave or why it refused, whether it warned)`.
    """

    def __init__(self, config, workdir, whole):
        self.parts = {}
        self._note("runs", lambda: _listed(workdir))
        self._note("reported", lambda: _reported(workdir))
        self._note("evaluation", lambda: _tested(workdir))
        self._note("resumed", lambda: _resumed(config, workdir, whole))

    def _note(self, name, act):
        warnings = []
        with _watched(warnings):
            try:
                self.parts[name] = (act(), bool(warnings))
            except UserError as error:
                self.parts[name] = (error, True)
            except Exception as error:  # whatever it is, it is counted
                traceback.print_exc()
                self.parts[name] = (RuntimeError(first_line(error)), False)

    def outcome(self, unharmed):
        """One of `OUTCOMES`, and what differs."""
        found = {}
        for name, (value, warned) in self.parts.items():
            expected = unharmed.parts[name][0]
            if isinstance(value, RuntimeError):
                found[TRACEBACK] = f"{name}: {value}"
            elif isinstance(value, UserError):
                found["refused"] = str(value)
            elif warned:
                found["passed over with a warning"] = name
            elif value != expected:
                found[SILENT] = f"{name}: {value} instead of {expected}"
        return next(((o, found[o]) for o in OUTCOMES if o in found), ("harmless", ""))


def _listed(workdir):
    """What the list of runs says, but for the age; damage that it names is a warning."""
    (run,), _ = overview.find(workdir)
    for problem in run.problems:
        logging.getLogger("residual").warning(problem)
    return run.cells[:-1], run.fields, run.lines


def _reported(workdir):
    """The last test, as the paper's tables take it from the workdir."""
    folder = Workdir(workdir)
    try:
        return folder.read(folder.evaluation)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder.evaluation}: {error}") from error


def _tested(workdir):
    """The result of a test, but for the date."""
    result = evaluate.run(Workdir(workdir).read_config(), str(workdir))
    return {name: value for name, value in result.items() if name != "date"}


def _resumed(config, workdir, whole):
    train.train(config, str(workdir))
    digest = hashlib.sha256(Workdir(workdir).metrics.read_bytes()).hexdigest()
    return {"differs": differences(workdir, whole), "metrics": digest}


@contextlib.contextmanager
def _watched(warnings: list) -> Iterator[None]:
    """Collects what is logged as a warning."""

    class Collect(logging.Handler):
        def emit(self, record):
            warnings.append(record.getMessage())

    handler, logger = Collect(logging.WARNING), logging.getLogger("residual")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextlib.contextmanager
def _made_once() -> Iterator[None]:
    """While open, what follows from a config alone is made once."""
    places = (
        (train, "open_data"),
        (evaluate, "open_data"),
        (train, "make_run"),
        (train, "abstract_state"),
        (opened_run, "_network"),
    )
    before = [(module, name, getattr(module, name)) for module, name in places]
    for module, name, function in before:
        setattr(module, name, _once(function))
    try:
        yield
    finally:
        for module, name, function in before:
            setattr(module, name, function)


def _once(function: Callable) -> Callable:
    made: dict[str, Any] = {}

    @functools.wraps(function)
    def cached(config, *others):
        key = json.dumps([base.to_dict(config), repr(others)], sort_keys=True)
        if key not in made:
            made[key] = function(config, *others)
        return made[key]

    return cached
