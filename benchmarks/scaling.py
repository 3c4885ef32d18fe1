"""Data-parallel training on paper: 1 → 1,024 devices, from what one device was measured to do.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --device="NAME" --images_per_s resnet50:BATCH:RATE …

A step on n devices takes the compute time of one device, batch / rate, and the time of one
all-reduce, which sends 2·(n − 1)/n of the reduced bytes through each device's link (ring or
halving-doubling; no algorithm needs less). The bytes are counted in the traced train step. Latency
and contention are left out, so times of communication are lower bounds; nothing is overlapped with
computing, so efficiencies, compute / (compute + communication), are lower bounds in that respect.

The rates are those of `benchmarks/step_time.json`, or of the command line. The report,
`benchmarks/scaling.md`, says for each where it comes from.
"""

import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks import input_throughput, reports, step_time
from benchmarks.whole_step import Row, WholeStep
from errors import UserError

NETWORKS = ("resnet50", "resnet152")
DEVICES = tuple(2**i for i in range(11))
EFFICIENT = 0.9
# Goyal et al. 2017 (1706.02677), figure 1: ResNet-50's error is that of batch 256 up to here.
LARGEST_BATCH = 8192
PAPERS_BATCH = 256
# ILSVRC2012_img_train.tar in TFDS's checksums, over its images.
BYTES_PER_IMAGE = 147_897_477_120 / 1_281_167


class Link(NamedTuple):
    """What connects the devices; bytes/s that a device can send while it receives as many."""

    name: str
    bytes_per_s: float
    devices: int  # that it reaches
    source: str


LINKS = (
    Link("100 Gb/s Ethernet", 12.5e9, 1024, "IEEE 802.3ba's line rate, one port per device"),
    Link(
        "NDR InfiniBand",
        50e9,
        1024,
        "400 Gb/s, one ConnectX-7 port per GPU (NVIDIA DGX H100 user guide, network modules)",
    ),
    Link("TPU v5e ICI", 200e9, 256, "400 GB/s in both directions (cloud.google.com/tpu/docs/v5e)"),
    Link("NVLink 4", 450e9, 8, "900 GB/s in both directions (NVIDIA H100 data sheet)"),
)


class Rate(NamedTuple):
    """What one device was measured to do."""

    network: str
    batch: int  # per device
    images_per_s: float
    source: str

    @classmethod
    def parse(cls, text: str, device: str) -> "Rate":
        """From NETWORK:BATCH:RATE; UserError for anything else."""
        match = re.fullmatch(r"(resnet\d+):(\d+):([\d.]+)", text)
        if not match or not int(match[2]) or not float(match[3]):
            raise UserError(
                f"--images_per_s {text}: expected NETWORK:BATCH:RATE, e.g. resnet50:256:1000."
            )
        source = f"{device}, given on the command line"
        return cls(match[1], int(match[2]), float(match[3]), source)


def measured_rates(records: Iterable[Mapping[str, Any]]) -> list[Rate]:
    """The best rate of this repository for each of `NETWORKS` in the records of `step_time`."""
    rates = {}
    for r in records:
        ours = r["contender"] in (step_time.OURS, step_time.SCANNED) and r["network"] in NETWORKS
        if ours and r["images_per_s"] > getattr(rates.get(r["network"]), "images_per_s", 0):
            source = f"{r['contender']}, {r['dtype']}, step_time.json: {r['measured']}"
            rates[r["network"]] = Rate(r["network"], r["batch"], r["images_per_s"], source)
    return [rates[name] for name in NETWORKS if name in rates]


def all_reduced_bytes(jaxpr: Any) -> int:
    """Bytes that one step sums over the devices: the operands of every `psum` in its jaxpr."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name.startswith("psum"):
            avals = [v.aval for v in equation.invars]
            total += sum(math.prod(a.shape) * a.dtype.itemsize for a in avals)
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            total += all_reduced_bytes(inner) if hasattr(inner, "eqns") else 0
    return total


def sent_bytes(reduced: float, devices: int) -> float:
    """Bytes that each device sends in one all-reduce."""
    return 2 * (devices - 1) / devices * reduced


def communication_s(reduced: float, devices: int, link: Link) -> float | None:
    """Seconds of one all-reduce, or None where the link does not reach so many devices."""
    return None if devices > link.devices else sent_bytes(reduced, devices) / link.bytes_per_s


def efficiency(compute_s: float, communication: float) -> float:
    """The share of a step that is computing."""
    return compute_s / (compute_s + communication)


def decoded_per_core(report: str) -> float | None:
    """Images/s and core of our decoder, from the text of input_throughput.md; None without it."""
    title = re.escape(input_throughput.TITLES["ours_rrc"])
    match = re.search(rf"\| {title} \| [\d.]+ \| ([\d,]+) \|", report)
    return float(match[1].replace(",", "")) if match else None


def _shown(value, form):
    return "" if value is None else format(value, form)


def growing_batch(rate: Rate, reduced: float, per_core: float | None) -> list[str]:
    """Table: every device keeps its batch, so that the global batch grows."""
    compute = rate.batch / rate.images_per_s
    header = ["devices", "global batch", "sent per device, MB", "compute, ms"]
    header += [f"{link.name}: ms, efficiency" for link in LINKS]
    header += ["input, images/s", "input, MB/s", "decoding cores"]
    rows = []
    for n in DEVICES:
        cells = [f"{n:,}", f"{n * rate.batch:,}", f"{sent_bytes(reduced, n) / 1e6:.0f}"]
        cells.append(f"{1e3 * compute:,.1f}")
        for link in LINKS:
            seconds = communication_s(reduced, n, link)
            cells.append(
                "–"
                if seconds is None
                else f"{1e3 * seconds:.2f}, {efficiency(compute, seconds):.1%}"
            )
        demand = n * rate.images_per_s
        cells += [f"{demand:,.0f}", f"{demand * BYTES_PER_IMAGE / 1e6:,.0f}"]
        cells.append(_shown(per_core and math.ceil(demand / per_core), ",d"))
        rows.append(cells)
    return reports.table(header, rows)


def fixed_batch(rate: Rate, reduced: float) -> list[str]:
    """Table: the paper's global batch of 256, divided; a device's rate taken as constant."""
    header = ["devices", "batch per device", "compute, ms"]
    header += [f"{link.name}: efficiency" for link in LINKS]
    rows = []
    for n in DEVICES:
        if n > PAPERS_BATCH:
            break
        compute = PAPERS_BATCH / n / rate.images_per_s
        times = [communication_s(reduced, n, link) for link in LINKS]
        shares = ["–" if t is None else f"{efficiency(compute, t):.1%}" for t in times]
        rows.append([f"{n:,}", PAPERS_BATCH // n, f"{1e3 * compute:,.1f}", *shares])
    return reports.table(header, rows)


def fastest_device(reduced: float, link: Link, batch: int) -> float:
    """Images/s above which a device computes for less than `EFFICIENT` of a step."""
    seconds = communication_s(reduced, link.devices, link)
    return batch * (1 / EFFICIENT - 1) / seconds


def limits(reduced_by_network: Mapping[str, float]) -> list[str]:
    """Table: how fast a device may be before each link costs more than a tenth of the step."""
    header = ["network", "batch per device", *(f"{x.name}, {x.devices:,} devices" for x in LINKS)]
    rows = []
    for network, reduced in reduced_by_network.items():
        for batch in (32, 64, 128, 256):
            speeds = [f"{fastest_device(reduced, link, batch):,.0f}" for link in LINKS]
            rows.append([network, batch, *speeds])
    return reports.table(header, rows)


ADVICE = f"""\
## Where it stops, and what the config offers then

- **The batch.** With b images per device the global batch passes {LARGEST_BATCH:,}, up to which
  Goyal et al. found ResNet-50's error unchanged, at {LARGEST_BATCH:,} / b devices: 256 at 32, 32 at
  256. Up to there `:goyal` scales the learning rate with the batch (`optim.reference_batch`) and
  warms up (`optim.warmup_steps`). Beyond, more devices only pay with fewer images each: the second
  table, with {LARGEST_BATCH:,} in place of {PAPERS_BATCH}.
- **The link.** The all-reduced bytes depend on neither batch nor devices, so every image more per
  device dilutes them. Where memory ends before that, `optim.accumulate_steps=k` computes a batch in
  k parts and reduces once (the global batch grows k-fold all the same), and `model.remat` makes
  room. `model.dtype=bfloat16` shortens the computing only: gradients are summed in float32, so the
  link's share grows. `model.sync_bn=True` adds an all-reduce per BN layer, in both directions.
- **The input.** Its demand grows with the devices and is divided among their hosts: cores
  (`data.num_threads`) and storage must grow alike. Sets that fit (`data.resident=True`) need none.
"""


def report(
    rates: Sequence[Rate], reduced: Mapping[str, float], per_core: float | None
) -> list[str]:
    """Markdown lines: the limits, and for every rate both tables."""
    lines = ["All-reduced per step, counted in the traced step:"]
    lines += [f"- {name}: {size / 1e6:.1f} MB" for name, size in reduced.items()]
    lines += ["", "Links, bytes/s that one device sends while it receives as many:"]
    lines += [f"- {link.name}: {link.bytes_per_s:.3g}, {link.source}" for link in LINKS]
    lines += [
        "",
        f"Input: {BYTES_PER_IMAGE / 1e3:.0f} KB per image (ILSVRC2012_img_train.tar / its images); "
        f"one core decodes {_shown(per_core, ',.0f') or 'an unknown number of'} images/s "
        "(input_throughput.md, random-resized crop).",
        "",
        "## How fast a device may be",
        "",
        f"Images/s of one device up to which it computes for ≥ {EFFICIENT:.0%} of a step, whatever "
        "device it is:",
        "",
        *limits(reduced),
    ]
    for rate in rates:
        lines += [
            "",
            f"## {rate.network}: {rate.images_per_s:,.1f} images/s per device, batch {rate.batch}",
            "",
            f"Measured: {rate.source}",
            "",
            "Batch per device kept, global batch grows:",
            "",
            *growing_batch(rate, reduced[rate.network], per_core),
            "",
            f"Global batch of {PAPERS_BATCH} divided:",
            "",
            *fixed_batch(rate, reduced[rate.network]),
        ]
    measured = {rate.network for rate in rates}
    for name in NETWORKS:
        if name not in measured:
            lines += ["", f"## {name}", "", "Not measured on any device here."]
    return [*lines, "", *ADVICE.splitlines()]


def main(argv: Sequence[str] | None = None) -> None:
    """Counts, computes and writes the report."""
    parser = reports.parser(__file__, __doc__)
    parser.add_argument("--device", default="a device", help="what --images_per_s was measured on")
    parser.add_argument("--images_per_s", nargs="+", metavar="NETWORK:BATCH:RATE")
    parser.add_argument("--step_time", type=Path, default=step_time.RESULTS, help="its records")
    options = parser.parse_args(argv)
    if options.images_per_s:
        rates = [Rate.parse(text, options.device) for text in options.images_per_s]
    else:
        exists = options.step_time.exists()
        rates = measured_rates(json.loads(options.step_time.read_text()) if exists else [])
    names = dict.fromkeys([*NETWORKS, *(rate.network for rate in rates)])
    reduced = {
        name: all_reduced_bytes(WholeStep.of(Row(name, 1)).trace().jaxpr.jaxpr) for name in names
    }
    decoding = input_throughput.REPORT
    per_core = decoded_per_core(decoding.read_text()) if decoding.exists() else None
    where = "Computed " + reports.environment()
    lines = [where, "", *report(rates, reduced, per_core)]
    reports.write(options.report, "Data-parallel training on paper", options.command, lines)


if __name__ == "__main__":
    sys.exit(reports.run(main))
