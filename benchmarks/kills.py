"""SIGKILL at random moments of a run, then the same command, until the run is finished.

`python benchmarks/faults.py --kills=50` kills 50 times on digits and 50 on a streamed folder.
"""

import json
import random
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from benchmarks.forks import apart
from benchmarks.runs import Folder, Run, differences, last_step
from run import files, logs
from run.whole_folders import DELETING, UNFINISHED
from run.workdir import Workdir

PHASES = (
    "before the first step",
    "while training",
    "inside a save",
    "while deleting",
    "in the final plot",
    "after the last step",
)
# When to kill, and how often each is chosen.
MOMENTS = {"life": 2, "training": 2, "saving": 2, "deleting": 3, "plot": 2}
# Digits and the smallest network, with everything on that a checkpoint can hold.
SMALL = {
    "model.width": 4,
    "batch_size": 32,
    "num_steps": 24,
    "steps_per_dispatch": 1,
    "log_every": 2,
    "eval_every": 12,
    "checkpoint_every": 2,
    "keep_checkpoints": 2,
    "data.validation_size": 98,
    "optim.ema_decay": 0.9,
    "eval.batch_size": 128,
    "tensorboard": False,
}
# The same on image files that are read while it trains, one of them damaged.
STREAMED = SMALL | {
    "batch_size": 8,
    "augment.kind": "random_resized_crop",
    "data.resident": False,
    "data.image_size": 8,
    "data.normalization": "per_channel",
    "data.test_split": "val",
    "data.validation_size": 4,
    "data.num_threads": 2,
    "data.on_corrupt": "mask",
    "data.max_corrupt_fraction": 0.5,
    "eval.resize": 9,
    "eval.batch_size": 8,
}


def draw_folder(root: Path) -> Path:
    """An image folder of two classes: 26 images to train on, of which one is damaged, 13 to test.

    Returns:
      `root`; what is there already stays.
    """
    generator = np.random.default_rng(0)
    for split, number in (("train", 26), ("val", 13)):
        for i in range(number):
            path = root / split / ("cat", "dog")[i % 2] / f"{i}.png"
            pixels = generator.integers(0, 255, (10 + i % 3, 12, 3), dtype=np.uint8)
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    (root / "train" / "dog" / "3.png").write_bytes(b"damaged")
    return root


def kill_runs(
    folder: Folder, kills: int, seed: int, options: Mapping[str, Any] = SMALL
) -> dict[str, Any]:
    """Kills and restarts runs until `kills` have been survived; returns the counts.

    The counts so far lie in `<folder>/kills.json`: an experiment that was itself stopped goes on.
    """
    folder = Path(folder)
    saved = folder / "kills.json"
    counts = json.loads(saved.read_text()) if saved.exists() else _measured(folder, options)
    generator = random.Random(f"{seed}-{counts['kills']}")
    with tqdm(total=kills, initial=counts["kills"], unit="kill", mininterval=30) as bar:
        while counts["kills"] < kills or counts["finished runs"] < counts["runs"]:
            counts["runs"] = counts["finished runs"] + 1
            workdir = folder / f"run{counts['finished runs']}"
            if _one_life(workdir, options, generator, counts, kills):
                bar.update()
            else:
                counts["finished runs"] += 1
                found = apart(lambda: differences(workdir, folder / "reference"))  # noqa: B023
                counts["different"] += bool(found)
                if found:
                    print(f"{workdir} differs from the uninterrupted run: {found[:5]}")
            files.write_text(saved, json.dumps(counts))
    return counts


def _measured(folder, options):
    """Counts at zero, with how long a start and a whole run take once compiled."""
    for name in ("reference", "timed"):
        run = Run(folder / name, options, forked=True)
        run.wait_until(lambda: _lines(Workdir(run.workdir)))  # noqa: B023
        startup = time.monotonic() - run.started
        run.finish()
    life = time.monotonic() - run.started
    names = ("kills", *PHASES, "runs", "finished runs", "lost", "unreadable", "different")
    return dict.fromkeys(names, 0) | {"startup seconds": startup, "seconds of a run": life}


def _one_life(workdir, options, generator, counts, kills):
    """Starts a run and kills it (True), unless it ends before (False)."""
    folder = Workdir(workdir)
    before, steps_before = folder.committed_steps(), last_step(workdir)
    deleting = _under_way(folder, "deleting")
    run = Run(workdir, options, forked=True)
    startup, life = counts["startup seconds"], counts["seconds of a run"]
    if counts["kills"] < kills and _wait_for_moment(run, generator, startup, life):
        run.kill()
    killed = run.wait() == -signal.SIGKILL
    if not killed:
        run.finish()
    said = run.said()
    continued = [int(line.split()[-1][:-1]) for line in said.splitlines() if "Continuing" in line]
    # A restart that has got so far must have gone on from the newest checkpoint there was.
    trained = any(line.startswith("step ") for line in said.splitlines())
    counts["lost"] += trained and continued != before[-1:]
    counts["unreadable"] += "damaged" in said
    if killed:
        counts["kills"] += 1
        deleting = _under_way(folder, "deleting") - deleting
        counts[_phase(folder, before, steps_before, deleting)] += 1
    return killed


def _wait_for_moment(run, generator, startup, life):
    """Waits for a random moment, as one of `MOMENTS` says.

    Returns:
      whether the run still lives then.
    """
    (kind,) = generator.choices(list(MOMENTS), list(MOMENTS.values()))
    folder = Workdir(run.workdir)
    if kind == "life":
        return run.lives(generator.uniform(0, life))
    if kind == "training":
        lines = _lines(folder)
        run.wait_until(lambda: _lines(folder) > lines)
        return run.lives(generator.uniform(0, life - startup))
    begun, skipped = _under_way(folder, kind), generator.randrange(6) if kind != "plot" else 0
    seen: set[Path] = set()

    def happens():
        seen.update(_under_way(folder, kind) - begun)
        return len(seen) > skipped

    run.wait_until(happens)
    return run.lives(0 if kind == "deleting" else generator.uniform(0, 0.1))


def _lines(folder):
    """How much there is in metrics.jsonl; read so often that it must cost nothing."""
    return folder.metrics.stat().st_size if folder.metrics.exists() else 0


def _under_way(folder, kind):
    """What is being saved, deleted or drawn, or was when a run was killed."""
    where, pattern = {
        "saving": (folder.checkpoints, f"*{UNFINISHED}"),
        "deleting": (folder.checkpoints, f"{DELETING}*"),
        "plot": (folder.path, f"{folder.curves.name}.*"),
    }[kind]
    return set(where.glob(pattern))


def _phase(folder, committed_before, steps_before, deleting):
    before_the_first_step, training, saving, while_deleting, plot, after = PHASES
    if logs.final_line(folder.path):
        return after if folder.curves.exists() else plot
    if deleting:
        return while_deleting
    if _under_way(folder, "saving"):
        return saving
    if folder.committed_steps() == committed_before and last_step(folder.path) == steps_before:
        return before_the_first_step
    return training
