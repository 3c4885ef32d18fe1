"""Serves train steps of one JAX contender of `benchmarks.step_time`: a number in, seconds out.

python -m benchmarks.step_server resnet20:128 --kind=ours
"""

import argparse
import sys

from benchmarks.peers import PeerResNet
from benchmarks.whole_step import Row, WholeStep
from run import allocator

KINDS = ("ours", "scanned", "flax")


def step_of(row: Row, kind: str, size: int, with_options: bool) -> WholeStep:
    """The step of our network, unrolled or as loops, or of plain Flax modules."""
    if kind != "flax":
        return WholeStep.of(row, size, scan_blocks=kind == "scanned")
    config, size, classes = row.recipe(size)
    shared = {f: config.model[f] for f in ("depth", "stem", "shortcut", "width", "dtype")}
    return WholeStep(config, PeerResNet(num_classes=classes, **shared), size, with_options)


def main() -> None:
    """Compiles, says 'ready', then answers each number of steps with (wall, processor) seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("row", type=Row.parse)
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--size", type=int, default=0)
    parser.add_argument("--with_options", action="store_true", help="for Flax's modules, too")
    options = parser.parse_args()
    if options.kind != "flax" or options.with_options:
        allocator.keep_freed_memory()
    run = step_of(options.row, options.kind, options.size, options.with_options).runner()
    print("ready", flush=True)
    for line in sys.stdin:
        print(*run(int(line)), flush=True)


if __name__ == "__main__":
    main()
