"""Memory of the whole train step by `model.remat`, and the largest batch that fits a device.

    python -m benchmarks.memory --memory=16          # GiB; default: what this device has

The figures are the compiled program's own (`memory_analysis`), for the device that it is compiled
for here; nothing is run except what is timed. Between two batch sizes memory is taken as a straight
line, `fixed + per_image · batch`; the largest batch is where that line reaches the device's memory,
and the step is compiled once more at this batch, and at smaller ones until it fits. Temporary
memory is what the program allocates besides its arguments: activations, gradients, copies. The
figures go to `benchmarks/memory.md`.
"""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from benchmarks import reports
from benchmarks.whole_step import IMAGENET_DEPTHS, Row, WholeStep, take_turns
from errors import UserError

POLICIES = ("none", "block", "segments")
# CIFAR networks as loops, as deep ones are trained; the others in their recipe's form.
ROWS = ("resnet110:64", "resnet218:64", "resnet1202:64", "resnet152:8")
UNROLLED_ROWS = ("resnet110:64",)
TIMED_ROWS = ("resnet110:32", "resnet152:2")
SHRINK_GOAL, TIME_GOAL = 0.3, 1.35
MIB, GIB = 2**20, 2**30


class Need(NamedTuple):
    """Bytes of a compiled step."""

    temporary: int
    total: int  # with arguments and results; donated buffers count once


def compiled_need(row: Row, **fields: Any) -> Need:
    """Compiles the step of a `Row` with fields of `config.model`; returns its `Need`."""
    analysis = WholeStep.of(row, **fields).lower().compile().memory_analysis()
    held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
    held -= analysis.alias_size_in_bytes
    return Need(analysis.temp_size_in_bytes, held + analysis.temp_size_in_bytes)


class Line(NamedTuple):
    """Bytes as a straight line over the batch size."""

    fixed: float
    per_image: float

    @classmethod
    def through(cls, a: tuple[float, float], b: tuple[float, float]) -> "Line":
        """The line through two points (batch, bytes)."""
        slope = (b[1] - a[1]) / (b[0] - a[0])
        return cls(a[1] - slope * a[0], slope)

    def largest_batch(self, limit: float) -> int:
        """The last batch at which the line is not above `limit` bytes; 0 when none is."""
        return max(0, math.floor((limit - self.fixed) / self.per_image))


def device_limit() -> int:
    """Bytes that the first device can hold.

    Raises:
      UserError: the device does not say, as a CPU does not.
    """
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" not in stats:
        kind = jax.devices()[0].device_kind
        raise UserError(f"device {kind!r} does not say what it holds; give --memory=GiB.")
    return stats["bytes_limit"]


class Policy(NamedTuple):
    """What is known of one network under one policy."""

    need: Need  # at the row's batch
    temporary: Line
    batch: int  # the largest that fits
    verified: int  # bytes of the step compiled at that batch; 0 when nothing fits


def measure(row: Row, remat: str, limit: float, **fields: Any) -> Policy:
    """Compiles at the row's batch, at twice it, at the largest that fits; returns `Policy`."""
    needs = [
        compiled_need(row._replace(batch=n * row.batch), remat=remat, **fields) for n in (1, 2)
    ]
    batches = (row.batch, 2 * row.batch)
    total, temporary = (
        Line.through(*((b, getattr(need, part)) for b, need in zip(batches, needs, strict=True)))
        for part in ("total", "temporary")
    )

    def need_of(batch):
        return compiled_need(row._replace(batch=batch), remat=remat, **fields).total

    batch, verified = total.largest_batch(limit), 0
    while batch and (verified := need_of(batch)) > limit:
        batch = max(0, batch - math.ceil((verified - limit) / total.per_image))
    return Policy(needs[0], temporary, batch, verified if batch else 0)


def depth_of(row: Row) -> int:
    """110 for 'resnet110'."""
    return int(row.network.removeprefix("resnet"))


def growth(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """How many times the depths and the values grow from the first to the last (depth, value)."""
    (depth, value), (deep, more) = points[0], points[-1]
    return deep / depth, more / value


def memory_table(measured: Mapping[Row, Mapping[str, Policy]], limit: float) -> list[str]:
    """Markdown lines for row → policy name → `Policy`."""
    header = ["network", "remat", "temporary, MiB", "× none", "per image, MiB", "× none"]
    header += [f"largest batch in {limit / GIB:g} GiB", "compiled there, GiB"]
    lines = []
    for row, policies in measured.items():
        none = policies["none"]
        for name, p in policies.items():
            share = p.need.temporary / none.need.temporary
            per_image = p.temporary.per_image / none.temporary.per_image
            lines.append(
                (
                    f"{row.network}, batch {row.batch}, {row.dtype}",
                    name,
                    f"{p.need.temporary / MIB:,.0f}",
                    f"{share:.2f}",
                    f"{p.temporary.per_image / MIB:.2f}",
                    f"{per_image:.2f}",
                    f"{p.batch:,}",
                    f"{p.verified / GIB:.2f} ({p.verified / limit:.1%})",
                )
            )
    return reports.table(header, lines)


def growth_lines(measured: Mapping[Row, Mapping[str, Policy]]) -> list[str]:
    """How per-image temporary memory grows with the depth of the 6n+2 networks, by policy."""
    cifar = {r: p for r, p in measured.items() if depth_of(r) not in IMAGENET_DEPTHS}
    if len(cifar) < 2:
        return []
    lines = []
    for name in next(iter(cifar.values())):
        points = [(depth_of(row), p[name].temporary.per_image) for row, p in cifar.items()]
        depth, times = growth(points)
        lines.append((name, f"{depth:.2f}", f"{math.sqrt(depth):.2f}", f"{times:.2f}"))
    header = ("remat", "depth grows by", "its root", "per-image memory grows by")
    return ["", *reports.table(header, lines)]


def time_lines(rows: Iterable[Row], policies: Sequence[str], repetitions: int) -> list[str]:
    """Seconds per step of the policies in turns, scanned."""
    lines = []
    for row in rows:
        runs = {name: WholeStep.of(row, remat=name, scan_blocks=True).runner() for name in policies}
        middle = take_turns(runs, repetitions)
        for name, (wall, processor) in middle.items():
            ratios = (wall / middle["none"][0], processor / middle["none"][1])
            shown = f"{1e3 * wall:,.0f}", f"{1e3 * processor:,.0f}", *(f"{r:.2f}" for r in ratios)
            lines.append((f"{row.network}, batch {row.batch}", name, *shown))
    header = ("network", "remat", "step, ms", "processor, ms", "× none", "× none, processor")
    return reports.table(header, lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Compiles, times and writes the report."""
    parser = reports.parser(__file__, __doc__)
    parser.add_argument("--memory", type=float, help="GiB of the device; default: what it says")
    parser.add_argument("--rows", nargs="*", default=ROWS, help="NETWORK:BATCH[:DTYPE], scanned")
    parser.add_argument("--unrolled", nargs="*", default=UNROLLED_ROWS, help="the same, unrolled")
    parser.add_argument("--timed", nargs="*", default=TIMED_ROWS, help="rows whose step is timed")
    parser.add_argument("--policies", nargs="+", default=POLICIES, choices=POLICIES)
    parser.add_argument("--repetitions", type=int, default=5, help="timed turns of each policy")
    options = parser.parse_args(argv)
    where = reports.environment()
    limit = options.memory * GIB if options.memory else device_limit()
    # "none" is what the others are shares of.
    policies = list(dict.fromkeys(("none", *options.policies)))

    measured = {}
    for row in map(Row.parse, options.rows):
        for name in policies:
            policy = measure(row, name, limit, scan_blocks=True)
            measured.setdefault(row, {})[name] = policy
            print(row, name, policy, file=sys.stderr, flush=True)
    unrolled = []
    for row in map(Row.parse, options.unrolled):
        needs = {name: compiled_need(row, remat=name).temporary for name in policies}
        print(row, needs, file=sys.stderr, flush=True)
        for name, need in needs.items():
            shown = f"{need / MIB:,.0f}", f"{need / needs['none']:.2f}"
            unrolled.append((f"{row.network}, batch {row.batch}", name, *shown))
    lines = [
        where,
        "",
        f"Goals: ≤ {SHRINK_GOAL} × none for ResNet-110, per-image memory of `segments` growing "
        f"with the root of the depth, time ≤ {TIME_GOAL} × none.",
        "",
        "## Scanned (`scan_blocks=True`)",
        "",
        *memory_table(measured, limit),
        *growth_lines(measured),
        "",
        "## Unrolled",
        "",
        *reports.table(("network", "remat", "temporary, MiB", "× none"), unrolled),
        "",
        "## Time, scanned",
        "",
        f"Medians of {options.repetitions} turns of one step.",
        "",
        *time_lines(map(Row.parse, options.timed), policies, options.repetitions),
    ]
    reports.write(options.report, "Memory of a train step", options.command, lines)


if __name__ == "__main__":
    sys.exit(reports.run(main))
