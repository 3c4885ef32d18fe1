"""What happens to real training runs when processes, peers and machines fail.

    python benchmarks/faults.py --kills=50     # SIGKILL at random moments, then the same command:
                                               # 50 on digits, 50 on a streamed folder
    python benchmarks/faults.py --determinism  # 200 steps: compiled afresh, and from the cache
    python benchmarks/faults.py --processes    # 2 processes × 1 device against 1 × 2; dead peers
    python benchmarks/faults.py --soak         # memory over 220 checkpoints
    python benchmarks/faults.py --flips=1000   # bits flipped over every file of a workdir
    python benchmarks/faults.py --changes      # data that change between two starts
    python benchmarks/faults.py --disagreements  # two processes that were started differently

Each prints its counts; the status is 1 unless all came out as they must.
"""

import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from benchmarks.bit_flips import flip_bits
from benchmarks.changed_data import change_data
from benchmarks.disagreements import disagree
from benchmarks.kills import SMALL, STREAMED, draw_folder, kill_runs
from benchmarks.runs import Run, differences, last_state, last_step, pair
from run import command, processes
from run.workdir import Workdir

FAILURES = (
    "cause not named",
    "different",
    "different from 1 × 2",
    "lost",
    "not named",
    "silent",
    "tracebacks",
    "unreadable",
    "workdir changed",
)


# ---- Determinism


def _report_differences(workdir, reference):
    if found := differences(workdir, reference):
        print(f"{workdir} differs from the uninterrupted run: {', '.join(found[:5])}")
    return found


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
    """Resident memory over 220 checkpoints: after the 20th, and at the end."""
    options = SMALL | {"num_steps": 440, "log_every": 20, "eval_every": 110, "checkpoint_every": 2}
    run, samples = Run(Path(folder, "soak"), options), {}
    with tqdm(total=220, unit="checkpoint", disable=None) as bar:
        while run.process.poll() is None:
            saved = max(Workdir(run.workdir).committed_steps(), default=0) // 2
            bar.update(saved - bar.n)
            samples[saved] = _resident(run.process.pid) or samples.get(saved)
            time.sleep(0.5)
    run.finish()
    early = next(samples[saved] for saved in sorted(samples) if saved >= 20)
    late = samples[max(saved for saved in samples if saved < 220)]
    counts = {"MiB after 20": round(early / 2**20, 1), "MiB at the end": round(late / 2**20, 1)}
    return counts | {"checkpoints": 220, "ratio": round(late / early, 4)}


def _resident(pid):
    """Resident bytes of a process; None when it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def streamed_kills(folder: str, args: Any) -> dict[str, Any]:
    """As `kill_runs`, on image files that are read while it trains."""
    images = draw_folder(Path(folder, "images").absolute())
    options = STREAMED | {"dataset": f"folder:{images}"}
    return kill_runs(Path(folder, "streamed"), args.kills, args.seed, options)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiments that the flags name."""
    parser = command.Parser("python benchmarks/faults.py", __doc__)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--flips", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="keep the runs here; --kills then goes on where it was")
    for name in ("disagreements", "changes", "determinism", "processes", "soak"):
        parser.add_argument(f"--{name}", action="store_true")
    args = parser.parse_args(argv)
    experiments = {
        "kills": (args.kills, lambda f: kill_runs(Path(f, "digits"), args.kills, args.seed)),
        "kills on a streamed folder": (args.kills, lambda f: streamed_kills(f, args)),
        "disagreements": (args.disagreements, lambda f: disagree(Path(f, "disagreements"))),
        "changes": (args.changes, lambda f: change_data(Path(f, "changes"))),
        "flips": (args.flips, lambda f: flip_bits(Path(f, "flips"), args.flips, args.seed)),
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
                good &= not failed and counts.get("ratio", 0) <= 1.02
                print(f"{name}:", ", ".join(f"{k}: {v}" for k, v in counts.items()), flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(command.run(main))
