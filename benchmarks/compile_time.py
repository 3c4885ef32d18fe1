"""Tracing and compiling the whole train step of the CIFAR networks: unrolled, and as a loop.

    python -m benchmarks.compile_time

With `scan_blocks` the equal blocks of a stage are traced and compiled once, whatever the depth. The
unrolled ResNet-1202 is not compiled: its time is the straight line through the unrolled depths, a
lower bound where a compiler's passes grow faster than their programs. The persistent compilation
cache is off and JAX's own caches are emptied before each measurement. The figures go to
`benchmarks/compile_time.md`.
"""

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from benchmarks import reports
from benchmarks.whole_step import Row, WholeStep

SHALLOW, DEEP = 20, 1202
MIDDLE = (110,)
UNROLLED = (20, 110, 218)
FLAT_GOAL, UNROLLED_GOAL = 1.5, 1 / 20


class Seconds(NamedTuple):
    """What one program took."""

    trace: float  # to StableHLO
    compile: float

    @property
    def total(self) -> float:
        """Of both."""
        return self.trace + self.compile


def measure(depth: int, scan: bool, batch: int) -> Seconds:
    """Traces and compiles one train step afresh; returns `Seconds`."""
    jax.clear_caches()
    step = WholeStep.of(Row(f"resnet{depth}", batch), scan_blocks=scan)
    started = time.perf_counter()
    lowered = step.lower()
    traced = time.perf_counter()
    lowered.compile()
    return Seconds(traced - started, time.perf_counter() - traced)


def extrapolated(depths: Sequence[int], seconds: Sequence[float], depth: int) -> float:
    """The straight line through (depths, seconds) at `depth`."""
    slope, start = np.polyfit(depths, seconds, 1)
    return slope * depth + start


def report(times: Mapping[tuple[int, bool], Sequence[Seconds]]) -> list[str]:
    """Markdown lines for (depth, scanned) → list of `Seconds`; medians."""
    middle = {
        key: Seconds(*(statistics.median(part) for part in zip(*several, strict=True)))
        for key, several in times.items()
    }
    base = middle[SHALLOW, False].total
    header = ["network", "blocks", "runs", "trace, s", "compile, s", "sum, s"]
    header += ["× ResNet-20 unrolled"]
    rows: list[Sequence[object]] = []
    for (depth, scanned), seconds in sorted(middle.items(), key=lambda item: item[0][::-1]):
        form = "one loop per stage" if scanned else "unrolled"
        parts = [f"{s:.1f}" for s in (*seconds, seconds.total)]
        runs = len(times[depth, scanned])
        rows.append((f"ResNet-{depth}", form, runs, *parts, f"{seconds.total / base:.2f}"))
    unrolled = sorted(depth for depth, scanned in middle if not scanned)
    line = extrapolated(unrolled, [middle[d, False].total for d in unrolled], DEEP)
    basis = f"extrapolated from {', '.join(map(str, unrolled))}"
    rows.append((f"ResNet-{DEEP}", "unrolled", basis, "", "", f"{line:.0f}", f"{line / base:.1f}"))

    deep = middle[DEEP, True].total
    flat = deep / middle[SHALLOW, True].total
    goals = [
        (f"ResNet-{DEEP} scanned / ResNet-{SHALLOW} unrolled", deep / base, f"≤ {FLAT_GOAL}"),
        (f"ResNet-{DEEP} scanned / ResNet-{SHALLOW} scanned", flat, f"≤ {FLAT_GOAL}"),
        (f"ResNet-{DEEP} scanned / unrolled, {basis}", deep / line, f"≤ {UNROLLED_GOAL}"),
    ]
    shown = [(name, f"{ratio:.3f}", goal) for name, ratio, goal in goals]
    return [
        *reports.table(header, rows),
        "",
        *reports.table(("ratio of the sums", "measured", "goal"), shown),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Measures in turns, deepest unrolled networks last and once, and writes the report."""
    parser = reports.parser(__file__, __doc__)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=3, help="turns, except of deep unrolled")
    parser.add_argument("--unrolled", type=int, nargs="+", default=UNROLLED, help="depths")
    options = parser.parse_args(argv)
    jax.config.update("jax_enable_compilation_cache", False)
    where = reports.environment()
    measure(8, False, 1)  # what only the first compilation of a process costs

    turns = [(SHALLOW, False), *((depth, True) for depth in (SHALLOW, *MIDDLE, DEEP))]
    once = [(depth, False) for depth in sorted(options.unrolled) if depth != SHALLOW]
    times: dict[tuple[int, bool], list[Seconds]] = {}
    for depth, scan in turns * options.repetitions + once:
        seconds = measure(depth, scan, options.batch)
        times.setdefault((depth, scan), []).append(seconds)
        print(depth, scan, seconds, file=sys.stderr, flush=True)
    where += f" Batch {options.batch}; medians where there are several runs."
    lines = [where, "", *report(times)]
    reports.write(options.report, "Time to compile a train step", options.command, lines)


if __name__ == "__main__":
    sys.exit(reports.run(main))
