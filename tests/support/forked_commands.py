"""Runs `python …` commands in forks of one process, which has imported the slow packages already.

This file is both sides: `ForkedCommands` starts it as a program, which reads lines of JSON,
`[file for the output, words after python]`, and answers each with the exit status.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from benchmarks.forks import Fork

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
            [sys.executable, "-m", __name__],
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
    import tensorflow_datasets  # noqa: F401 (what a fork then has)

    for line in sys.stdin:
        log, words = json.loads(line)
        with open(log, "wb") as output:
            fork = Fork(words, {}, output)
        try:
            print(fork.wait(LIMIT_S), flush=True)
        except TimeoutError:
            fork.send_signal(signal.SIGKILL)
            print(fork.wait(LIMIT_S), flush=True)


if __name__ == "__main__":
    serve()
