"""Time of a whole train step: this repository, Flax's own modules, torch; alternating in one run.

    python -m benchmarks.step_time --torch_python=/path/to/python-with-torch

Every contender runs in a process of its own, and all take turns; with `--only` one runs alone, so
that a card's memory is its own, and joins the records of the others. Prints a row per network and
contender: images/s, the median wall time of a step, processor time per step (all threads; on a
machine shared with others the steadier figure), achieved operations per second, the share of the
roofline, and the ratio of images/s to that of the Flax modules as they are installed. Ours and the
Flax modules run the same train step, torch the same arithmetic. The rows are kept in
`benchmarks/step_time.json` until they are measured again, and `step_time.md` is written from there.

Operations are twice the multiply-adds of convolutions and head, forward and both gradients. The
roofline of a layer is the larger of operations / peak and bytes / bandwidth, where the bytes are
each input, output and kernel once per pass. The first roofline takes normalisation as free; the
second, "with BN", adds the bytes of its own passes over each convolution's output. Peak and
bandwidth are a GPU's data sheet's, or on a CPU measured in the same run: a 2048³ product and a
256 MB copy.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

import models
from benchmarks import reports
from benchmarks.step_server import words_of
from benchmarks.whole_step import SHARED, Contender, Row, take_turns, timed
from errors import UserError
from models.block import BottleneckBlock
from models.resnet import architecture
from run import command, files

COMMAND = "python -m benchmarks.step_time --torch_python=PYTHON"  # of all records together
RESULTS = Path(__file__).with_suffix(".json")
PEER, OURS = "Flax modules", "this repository"
PEER_AT_ITS_BEST = "Flax modules, Eigen's convolutions"
SCANNED = "this repository, scan_blocks"
TORCH = ("torch", "torch, compiled")
CPU_ROWS = ("resnet20:128", "resnet56:128", "resnet50:8", "resnet152:4")
GPU_ROWS = tuple(
    f"{network}:{dtype}"
    for network in ("resnet50:256", "resnet101:256", "resnet152:256", "resnet20:128")
    for dtype in ("bfloat16", "float32")
)
STEPS_ON_GPU = 20  # one step a turn would measure the host
# What BN and ReLU need besides the convolutions: forward one reading for the statistics, then one
# and a writing; backward two readings for the sums, then two and a writing.
BN_PASSES = 8
# Dense operations/s (bfloat16; float32 as TF32, XLA's default there) and bytes/s, data sheets.
DATA_SHEETS = {
    "H200": (989e12, 494e12, 4.8e12),
    "H100": (989e12, 494e12, 3.35e12),
    "A100": (312e12, 156e12, 1.555e12),
}


def layer_costs(model: nn.Module, shape: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(operations, numbers moved, of these output) of each convolution and the head, forward."""
    costs = []

    def note(call, args, kwargs, context):
        y = call(*args, **kwargs)
        kernel = context.module.variables.get("params", {}).get("kernel")
        if kernel is None or context.method_name != "__call__":
            return y
        if y.ndim == kernel.ndim:  # else the map of logits, which training leaves out
            operations = 2 * y.size * math.prod(kernel.shape[:-1])
            costs.append((operations, args[0].size + y.size + kernel.size, y.size))
        return y

    with nn.intercept_methods(note):
        jax.eval_shape(
            lambda: model.init(jax.random.key(0), jnp.zeros(shape, jnp.float32), train=False)
        )
    return costs


def roofline(
    costs: Sequence[tuple[int, int, int]], peak: float, bandwidth: float, itemsize: int
) -> tuple[int, float, float]:
    """Operations of a train step, its seconds at the roofline, and those with BN.

    Three passes of each layer, two of the stem.
    """
    passes = [2] + [3] * (len(costs) - 1)
    operations = sum(n * ops for n, (ops, *_) in zip(passes, costs, strict=True))
    seconds = sum(
        n * max(ops / peak, numbers * itemsize / bandwidth)
        for n, (ops, numbers, _) in zip(passes, costs, strict=True)
    )
    outputs = sum(output for *_, output in costs[:-1])  # the head has none
    return operations, seconds, seconds + BN_PASSES * outputs * itemsize / bandwidth


def device_limits(dtype: str) -> tuple[float, float, str]:
    """(operations/s, bytes/s, where they come from) of the first device."""
    kind = jax.devices()[0].device_kind
    for name, (half, single, bandwidth) in DATA_SHEETS.items():
        if name in kind:
            return (half if dtype == "bfloat16" else single), bandwidth, f"data sheet of {name}"
    a = jnp.ones((2048, 2048), dtype)
    big = jnp.ones(2**26, jnp.float32)

    def best(f, x):
        f(x).block_until_ready()
        return min(timed(lambda: f(x).block_until_ready())[0] for _ in range(5))

    product, copy = best(jax.jit(lambda a: a @ a), a), best(jax.jit(lambda x: x + 1), big)
    return 2 * 2048**3 / product, 2 * big.nbytes / copy, "measured here"


def torch_options(config: ConfigDict, size: int, classes: int, compiled: bool) -> dict[str, Any]:
    """What `torch_peer.py` is told: the same network, batch and device."""
    m = config.model
    table = architecture(m.stem, m.depth, m.block)
    return {
        "network": {
            "stage_sizes": table.stage_sizes,
            "bottleneck": table.block is BottleneckBlock,
            "stem": m.stem,
            "shortcut": m.shortcut,
            "width": m.width,
            "classes": classes,
        },
        "batch": config.batch_size,
        "size": size,
        "dtype": m.dtype,
        "device": "cuda" if jax.default_backend() == "gpu" else "cpu",
        "compile": compiled,
    }


def contenders(row: Row, options: argparse.Namespace) -> dict[str, list[str]]:
    """Name → command of everything that is compared on one row."""
    kinds = {PEER: "flax", OURS: "ours"}
    if jax.default_backend() == "cpu":
        kinds[PEER_AT_ITS_BEST] = "flax_eigen"
    if options.scan:
        kinds[SCANNED] = "scanned"
    words = {name: words_of(row, kind, options.size) for name, kind in kinds.items()}
    if options.torch_python:
        config, size, classes = row.recipe(options.size)
        script = Path(__file__).with_name("torch_peer.py")
        for name in TORCH:
            told = torch_options(config, size, classes, compiled=name != TORCH[0])
            words[name] = [options.torch_python, str(script), json.dumps(told)]
    if options.only and options.only not in words:
        raise UserError(f"--only={options.only!r}: expected one of {', '.join(words)}.")
    return {options.only: words[options.only]} if options.only else words


def measure(row: Row, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Times the contenders of one row in turns.

    Args:
      row: a `Row`.
      options: `scan`, `only`, `torch_python`, `size`, `repetitions`, `steps` of the command line.

    Returns:
      A list of records, one per contender: what `RESULTS` holds.
    """
    measured = reports.environment()
    config, size, classes = row.recipe(options.size)
    runs = {name: Contender(words) for name, words in contenders(row, options).items()}
    try:
        middle = take_turns(runs, options.repetitions, options.steps)
    finally:
        for run in runs.values():
            run.close()

    peak, bandwidth, origin = device_limits(row.dtype)
    costs = layer_costs(models.create(config.model, classes), (row.batch, size, size, 3))
    operations, ideal, with_bn = roofline(costs, peak, bandwidth, jnp.dtype(row.dtype).itemsize)
    return [
        {
            **row._asdict(),
            "size": size,
            "contender": name,
            "images_per_s": row.batch / wall,
            "step_ms": 1e3 * wall,
            "processor_ms": 1e3 * processor,
            "operations_per_s": operations / wall,
            "roofline": ideal / wall,
            "roofline_with_bn": with_bn / wall,
            "limits": f"{peak:.3g} operations/s, {bandwidth:.3g} B/s, {origin}",
            "turns": f"{options.repetitions} turns of {options.steps} step(s)",
            "measured": measured,
        }
        for name, (wall, processor) in middle.items()
    ]


def report(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table over all records, where and when each row was measured, what was not run."""
    header = ["network", "contender", "images/s", "step, ms", "processor, ms"]
    header += ["operations/s", "roofline", "with BN", "× Flax"]
    rows: list[Sequence[str]] = []
    peers = {_label(r): r["step_ms"] for r in records if r["contender"] == PEER}
    origins = {}
    for r in records:
        label = _label(r)
        origins[f"- {label}: {r['turns']}; limits {r['limits']}; {r['measured']}"] = None
        numbers = (f"{r['images_per_s']:.1f}", f"{r['step_ms']:.0f}", f"{r['processor_ms']:.0f}")
        shares = f"{r['operations_per_s']:.3g}", f"{r['roofline']:.0%}"
        with_bn = f"{r['roofline_with_bn']:.0%}"
        ratio = f"{peers[label] / r['step_ms']:.2f}" if label in peers else ""
        rows.append((label, r["contender"], *numbers, *shares, with_bn, ratio))
    run = {f"{r['network']}:{r['batch']}:{r['dtype']}" for r in records}
    for text in GPU_ROWS:
        if text not in run:
            rows.append((text.replace(":", ", "), "all, on a GPU", "not run", *[""] * 6))
    return [*reports.table(header, rows), "", *origins]


def _label(record):
    return f"{record['network']}, {record['batch']} × {record['size']}², {record['dtype']}"


def main(argv: Sequence[str] | None = None) -> None:
    """Measures the rows, keeps the records and writes the report."""
    parser = command.Parser("python -m benchmarks.step_time", __doc__)
    parser.add_argument("--rows", nargs="+", help="NETWORK:BATCH[:DTYPE]; default: the device's")
    parser.add_argument("--repetitions", type=int, default=5, help="turns of each contender")
    parser.add_argument("--steps", type=int, default=0, help="per turn; 0: 20 on a GPU, else 1")
    parser.add_argument("--torch_python", help="an interpreter that has torch")
    parser.add_argument("--noscan", dest="scan", action="store_false", help="leave out scan_blocks")
    parser.add_argument("--only", default="", help="one contender by its name in the table")
    parser.add_argument("--size", type=int, default=0, help="of images; 0: 224, or 32 for 6n+2")
    parser.add_argument("--results", type=Path, default=RESULTS, help="records; report beside it")
    options = parser.parse_args(argv)
    os.environ.update(SHARED)  # before JAX starts
    options.steps = options.steps or (STEPS_ON_GPU if jax.default_backend() == "gpu" else 1)
    records = json.loads(options.results.read_text()) if options.results.exists() else []
    identity = ("network", "batch", "size", "dtype", *["contender"] * bool(options.only))
    for text in options.rows or (GPU_ROWS if jax.default_backend() == "gpu" else CPU_ROWS):
        new = measure(Row.parse(text), options)
        records = reports.updated(records, new, identity)
        files.write_text(options.results, json.dumps(records, indent=1) + "\n")
        path = options.results.with_suffix(".md")
        reports.write(path, "Time of a train step", COMMAND, report(records))


if __name__ == "__main__":
    sys.exit(reports.run(main))
