"""Runs `python …` commands in forks of one process, which has imported the slow packages already.

This file is both sides: `ForkedCommands` starts it as a program, which reads lines of JSON,
`[file for the output, words after python]`, and answers each with the exit status.
"""

import importlib
import json
import os
import runpy
import shlex
import signal
import subprocess
import sys
from pathlib import Path

PACKAGES = (
    "flax.linen",
    "matplotlib.pyplot",
    "optax",
    "orbax.checkpoint",
    "sklearn.datasets",
    "tensorflow_datasets",
)
LIMIT_S = 600


class ForkedCommands:
    """A context whose value runs one command after the other.

    Args:
      folder: where commands run.
      environment: variables beside those of this process.
      log: file that takes the output of each command.
    """

    def __init__(self, folder, environment, log):
        self._log = Path(log)
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            cwd=folder,
            env=os.environ | environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()

    def __call__(self, *words):
        """Runs `python words…`, which must end with status 0; returns the output."""
        print(json.dumps([str(self._log), words]), file=self._server.stdin, flush=True)
        status = self._server.stdout.readline().strip()
        output = self._log.read_text()
        assert status == "0", f"python {shlex.join(words)}: status {status}\n{output}"
        return output


def serve():
    """Answers until standard input ends."""
    for name in PACKAGES:
        importlib.import_module(name)
    for line in sys.stdin:
        log, words = json.loads(line)
        child = os.fork()  # no JAX backend runs here, hence none of its threads
        if not child:
            return _run(log, words)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    return 0


def _run(log, words):
    signal.alarm(LIMIT_S)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.path[0] = os.getcwd()
    module = words[0] == "-m"
    sys.argv = words[module:]
    if module:
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(serve())
