"""Serves train steps of one JAX contender of `benchmarks.step_time`: a number in, seconds out.

python -m benchmarks.step_server resnet20:128 --kind=ours
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.whole_step import Row, WholeStep
from run import allocator

KINDS = ("ours", "scanned", "flax", "flax_eigen")
# XLA:CPU has two libraries of convolutions and prefers YNNPACK's. With this, Eigen's run: the value
# replaces the default, which is these two and LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION.
EIGEN = {
    "xla_cpu_experimental_ynn_fusion_type": (
        "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    )
}


def words_of(row: Row, kind: str, size: int = 0, more: Sequence[str] = ()) -> list[str]:
    """The command that serves steps of a kind."""
    words = [sys.executable, "-m", "benchmarks.step_server", ":".join(map(str, row))]
    return [*words, f"--kind={kind}", f"--size={size}", *more]


def step_of(row: Row, kind: str, size: int, fields: Sequence[str] = ()) -> WholeStep:
    """The step of our network, unrolled or as loops, or of plain Flax modules.

    `fields` of `config.model` are switched on.
    """
    if kind in ("ours", "scanned"):
        switched: dict[str, Any] = {"scan_blocks": kind == "scanned"} | dict.fromkeys(fields, True)
        return WholeStep.of(row, size, **switched)
    return WholeStep.of_flax(row, size, options=EIGEN if kind == "flax_eigen" else None)


def main() -> None:
    """Compiles, says 'ready', then answers each number of steps with (wall, processor) seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("row", type=Row.parse)
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--size", type=int, default=0)
    parser.add_argument("--fields", nargs="*", default=())
    options = parser.parse_args()
    if options.kind != "flax":  # which is as installed; its twin has the best that we know
        allocator.keep_freed_memory()
    run = step_of(options.row, options.kind, options.size, options.fields).runner()
    print("ready", flush=True)
    for line in sys.stdin:
        print(*run(int(line)), flush=True)


if __name__ == "__main__":
    main()
