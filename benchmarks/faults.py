"""What happens to real training runs when processes, peers and machines fail.

    python benchmarks/faults.py --kills=50     # SIGKILL at random moments, then the same command
    python benchmarks/faults.py --determinism  # 200 steps: compiled afresh, and from the cache
    python benchmarks/faults.py --processes    # 2 processes × 1 device against 1 × 2; dead peers
    python benchmarks/faults.py --soak         # memory over 2,000 steps

Each prints its counts; the status is 1 unless all came out as they must.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tqdm import tqdm  # noqa: E402

from run import logs, processes  # noqa: E402
from run.checkpoint import UNFINISHED, Checkpoints  # noqa: E402
from run.workdir import Workdir  # noqa: E402

POLL_S = 0.002
FAILURES = ("lost", "unreadable", "different", "different from 1 × 2", "cause not named")
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


class Run:
    """One training process of `main.py` on CPU; its messages go to `<workdir>.log`."""

    def __init__(self, workdir, options, *flags, devices=1, env=None):
        self.workdir = Path(workdir)
        self.started = time.monotonic()
        self.log = Path(f"{workdir}.log")
        self.offset = self.log.stat().st_size if self.log.exists() else 0
        command = [sys.executable, "main.py", "--config=configs/digits.py:resnet8,paper"]
        command += [f"--config.{name}={value}" for name, value in options.items()]
        command += [f"--workdir={workdir}", *flags]
        environment = dict(os.environ, JAX_PLATFORMS="cpu") | (env or {})
        # The caller's other flags stay, so that the compiler rounds alike; of two, the last counts.
        count = f"--xla_force_host_platform_device_count={devices}"
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}"
        with open(self.log, "ab") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=output
            )

    def said(self):
        """What this process has printed."""
        return self.log.read_bytes()[self.offset :].decode(errors="replace")

    def wait(self, timeout=3600):
        """Waits for the end; returns the exit status."""
        return self.process.wait(timeout)

    def kill(self, signum=signal.SIGKILL):
        """Sends a signal."""
        self.process.send_signal(signum)

    def wait_until(self, condition, timeout=3600):
        """Polls until `condition()`; False when the process ended (or time ran out) before."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None and time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(POLL_S)
        return False


def last_step(workdir):
    """The last step in metrics.jsonl, or 0."""
    lines = logs.read_lines(Workdir(workdir).metrics)
    return lines[-1]["step"] if lines else 0


def last_state(workdir):
    """`(step, arrays by name)` of the newest checkpoint: parameters, BN, optimiser, EMA."""
    arrays, (step, _) = Checkpoints(workdir, read_only=True).read()
    return step, arrays


def differences(workdir, reference):
    """What differs between two finished runs, as a list of names; empty when all bits are equal."""
    metrics = [(Workdir(w).metrics).read_bytes() for w in (workdir, reference)]
    found = ["metrics.jsonl"] if metrics[0] != metrics[1] else []
    (step_a, a), (step_b, b) = last_state(workdir), last_state(reference)
    if step_a != step_b or set(a) != set(b):
        return [*found, f"step {step_a} against {step_b}"]
    return found + [name for name in a if not equal_bits(a[name], b[name])]


def equal_bits(a, b):
    """Whether two arrays have the same shape, type and bytes."""
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


# ---- SIGKILL


def kill_runs(folder, kills, seed=0):
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
            saved.write_text(json.dumps(counts))
    return counts


def _measured(folder):
    """Counts at zero, with how long a start and a whole run take once compiled."""
    for name in ("reference", "timed"):
        run = Run(folder / name, SMALL)
        run.wait_until(lambda: last_step(run.workdir))  # noqa: B023
        startup = time.monotonic() - run.started
        if run.wait():
            raise SystemExit(f"the uninterrupted run failed:\n{run.said()}")
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
    status = run.wait()
    killed = status == -signal.SIGKILL
    if not killed and status:
        raise SystemExit(f"{workdir}: status {status}\n{run.said()}")
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
    """Waits for a random moment: of the whole life, of the training, or inside a save."""
    kind = generator.choice(("life", "training", "saving"))
    if kind == "life":
        delay = generator.uniform(0, life)
        return not run.wait_until(lambda: False, delay) and run.process.poll() is None
    start = last_step(run.workdir)
    if kind == "training":
        delay = generator.uniform(0, life - startup)
        if not run.wait_until(lambda: last_step(run.workdir) not in (0, start)):
            return False
        run.wait_until(lambda: False, delay)
        return run.process.poll() is None
    folder = run.workdir / "checkpoints"
    leftover = set(folder.glob(f"*{UNFINISHED}"))
    seen = set()

    def saving():
        seen.update(set(folder.glob(f"*{UNFINISHED}")) - leftover)
        return len(seen) > skipped

    skipped = generator.randrange(6)
    if not run.wait_until(saving):
        return False
    run.wait_until(lambda: False, generator.uniform(0, 0.1))
    return run.process.poll() is None


def _phase(workdir, committed_before, steps_before):
    before_the_first_step, training, saving, after_the_last_step = PHASES
    if logs.final_line(workdir):
        return after_the_last_step
    if any((workdir / "checkpoints").glob(f"*{UNFINISHED}")):
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


def determinism(folder):
    """200 steps twice, the first compiled afresh, the second from the compilation cache."""
    env = {"JAX_COMPILATION_CACHE_DIR": str(Path(folder, "cache"))}
    for name in ("compiled", "cached"):
        run = Run(Path(folder, name), SMALL | {"num_steps": 200}, env=env)
        if run.wait():
            raise SystemExit(run.said())
    step, arrays = last_state(Path(folder, "cached"))
    found = _report_differences(Path(folder, "cached"), Path(folder, "compiled"))
    return {"steps": step, "arrays": len(arrays), "different": len(found)}


# ---- Several processes


def pair(workdir, options, **kwargs):
    """Two processes of one device each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = (f"--coordinator_address=localhost:{port}", "--num_processes=2")
    return [Run(workdir, options, *flags, f"--process_id={i}", **kwargs) for i in range(2)]


def several_processes(folder):
    """2 × 1 against 1 × 2 devices, a signal to one of two, and peers that die or freeze."""
    options = SMALL | {"num_steps": 40}
    together = Path(folder, "two-processes")
    statuses = [run.wait() for run in pair(together, options)]
    one = Run(Path(folder, "one-process"), options, devices=2)
    one.wait()
    counts = {"statuses of 2 × 1": statuses, "cause not named": 0}
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


def soak(folder):
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
    if run.wait():
        raise SystemExit(run.said())
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


def main():
    """Runs the experiments that the flags name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="keep the runs here; --kills then goes on where it was")
    for name in ("determinism", "processes", "soak"):
        parser.add_argument(f"--{name}", action="store_true")
    args = parser.parse_args()
    experiments = {
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
    sys.exit(main())
