"""How long a user waits after `python main.py`: for the compiler, the first step, the first loss.

    python -m benchmarks.startup

Each turn runs the first command of the README (ResNet-20 on digits) twice: cold, with an empty
compilation cache, and warm, with the cache that the cold run left. The moments
are those at which a line arrives here: JAX says when it begins to compile (`JAX_LOG_COMPILES`), and
with `--config.log_every=1` the loop prints the loss of every step: step 1 is the first step, step
20 the first loss that the recipe prints. The data set has been prepared before. The figures go to
`benchmarks/startup.md`.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks import reports
from errors import UserError

ROOT = Path(__file__).parent.parent
FIRST_LOSS = 20  # the recipe's log_every
MOMENTS = {
    "the first compilation (initialisation)": re.compile(r"Compiling jit\(_initial\)"),
    "the train step's compilation begins": re.compile(r"Compiling jit\(compiled\)"),
    "it is done": re.compile(r"Finished XLA compilation of jit\(compiled\)"),
    "the first step": re.compile(r"step 1/\d+: loss"),
    f"the first loss printed, step {FIRST_LOSS}": re.compile(rf"step {FIRST_LOSS}/\d+: loss"),
}
BEGIN, LOSS = list(MOMENTS)[1], list(MOMENTS)[-1]
BEGIN_GOAL_S, WARM_GOAL = 4, 0.5


def moments(lines: Iterable[tuple[float, str]]) -> dict[str, float]:
    """The first arrival of each of `MOMENTS` in `(seconds, line)`; stops after the last."""
    found = {}
    for seconds, line in lines:
        for name, pattern in MOMENTS.items():
            if name not in found and pattern.search(line):
                found[name] = seconds
        if len(found) == len(MOMENTS):
            break
    return found


def start(recipe: str, cache: str, workdir: str) -> dict[str, float]:
    """Starts `python main.py`, stops it after the first loss; returns its `moments`.

    Raises:
      UserError: the run ended before; the message has its last line.
    """
    command = [sys.executable, "main.py", f"--config={recipe}", "--config.log_every=1"]
    started = time.perf_counter()
    process = subprocess.Popen(
        [*command, f"--workdir={workdir}"],
        cwd=ROOT,
        env=os.environ | {"JAX_LOG_COMPILES": "1", "JAX_COMPILATION_CACHE_DIR": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    seen = []

    def arrivals():
        for line in process.stderr:
            seen.append(line)
            yield time.perf_counter() - started, line

    found = moments(arrivals())
    process.kill()
    process.communicate()
    if len(found) < len(MOMENTS):
        raise UserError(f"{' '.join(command)} ended early: {''.join(seen[-1:]).strip()}")
    return found


def report(cold: Sequence[Mapping[str, float]], warm: Sequence[Mapping[str, float]]) -> list[str]:
    """Markdown lines for the turns' moments."""
    rows, middle = [], {}
    for name in MOMENTS:
        middle[name] = [statistics.median(run[name] for run in runs) for runs in (cold, warm)]
        first, second = middle[name]
        rows.append((name, f"{first:.1f}", f"{second:.1f}", f"{second / first:.2f}"))
    goals = [
        ("until the step's compilation begins, cold", f"{middle[BEGIN][0]:.1f} s", BEGIN_GOAL_S),
        ("until the step's compilation begins, warm", f"{middle[BEGIN][1]:.1f} s", BEGIN_GOAL_S),
    ]
    rows_of_goals = [(name, value, f"≤ {goal} s") for name, value, goal in goals]
    ratio = middle[LOSS][1] / middle[LOSS][0]
    rows_of_goals.append(("warm / cold, first loss", f"{ratio:.2f}", f"≤ {WARM_GOAL}"))
    return [
        *reports.table(("seconds until", "cold", "warm", "warm / cold"), rows),
        "",
        *reports.table(("goal", "measured", "limit"), rows_of_goals),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the turns and writes the report."""
    parser = reports.parser(__file__, __doc__)
    parser.add_argument("--recipe", default="configs/digits.py", help="what is run")
    parser.add_argument("--repetitions", type=int, default=3, help="turns of a cold and a warm run")
    options = parser.parse_args(argv)
    where = reports.environment()
    cold, warm = [], []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(options.repetitions):
            for name, runs in (("cold", cold), ("warm", warm)):
                runs.append(start(options.recipe, f"{folder}/xla{turn}", f"{folder}/{name}{turn}"))
                print(name, runs[-1], file=sys.stderr, flush=True)
    note = f"`python main.py --config={options.recipe}`, medians of {options.repetitions} turns."
    reports.write(
        options.report, "Start-up", options.command, [f"{where} {note}", "", *report(cold, warm)]
    )


if __name__ == "__main__":
    sys.exit(reports.run(main))
