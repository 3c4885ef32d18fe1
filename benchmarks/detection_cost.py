"""Processor time of the costly operations of `detection` against torchvision's kernels for CPUs.

`python -m benchmarks.detection_cost`, where torch and torchvision are installed beside the
project's own requirements, writes benchmarks/detection_cost.md: the medians of calls by turns in
one process, in which torch has one thread.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import reports
from benchmarks.detection_operations import (
    FPN_SCALES,
    OPERATIONS,
    kept,
    random_boxes,
    torchvision_pyramid,
)
from benchmarks.detection_parity import with_torch
from detection import boxes, nms, roi

HEAD = ("operation", "ours, ms", "torchvision, ms", "ratio")
REGIONS = "300 boxes on 38 × 63 × 256"


class Case(NamedTuple):
    """An operation at the size of a detector's test; functions as in `Operation`."""

    name: str
    ours: Callable[..., Any]
    theirs: Callable[..., Any]
    arrays: tuple[np.ndarray, ...]


def cases() -> Iterator[Case]:
    """The operations that take time, on random boxes of an image of about 800 × 1333 pixels."""
    random = np.random.default_rng(0)

    def of_image(n: int) -> np.ndarray:
        return random_boxes(random, n) * np.float32(5)

    def features(height: int, width: int, channels: int) -> np.ndarray:
        return random.standard_normal((height, width, channels)).astype(np.float32)

    def keep(*arrays: jax.Array) -> Any:
        found, scores, valid, levels = arrays
        return nms.keep(found, scores, valid, 0.7, levels, limit=1000)

    def of_torch(name: str, *more: Any) -> Callable[..., Any]:
        import torchvision

        pool = getattr(torchvision.ops, name)
        return lambda f, b: pool(f.permute(2, 0, 1)[None].contiguous(), [b], *more)

    pair = of_image(100), of_image(20_000)
    yield Case("IoU of 100 and 20,000 boxes", boxes.iou, OPERATIONS["iou"].theirs, pair)
    levels = np.repeat(np.arange(5), [1000, 1000, 1000, 1000, 754]).astype(np.int32)
    n = len(levels)
    many = of_image(n), random.random(n).astype(np.float32), np.ones(n, bool), levels
    yield Case(f"NMS of {n:,} boxes on 5 levels to 1,000", keep, kept(0.7)[1], many)
    pooled = features(38, 63, 256), of_image(300)
    align, pool = (7, 1 / 16, 2), (7, 1 / 16)
    yield Case(
        f"RoIAlign 7, 2 samples, {REGIONS}",
        lambda f, b: roi.align(f, b, *align),
        of_torch("roi_align", *align),
        pooled,
    )
    yield Case(
        f"RoI max pooling 7, {REGIONS}",
        lambda f, b: roi.max_pool(f, b, *pool),
        of_torch("roi_pool", *pool),
        pooled,
    )
    maps = [features(200 // 2**i, 336 // 2**i, 64) for i in range(len(FPN_SCALES))]
    yield Case(
        "RoIAlign of a pyramid, 500 boxes, 200 × 336 × 64 the largest map",
        OPERATIONS["RoIAlign of a pyramid"].ours,
        lambda *arrays: torchvision_pyramid(arrays, (800, 1344)),
        (*maps, of_image(500)),
    )


def measured(case: Case, rounds: int) -> tuple[float, float]:
    """Median processor time of a call in milliseconds, ours and torchvision's."""
    import torch

    torch.set_num_threads(1)
    compiled, ours = jax.jit(case.ours), [jnp.asarray(x) for x in case.arrays]
    theirs = [torch.from_numpy(x) for x in case.arrays]
    calls = (lambda: jax.block_until_ready(compiled(*ours)), lambda: case.theirs(*theirs))
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(rounds + 1):
        for call, found in zip(calls, times, strict=True):
            start = time.process_time()
            call()
            if i:  # the first compiles
                found.append(1000 * (time.process_time() - start))
    return statistics.median(times[0]), statistics.median(times[1])


def main(argv: Sequence[str] | None = None) -> None:
    """Prints and writes the table."""
    parser = reports.parser(__file__, __doc__ or "")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each")
    flags, rows, made = parser.parse_args(argv), [], with_torch()
    for case in cases():
        ours, theirs = measured(case, flags.rounds)
        rows.append((case.name, f"{ours:.1f}", f"{theirs:.1f}", f"{ours / theirs:.2f}"))
        print(*rows[-1], sep=", ", flush=True)
    command = f"python -m benchmarks.detection_cost --rounds={flags.rounds}"
    lines = [made, "", *reports.table(HEAD, rows)]
    reports.write(flags.report, "Processor time of detection/", command, lines)


if __name__ == "__main__":
    sys.exit(reports.run(main))
