"""Running a program of `paper` to its end."""

import json
from pathlib import Path

from run import command


def published(module, argv):
    """Runs a command to its end; what it has written as JSON."""
    assert command.run(module.main, argv) == 0
    name = module.__name__.rpartition(".")[2]
    out = next(option for option in argv if option.startswith("--out=")).removeprefix("--out=")
    return json.loads(Path(out, f"{name}.json").read_text())
