"""Runs of `python …` in forks of one process that has imported JAX already: a start in a second.

The parent must never use JAX itself, because a fork has none of the threads of its backend.
"""

import importlib
import json
import os
import runpy
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

PACKAGES = (
    "cv2",
    "data.embedded",
    "data.resident",
    "data.streamed",
    "evaluate",
    "main",
    "matplotlib.pyplot",
    "orbax.checkpoint",
    "simplejpeg",
    "sklearn.datasets",
    "tensorboardX",
    "train",
)
POLL_S = 0.01


class Fork:
    """A fork that runs `python …`; as much of `subprocess.Popen` as `runs.Run` needs.

    Args:
      words: of the command line, after `python`: a file, or `-m` and a module, and arguments.
      environment: what JAX reads when it starts its backend.
      output: takes what is printed.
    """

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], output: BinaryIO):
        for package in PACKAGES:
            importlib.import_module(package)
        self.returncode: int | None = None
        sys.stdout.flush()  # or the fork would print it again
        self.pid = os.fork()
        if self.pid == 0:
            os.environ.update(environment)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for stream in (1, 2):
                os.dup2(output.fileno(), stream)
            _end_with(lambda: _python(words))

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Waits for the exit status.

        Raises:
          TimeoutError: it still runs after so many seconds.
        """
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"process {self.pid} still runs after {timeout} s")
            time.sleep(POLL_S)
        return status

    def send_signal(self, signum: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, signum)


def apart(make: Callable[[], Any]) -> Any:
    """What `make()` returns (as JSON), computed in a fork.

    Raises:
      ChildProcessError: the fork failed; what it raised has been printed.
    """
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        _end_with(lambda: os.write(writable, json.dumps(make()).encode()) and 0)
    os.close(writable)
    with open(readable, "rb") as pipe:
        answer = pipe.read()
    if os.waitpid(child, 0)[1]:
        raise ChildProcessError("a fork failed; what it raised stands above")
    return json.loads(answer)


def _python(words):
    import jax

    jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    module = words[0] == "-m"
    sys.argv = list(words[module:])
    sys.path[0] = os.getcwd()
    try:
        if module:
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[0], run_name="__main__")
    finally:
        sys.stdout.flush()
    return 0


def _end_with(act):
    """Ends this process with the status that `act()` returns or exits with."""
    status = 1
    try:
        status = act()
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
