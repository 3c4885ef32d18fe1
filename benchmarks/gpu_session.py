"""Everything that has to be measured on a GPU, in one command, for one card and 25 minutes.

    python -m benchmarks.gpu_session --minutes=25                # the same command resumes it
    python -m benchmarks.gpu_session --stages correctness speed --torch_python=PYTHON

No network is needed, and besides the recipes' JAX only flax, optax, orbax, numpy, Pillow,
scikit-learn and ml_collections (torch only for its own rows). Six stages of less than nine minutes
share the time, each a list of jobs in processes of their own. What a job printed is written to
OUT/session.json and OUT/session.md when it ends; jobs that are done are not run again, compiled
programs and checkpoints of the others stay, and what time did not allow stands there as "not run".
"""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.step_time import OURS, PEER, TORCH
from benchmarks.whole_step import ROOT, SHARED
from data import small_sets
from errors import UserError
from run import command, files

STAGE_S = 8.5 * 60  # of one stage at most
# Parts of the time; what a stage leaves goes to those after it.
SHARES = {"correctness": 4, "speed": 8, "determinism": 2, "overhead": 4, "flags": 4, "training": 3}
KEPT_LINES = 60  # of what a job printed
DONE = "done"


class Job(NamedTuple):
    """One process: the stage that it belongs to, its name there, the words after `python`."""

    stage: str
    name: str
    words: tuple[str, ...]

    @property
    def key(self) -> str:
        """Its name in the file of results; another command is another job."""
        return f"{self.stage}: {self.name}"

    @property
    def command(self) -> str:
        """As one would type it."""
        return shlex.join(("python", *self.words))


def module(name: str, *words: object) -> tuple[str, ...]:
    """`-m benchmarks.NAME …`."""
    return ("-m", f"benchmarks.{name}", *map(str, words))


class Scale(NamedTuple):
    """How large everything is."""

    small: tuple[str, ...]  # networks whose gradients are compared, with their batch
    cases: tuple[str, ...]  # how many a worker measures; of all where nothing is said
    compared: int  # size of their images
    speed: tuple[str, ...]
    flags: str
    size: int  # of images; 0: the recipe's
    steps: int  # of a turn
    run_steps: int  # of a training run
    memory: tuple[str, ...]
    depths: tuple[int, ...]  # of figure 6
    figure_steps: int


CARD = Scale(
    small=("resnet20:32", "resnet18:8", "resnet50:8"),
    cases=(),
    compared=64,
    speed=(
        "resnet50:256:bfloat16",
        "resnet50:256:float32",
        "resnet20:128:bfloat16",
        "resnet152:256:bfloat16",
        "resnet101:256:bfloat16",
        "resnet20:128:float32",
    ),
    flags="resnet50:256:bfloat16",
    size=0,
    steps=20,
    run_steps=400,
    memory=("resnet50:64:bfloat16", "resnet152:64:bfloat16"),
    depths=(20, 32, 44, 56),
    figure_steps=64_000,
)
TINY = Scale(
    small=("resnet8:2",),
    cases=("--cases=1",),
    compared=8,
    speed=("resnet8:2",),
    flags="resnet8:2",
    size=8,
    steps=2,
    run_steps=16,
    memory=("resnet8:2",),
    depths=(8,),
    figure_steps=8,
)


def jobs(scale: Scale, out: Path, torch_python: str = "", data_dir: str = "") -> Iterator[Job]:
    """The jobs of all stages, the most wanted of each first."""
    size, tiny = f"--size={scale.size}", scale is TINY
    for some in (("--cases=1",), *[()] * (not tiny)):
        for row in scale.small:
            words = ["correctness", row, f"--size={scale.compared}", *some]
            name = f"{row}, {'as the recipe' if some else 'every family'}"
            yield Job("correctness", name, module("gpu_worker", *words))

    for row in scale.speed:
        for contender in (OURS, PEER, *TORCH[::-1] * bool(torch_python)):
            words = ["--rows", row, size, f"--steps={scale.steps}", "--repetitions=5"]
            words += [f"--torch_python={torch_python}"] * bool(torch_python)
            words += [f"--only={contender}", f"--results={out / 'step_time.json'}"]
            yield Job("speed", f"{row}, {contender}", module("step_time", *words))

    words = ["same_bits", f"--steps={scale.run_steps}", f"--out={out / 'bits'}", *scale.cases]
    yield Job("determinism", "two runs, kill and resume", module("gpu_worker", *words))

    words = [f"--steps={scale.run_steps}", f"--report={out}/loop.md"]
    words += ["--repetitions=1", "--network=resnet8"] if tiny else ["--repetitions=3"]
    yield Job("overhead", "loop", module("loop_overhead", *words))
    for row in scale.memory:
        words = ["--rows", row, "--unrolled", "--timed", f"--report={out}/memory-{row}.md"]
        words += ["--memory=0.1", "--policies=none"] if tiny else []
        yield Job("overhead", f"memory and largest batch, {row}", module("memory", *words))
    words = ["--repetitions=1", f"--report={out}/startup.md"]
    words += ["--recipe=configs/digits.py:resnet8"] * tiny
    yield Job("overhead", "start-up", module("startup", *words))

    words = ["dispatches", f"--steps={scale.run_steps}", f"--out={out / 'dispatches'}"]
    yield Job("flags", "steps_per_dispatch", module("gpu_worker", *words, *scale.cases))
    words = ["flags", scale.flags, size, f"--steps={scale.steps}"]
    words += ["--cases=2", "--repetitions=1"] if tiny else []
    yield Job("flags", scale.flags, module("gpu_worker", *words))
    yield from training(scale, out, data_dir)


def training(scale: Scale, out: Path, data_dir: str) -> Iterator[Job]:
    """The jobs that train: digits, Fashion-MNIST where its file lies, depths of figure 6."""
    tiny, plain = scale is TINY, "--config.tensorboard=False"
    recipe = "configs/digits.py:resnet8,paper" if tiny else "configs/digits.py"
    for seed in range(1 if tiny else 3):
        words = ["main.py", f"--config={recipe}", f"--config.seed={seed}", plain]
        words += ["--config.model.width=4", "--config.num_steps=8"] if tiny else []
        yield Job("training", f"digits, seed {seed}", (*words, f"--workdir={out}/digits-{seed}"))
    if small_sets.file_of("fashion_mnist", data_dir).is_file() and not tiny:
        words = ["main.py", "--config=configs/fashion_mnist.py:resnet20", plain]
        words += [f"--config.data_dir={data_dir}", f"--workdir={out}/fashion_mnist"]
        yield Job("training", "Fashion-MNIST, ResNet-20", tuple(words))
    data = "cifar10" if small_sets.file_of("cifar10", data_dir).is_file() else "digits"
    for i, depth in enumerate(scale.depths, 1):  # each with those before, which are there already
        depths = [str(d) for d in scale.depths[:i]]
        words = ["-m", "paper.figure6", f"--dataset={data}", "--depths", *depths]
        words += [f"--steps={scale.figure_steps}", f"--runs={out}/figure6", f"--out={out}"]
        words += [f"--data_dir={data_dir}"] * bool(data_dir) + ["--width=4"] * tiny
        yield Job("training", f"figure 6 on {data}, depth {depth}", tuple(words))


def run(job: Job, seconds: float, device: Mapping[str, str]) -> dict[str, Any]:
    """Runs a job for so many seconds at most; it and its children end then."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *job.words],
        cwd=ROOT,
        env={**os.environ, **SHARED, **device},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=max(seconds, 1))
        state = DONE if process.returncode == 0 else f"status {process.returncode}"
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        state = f"out of time after {seconds:.0f} s; the same command goes on with it"
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return {
        "stage": job.stage,
        "command": job.command,
        "state": state,
        "seconds": round(time.monotonic() - started, 1),
        "said": said.splitlines()[-KEPT_LINES:],
    }


def report(results: Mapping[str, Mapping[str, Any]], wanted: Sequence[Job]) -> list[str]:
    """The session as Markdown: a table of the jobs, then what each printed."""
    lines = ["# A session on a GPU", "", "    python -m benchmarks.gpu_session", ""]
    lines += ["| job | state | seconds |", "|---|---|---|"]
    for job in wanted:
        found = results.get(job.key, {"state": "not run", "seconds": ""})
        lines.append(f"| {job.key} | {found['state']} | {found['seconds']} |")
    for job in wanted:
        if found := results.get(job.key):
            lines += ["", f"## {job.key}", "", f"    {found['command']}", ""]
            lines += [f"    {line}" for line in found["said"]]
    return lines


def session(
    wanted: Sequence[Job], out: Path, minutes: float, device: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Runs what `out` does not hold yet, as long as there is time; returns all results."""
    path, ends = out / "session.json", time.monotonic() + 60 * minutes
    results = json.loads(path.read_text()) if path.exists() else {}
    missing = [job for job in wanted if not _is_done(job, results.get(job.key, {}))]
    stages = list(dict.fromkeys(job.stage for job in missing))
    stage_ends: dict[str, float] = {}
    for job in missing:
        if job.stage not in stage_ends:
            parts = [SHARES.get(stage, 1) for stage in stages[stages.index(job.stage) :]]
            share = (ends - time.monotonic()) * parts[0] / sum(parts)
            stage_ends[job.stage] = time.monotonic() + min(share, STAGE_S)
        seconds = stage_ends[job.stage] - time.monotonic()
        if seconds <= 0:
            continue
        print(f"{job.key}: at most {seconds:.0f} s", flush=True)
        results[job.key] = found = run(job, seconds, device)
        print(f"{job.key}: {found['state']}, {found['seconds']} s", flush=True)
        files.write_text(path, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        files.write_text(out / "session.md", "\n".join(report(results, wanted)) + "\n")
    return results


def _is_done(job, found):
    return found.get("state") == DONE and found["command"] == job.command


def _card():
    """What JAX computes on here; UserError where that is no accelerator."""
    code = "import jax; print(jax.default_backend(), jax.devices()[0].device_kind)"
    said = run(Job("", "", ("-c", code)), 120, {})["said"][-1:]
    if not said or said[0].split()[0] not in ("gpu", "tpu"):
        raise UserError(f"JAX finds no accelerator here ({said}); --tiny rehearses on the CPU.")
    return said[0]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the stages; the status is 1 if a job failed."""
    parser = command.Parser("python -m benchmarks.gpu_session", __doc__)
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--stages", nargs="+", help="by name; default: all")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_session"))
    parser.add_argument("--data_dir", default="", help="where fashion_mnist.npz lies")
    parser.add_argument("--torch_python", default="", help="an interpreter that has torch")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal on the CPU")
    options = parser.parse_args(argv)
    out = options.out.absolute()
    scale, device = TINY if options.tiny else CARD, {"JAX_COMPILATION_CACHE_DIR": f"{out}/xla"}
    if options.tiny:
        device["JAX_PLATFORMS"] = "cpu"
    wanted = list(jobs(scale, out, options.torch_python, options.data_dir))
    stages = dict.fromkeys(job.stage for job in wanted)
    for stage in options.stages or ():
        if stage not in stages:
            raise UserError(f"--stages {stage}: expected some of {', '.join(stages)}.")
    wanted = [job for job in wanted if job.stage in (options.stages or stages)]
    if not options.tiny:
        print(_card(), flush=True)
    results = session(wanted, out, options.minutes, device)
    print(f"{out / 'session.md'} has the results.")
    return int(any(results[j.key]["state"] != DONE for j in wanted if j.key in results))


if __name__ == "__main__":
    sys.exit(command.run(main))
