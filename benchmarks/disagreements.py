"""Two processes of one run that were started differently: both must end with status 1 and say it.

`python benchmarks/faults.py --disagreements`.
"""

import shutil
import socket
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.changed_data import draw, draw_classes
from benchmarks.runs import ROOT, Folder, Options, Run

LIMIT_S = 900
SMALL = {"model.width": 4, "batch_size": 8, "num_steps": 10, "tensorboard": False}
IMAGES = {
    "dataset": "folder:~/images",
    "data.resident": False,
    "data.image_size": 8,
    "data.normalization": "imagenet",
    "data.test_split": "val",
}


class Disagreement(NamedTuple):
    """How the two processes are started.

    Attributes:
      named: what both must say.
      options: further fields of the config of each.
      flags: further flags of each.
      workdirs: name of the workdir of each.
    """

    named: str
    options: tuple[Options, Options] = ({}, {})
    flags: tuple[str, str] = ("", "")
    workdirs: tuple[str, str] = ("run", "run")


def _fields(name: str, one: Any, other: Any) -> Disagreement:
    return Disagreement(f"config.{name}: ", ({name: one}, {name: other}))


CODE, DATA = "code", "images on disk"
KINDS = {
    "seed": _fields("seed", 0, 1),
    "batch size": _fields("batch_size", 8, 16),
    "learning rate": _fields("optim.learning_rate", 0.1, 0.01),
    "network": _fields("model.width", 4, 8),
    "length": _fields("num_steps", 10, 20),
    "held-out images": _fields("data.validation_size", 0, 98),
    DATA: Disagreement("splits.train.", (IMAGES, IMAGES)),
    "--num_processes": Disagreement("num_processes", flags=("", "--num_processes=3")),
    "--mode": Disagreement("--mode: ", flags=("", "--mode=evaluate")),
    "--workdir": Disagreement("--workdir: ", workdirs=("one", "other")),
    CODE: Disagreement("code: "),
}


def disagree(folder: Folder) -> dict[str, Any]:
    """Starts a pair of processes for each of `KINDS`; returns the counts."""
    folder = Path(folder)
    counts = dict.fromkeys(("kinds", "both ended with 1 and said it", "silent"), 0)
    homes = [folder / "home0", folder / "home1"]
    for home in homes:
        draw_classes(home / "images")
    draw(homes[1] / "images" / "train" / "cat" / "9.png")
    left_out = shutil.ignore_patterns(".*", "results", "docs", "runs", "tests", "notebooks")
    other_code = shutil.copytree(ROOT, folder / "other code", ignore=left_out)
    with open(other_code / "training" / "step.py", "a") as file:
        file.write("# changed\n")
    for name, kind in KINDS.items():
        runs = _pair(folder / name, kind, homes, other_code if name == CODE else None)
        statuses = [run.wait(LIMIT_S) for run in runs]
        said = runs[0].said() + runs[1].said()
        good = statuses == [1, 1] and kind.named in said
        counts["kinds"] += 1
        counts["both ended with 1 and said it"] += good
        if not good:
            counts["silent"] += 1
            print(f"{name}: statuses {statuses}\n{said}", flush=True)
    return counts


def _pair(folder, kind, homes, other_code):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = (f"--coordinator_address=localhost:{port}", "--num_processes=2")
    return [
        Run(
            folder / kind.workdirs[i],
            SMALL | kind.options[i],
            *flags,
            f"--process_id={i}",
            *filter(None, [kind.flags[i]]),
            env={"HOME": str(homes[i].absolute())},
            forked=not other_code,
            root=other_code if other_code and i else ROOT,
        )
        for i in (0, 1)
    ]
