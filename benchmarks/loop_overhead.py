"""What the real training loop costs over the bare compiled step, on the same data.

    python -m benchmarks.loop_overhead

Turns alternate between `train.train` (ResNet-20 on digits: metrics, TensorBoard events, a progress
bar on a terminal, a checkpoint every 1,000 steps) and the same compiled step called in a bare loop.
The loop's wall time is the sum over the lines of its own `timing.jsonl` from the second on, so that
compilation is left out; the bare loop runs as many steps, waits for the last, and is timed from
outside. The figures go to `benchmarks/loop_overhead.md`.
"""

import contextlib
import itertools
import logging
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

import input_pipeline
import models
import train
from benchmarks import reports
from configs import digits
from run import logs
from run.mesh import make_mesh, replicate, to_host
from run.workdir import Workdir
from training import step as train_step

GOAL = 0.03


def recipe(network: str, steps: int, log_every: int, checkpoint_every: int) -> ConfigDict:
    """The digits recipe; `steps` are timed, after `log_every` steps that are not."""
    config = digits.get_config(network)
    config.num_steps = steps + log_every
    config.update(log_every=log_every, checkpoint_every=checkpoint_every)
    return config


@contextlib.contextmanager
def terminal() -> Iterator[None]:
    """While open, standard error is a terminal that somebody reads, so that the bar is drawn."""
    ours, theirs = os.openpty()

    def read():
        with contextlib.suppress(OSError):  # the other end has been closed
            while os.read(ours, 65536):
                pass

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    with os.fdopen(theirs, "w") as stream, contextlib.redirect_stderr(stream):
        yield
    reader.join()
    os.close(ours)


def real_loop(config: ConfigDict, folder: str | Path) -> float:
    """Seconds of all steps but the first `log_every` of a fresh run in `folder`."""
    with tempfile.TemporaryDirectory(dir=folder) as workdir, terminal():
        train.train(config, workdir)
        lines = logs.read_lines(Workdir(workdir).timing)
    pairs = itertools.pairwise(lines)
    return sum(
        (now["step"] - before["step"]) * config.batch_size / now["images_per_second"]
        for before, now in pairs
    )


class BareLoop:
    """The compiled step of the same config on the same data, and nothing around it."""

    def __init__(self, config: ConfigDict):
        mesh = make_mesh()
        data = input_pipeline.open_data(config, mesh)
        model = models.create(config.model, data.facts.num_classes)
        state = train_step.create_state(config, model, data.facts.image_shape)
        self._state = replicate(to_host(state), mesh)
        self._order = replicate(data.initial_order(), mesh)
        self._feed = data.feed(0)
        self._run = train_step.make_run(config, model, data, mesh)
        self(config.log_every)

    def __call__(self, steps: int) -> float:
        """Seconds of `steps` steps."""
        started = time.perf_counter()
        for _ in range(steps):
            self._state, self._order, _ = self._run(self._state, self._order, next(self._feed), 1)
        jax.block_until_ready(self._state)
        return time.perf_counter() - started


def report(
    config: ConfigDict, steps: int, real: Sequence[float], bare: Sequence[float]
) -> list[str]:
    """Markdown lines for the seconds of the turns."""
    rows = [
        (str(i), f"{1e3 * r / steps:.2f}", f"{1e3 * b / steps:.2f}", f"{r / b - 1:+.1%}")
        for i, (r, b) in enumerate(zip(real, bare, strict=True), start=1)
    ]
    overhead = statistics.median(r / b for r, b in zip(real, bare, strict=True)) - 1
    loop, step = (f"{1e3 * statistics.median(turns) / steps:.2f}" for turns in (real, bare))
    rows.append(("median", loop, step, f"{overhead:+.1%}"))
    return [
        f"ResNet-{config.model.depth} on digits, batch {config.batch_size}, {steps} steps a turn, "
        f"lines every {config.log_every} and checkpoints every {config.checkpoint_every} steps; "
        f"goal: overhead ≤ {GOAL:.0%}.",
        "",
        *reports.table(("turn", "loop, ms/step", "bare step, ms/step", "overhead"), rows),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the turns and writes the report."""
    parser = reports.parser(__file__, __doc__)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--steps", type=int, default=1_000, help="timed steps of a turn")
    parser.add_argument("--log_every", type=int, default=20)
    parser.add_argument("--checkpoint_every", type=int, default=1_000)
    parser.add_argument("--repetitions", type=int, default=5, help="turns")
    options = parser.parse_args(argv)
    logging.getLogger("residual").setLevel(logging.WARNING)
    where = reports.environment()
    config = recipe(options.network, options.steps, options.log_every, options.checkpoint_every)
    real, bare = [], []
    with tempfile.TemporaryDirectory() as folder:
        run_bare = BareLoop(config)
        for _ in range(options.repetitions):
            bare.append(run_bare(options.steps))
            real.append(real_loop(config, folder))
            print(bare[-1], real[-1], file=sys.stderr, flush=True)
    lines = [where, "", *report(config, options.steps, real, bare)]
    reports.write(options.report, "Overhead of the training loop", options.command, lines)


if __name__ == "__main__":
    sys.exit(reports.run(main))
