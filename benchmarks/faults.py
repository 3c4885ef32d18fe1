"""What happens to real training runs when processes, peers and machines fail.

    python benchmarks/faults.py --kills=50     # SIGKILL at random moments, then the same command
    python benchmarks/faults.py --determinism  # 200 steps: compiled afresh, and from the cache
    python benchmarks/faults.py --processes    # 2 processes × 1 device against 1 × 2; dead peers
    python benchmarks/faults.py --soak         # memory over 2,000 steps
    python benchmarks/faults.py --disagreements  # two processes that were started differently

Each prints its counts; the status is 1 unless all came out as they must.
"""

import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from benchmarks.disagreements import disagree
from benchmarks.runs import Folder, Run, differences, last_state, last_step, pair
from run import command, files, logs, processes
from run.checkpoint import Checkpoints
from run.whole_folders import UNFINISHED
from run.workdir import Workdir

FAILURES = ("lost", "unreadable", "different", "different from 1 × 2", "cause not named", "silent")
PHASES = ("before the first step", "while training", "inside a save", "after the last step")
# Digits and the smallest network, with everything on that a checkpoint can hold.
SMALL = {
    "model.width": 4,
    "batch_size": 32,
    "num_steps": 100,
    "log_every": 4,
    "eval_every": 20,
    "checkpoint_every": 5,
    "data.validation_size": 98,
    "optim.ema_decay": 0.9,
}


# ---- SIGKILL


def kill_runs(folder: Folder, kills: int, seed: int = 0) -> dict[str, Any]:
    """Kills and restarts runs until `kills` have been survived; returns the counts.

    The counts so far lie in `<folder>/kills.json`: an experiment that was itself stopped goes on.
    """
    folder = Path(folder)
    saved = folder / "kills.json"
    counts = json.loads(saved.read_text()) if saved.exists() else _measured(folder)
    generator = random.Random(f"{seed}-{counts['kills']}")
    with tqdm(total=kills, initial=counts["kills"], unit="kill", mininterval=30) as bar:
        while counts["kills"] < kills or counts["finished runs"] < counts["runs"]:
            counts["runs"] = counts["finished runs"] + 1
            workdir = folder / f"run{counts['finished runs']}"
            if _one_life(workdir, generator, counts, kills):
                bar.update()
            else:
                counts["finished runs"] += 1
                counts["different"] += bool(_report_differences(workdir, folder / "reference"))
            files.write_text(saved, json.dumps(counts))
    return counts


def _measured(folder):
    """Counts at zero, with how long a start and a whole run take once compiled."""
    for name in ("reference", "timed"):
        run = Run(folder / name, SMALL)
        run.wait_until(lambda: last_step(run.workdir))  # noqa: B023
        startup = time.monotonic() - run.started
        run.finish()
    names = ("kills", *PHASES, "runs", "finished runs", "lost", "unreadable", "different")
    life = time.monotonic() - run.started
    return dict.fromkeys(names, 0) | {"startup seconds": startup, "seconds of a run": life}


def _one_life(workdir, generator, counts, kills):
    """Starts a run and kills it (True), unless it ends before (False)."""
    before = Checkpoints(workdir, read_only=True).steps()
    steps_before = last_step(workdir)
    run = Run(workdir, SMALL)
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
        counts[_phase(workdir, before, steps_before)] += 1
    return killed


def _wait_for_moment(run, generator, startup, life):
    """Waits for a random moment: of the whole life, of the training, or inside a save.

    Returns:
      whether the run still lives then.
    """
    kind = generator.choice(("life", "training", "saving"))
    delay = generator.uniform(0, life)
    if kind == "training":
        start = last_step(run.workdir)
        delay = generator.uniform(0, life - startup)
        run.wait_until(lambda: last_step(run.workdir) not in (0, start))
    elif kind == "saving":
        leftover, seen = _unfinished(run.workdir), set()
        skipped = generator.randrange(6)
        delay = generator.uniform(0, 0.1)

        def saving():
            seen.update(_unfinished(run.workdir) - leftover)
            return len(seen) > skipped

        run.wait_until(saving)
    return run.lives(delay)


def _unfinished(workdir):
    """The saves that are under way, or that were when a run was killed."""
    return set(Workdir(workdir).checkpoints.glob(f"*{UNFINISHED}"))


def _phase(workdir, committed_before, steps_before):
    before_the_first_step, training, saving, after_the_last_step = PHASES
    if logs.final_line(workdir):
        return after_the_last_step
    if _unfinished(workdir):
        return saving
    committed = Checkpoints(workdir, read_only=True).steps()
    if committed == committed_before and last_step(workdir) == steps_before:
        return before_the_first_step
    return training


def _report_differences(workdir, reference):
    if found := differences(workdir, reference):
        print(f"{workdir} differs from the uninterrupted run: {', '.join(found[:5])}")
    return found


# ---- Determinism


def determinism(folder: str) -> dict[str, Any]:
    """200 steps twice, the first compiled afresh, the second from the compilation cache."""
    env = {"JAX_COMPILATION_CACHE_DIR": str(Path(folder, "cache"))}
    for name in ("compiled", "cached"):
        Run(Path(folder, name), SMALL | {"num_steps": 200}, env=env).finish()
    step, arrays = last_state(Path(folder, "cached"))
    found = _report_differences(Path(folder, "cached"), Path(folder, "compiled"))
    return {"steps": step, "arrays": len(arrays), "different": len(found)}


# ---- Several processes


def several_processes(folder: str) -> dict[str, Any]:
    """2 × 1 against 1 × 2 devices, a signal to one of two, and peers that die or freeze."""
    options = SMALL | {"num_steps": 40}
    together = Path(folder, "two-processes")
    statuses = [run.wait() for run in pair(together, options)]
    one = Run(Path(folder, "one-process"), options, devices=2)
    one.wait()
    counts: dict[str, Any] = {"statuses of 2 × 1": statuses, "cause not named": 0}
    counts["different from 1 × 2"] = len(_report_differences(together, one.workdir))

    options = SMALL | {"num_steps": 2000}
    runs = pair(Path(folder, "stopped"), options)
    runs[1].wait_until(lambda: last_step(runs[1].workdir) >= 8)
    start = time.monotonic()
    runs[1].kill(signal.SIGTERM)
    counts["statuses after SIGTERM to one"] = [run.wait() for run in runs]
    counts["seconds until both ended"] = round(time.monotonic() - start, 1)

    for name, signum in (("killed", signal.SIGKILL), ("frozen", signal.SIGSTOP)):
        for victim in (0, 1):
            runs = pair(Path(folder, f"{name}{victim}"), options)
            runs[0].wait_until(lambda: last_step(runs[0].workdir) >= 8)  # noqa: B023
            start = time.monotonic()
            runs[victim].kill(signum)
            status = runs[1 - victim].wait(600)
            seconds = time.monotonic() - start
            counts[f"peer {victim} {name}"] = f"status {status} after {seconds:.1f} s"
            counts["cause not named"] += processes.PEER_GONE not in runs[1 - victim].said()
            runs[victim].kill()
            runs[victim].wait()
    return counts


# ---- Memory


def soak(folder: str) -> dict[str, Any]:
    """Resident memory of ResNet-20 on digits over 2,000 steps, at step 500 and at the end."""
    options = {"num_steps": 2000, "eval_every": 100, "checkpoint_every": 100}
    options |= {"model.depth": 20, "data.validation_size": 98}
    run = Run(Path(folder, "soak"), options)
    samples = {}
    with tqdm(total=2000, unit="step", disable=None) as bar:
        while run.process.poll() is None:
            step = last_step(run.workdir)
            bar.update(step - bar.n)
            samples[step] = _resident(run.process.pid) or samples.get(step)
            time.sleep(0.5)
    run.finish()
    early = next(samples[step] for step in sorted(samples) if step >= 500)
    late = samples[max(step for step in samples if step < 2000)]
    counts = {"MiB at step 500": round(early / 2**20, 1), "MiB at the end": round(late / 2**20, 1)}
    return counts | {"ratio": round(late / early, 4)}


def _resident(pid):
    """Resident bytes of a process; None when it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiments that the flags name."""
    parser = command.Parser("python benchmarks/faults.py", __doc__)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="keep the runs here; --kills then goes on where it was")
    for name in ("disagreements", "determinism", "processes", "soak"):
        parser.add_argument(f"--{name}", action="store_true")
    args = parser.parse_args(argv)
    experiments = {
        "disagreements": (args.disagreements, lambda f: disagree(Path(f, "disagreements"))),
        "kills": (args.kills, lambda folder: kill_runs(folder, args.kills, args.seed)),
        "determinism": (args.determinism, determinism),
        "processes": (args.processes, several_processes),
        "soak": (args.soak, soak),
    }
    good = True
    with contextlib.ExitStack() as stack:
        folder = args.folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-"))
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, (wanted, experiment) in experiments.items():
            if wanted:
                counts = experiment(folder)
                failed = any(counts.get(key) for key in FAILURES)
                good &= not failed and counts.get("ratio", 0) <= 1.1
                print(f"{name}:", ", ".join(f"{k}: {v}" for k, v in counts.items()), flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(command.run(main))
