"""Training runs as processes of their own, and whether two have left the same."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from benchmarks.forks import Fork
from errors import UserError
from run import files, logs
from run.checkpoint import Checkpoints
from run.workdir import Workdir

Folder = str | Path
Options = Mapping[str, Any]

ROOT = Path(__file__).resolve().parent.parent
POLL_S = 0.002


class Run:
    """One training process of `main.py` on CPU; its messages go to `<workdir>.log`.

    Args:
      workdir: folder of the run.
      options: fields of its config.
      flags: further words of the command.
      devices: virtual ones.
      env: variables beside those of this process.
      forked: a fork of this process instead of a new Python (`benchmarks.forks`).
      root: where the code lies, unless forked.
    """

    def __init__(
        self,
        workdir: Folder,
        options: Options,
        *flags: str,
        devices: int = 1,
        env: Mapping[str, str] = MappingProxyType({}),
        forked: bool = False,
        root: Path = ROOT,
    ):
        self.workdir = Path(workdir)
        self.started = time.monotonic()
        self.log = Path(f"{workdir}.log")
        self.offset = self.log.stat().st_size if self.log.exists() else 0
        words = ["main.py", "--config=configs/digits.py:resnet8,paper"]
        words += [f"--config.{name}={value}" for name, value in options.items()]
        words += [f"--workdir={workdir}", *flags]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", **env}
        # The caller's other flags stay, so that the compiler rounds alike; of two, the last counts.
        count = f"--xla_force_host_platform_device_count={devices}"
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as output:
            self.process: Fork | subprocess.Popen[bytes] = (
                Fork(words, environment, output)
                if forked
                else subprocess.Popen(
                    [sys.executable, *words],
                    cwd=root,
                    env=environment,
                    stdout=output,
                    stderr=output,
                )
            )

    def said(self) -> str:
        """What this process has printed."""
        return self.log.read_bytes()[self.offset :].decode(errors="replace")

    def wait(self, timeout: float = 3600) -> int:
        """Waits for the end; returns the exit status."""
        return self.process.wait(timeout)

    def finish(self) -> None:
        """Waits for the end.

        Raises:
          UserError: the status is not 0.
        """
        if status := self.wait():
            raise UserError(f"{self.workdir}: status {status}\n{self.said()}")

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Sends a signal."""
        self.process.send_signal(signum)

    def wait_until(self, condition: Callable[[], Any], timeout: float = 3600) -> bool:
        """Polls until `condition()`; False when the process ended (or time ran out) before."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None and time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(POLL_S)
        return False

    def lives(self, seconds: float) -> bool:
        """Waits so long; whether the process has not ended until then."""
        self.wait_until(lambda: False, seconds)
        return self.process.poll() is None


def pair(workdir: Folder, options: Options, **kwargs: Any) -> list[Run]:
    """Two processes of one device each."""
    return group(workdir, options, 2, **kwargs)


def group(workdir: Folder, options: Options, number: int, *flags: str, **kwargs: Any) -> list[Run]:
    """The processes of one run, joined."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags += (f"--coordinator_address=localhost:{port}", f"--num_processes={number}")
    ids = [f"--process_id={i}" for i in range(number)]
    return [Run(workdir, options, *flags, process_id, **kwargs) for process_id in ids]


def as_killed_after(step: int, workdir: Path, copy: Path) -> Path:
    """Copies a finished run, without what it wrote after `step`; returns the copy."""
    folder = Workdir(shutil.copytree(workdir, copy))
    for later in folder.committed_steps():
        if later > step:
            shutil.rmtree(folder.checkpoints / str(later))
    for path in (folder.metrics, folder.timing):
        kept = [line for line in logs.read_lines(path) if line["step"] <= step]
        path.write_text("".join(files.sealed(line) + "\n" for line in kept))
    return copy


def last_step(workdir: Folder) -> int:
    """The last step in metrics.jsonl, or 0."""
    lines = logs.read_lines(Workdir(workdir).metrics)
    return lines[-1]["step"] if lines else 0


def last_state(workdir: Folder) -> tuple[int, dict[str, np.ndarray]]:
    """`(step, arrays by name)` of the newest checkpoint: parameters, BN, optimiser, EMA."""
    arrays, (step, _) = Checkpoints(workdir, read_only=True).read()
    return step, arrays


def differences(workdir: Folder, reference: Folder) -> list[str]:
    """What differs between two finished runs, as a list of names; empty when all bits are equal."""
    ours, theirs = (Workdir(folder).metrics for folder in (workdir, reference))
    found = [] if ours.read_bytes() == theirs.read_bytes() else [ours.name]
    (step_a, a), (step_b, b) = last_state(workdir), last_state(reference)
    if step_a != step_b or set(a) != set(b):
        return [*found, f"step {step_a} against {step_b}"]
    return found + [name for name in a if not _equal_bits(a[name], b[name])]


def _equal_bits(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
