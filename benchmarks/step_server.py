"""Serves train steps of one JAX contender of `benchmarks.step_time`: a number in, seconds out.

python -m benchmarks.step_server resnet20:128 --kind=ours
"""

import argparse
import sys

from benchmarks.peers import PeerResNet
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


def step_of(row: Row, kind: str, size: int) -> WholeStep:
    """The step of our network, unrolled or as loops, or of plain Flax modules."""
    if kind in ("ours", "scanned"):
        return WholeStep.of(row, size, scan_blocks=kind == "scanned")
    config, size, classes = row.recipe(size)
    shared = {f: config.model[f] for f in ("depth", "stem", "shortcut", "width", "dtype")}
    options = EIGEN if kind == "flax_eigen" else None
    return WholeStep(config, PeerResNet(num_classes=classes, **shared), size, options)


def main() -> None:
    """Compiles, says 'ready', then answers each number of steps with (wall, processor) seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("row", type=Row.parse)
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--size", type=int, default=0)
    options = parser.parse_args()
    if options.kind != "flax":  # which is as installed; its twin has the best that we know
        allocator.keep_freed_memory()
    run = step_of(options.row, options.kind, options.size).runner()
    print("ready", flush=True)
    for line in sys.stdin:
        print(*run(int(line)), flush=True)


if __name__ == "__main__":
    main()
