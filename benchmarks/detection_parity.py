"""The operations of `detection` beside torchvision's, on random cases.

`python -m benchmarks.detection_parity`, where torch and torchvision are installed beside the
project's own requirements, writes benchmarks/detection_parity.md: the largest difference of each.
`--store` renews the few numbers of torchvision's that the tests compare with.
"""

import pathlib
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np

from benchmarks import reports
from benchmarks.detection_operations import OPERATIONS

STORED = pathlib.Path(__file__).parents[1] / "tests/support/files/detection_operations.npz"
NUMBERS = 60  # of a result that are stored
HEAD = ("operation", "cases", "largest difference")


def case(name: str, seed: int, n: int) -> tuple[np.ndarray, ...]:
    """The arrays of a case of an operation."""
    return OPERATIONS[name].make(np.random.default_rng([seed, *name.encode()]), n)


def theirs(name: str, arrays: tuple[np.ndarray, ...]) -> list[np.ndarray]:
    """torchvision's results."""
    import torch

    found = OPERATIONS[name].theirs(*map(torch.from_numpy, arrays))
    return [np.asarray(x) for x in (found if isinstance(found, tuple) else (found,))]


def difference(ours: Any, expected: list[np.ndarray]) -> float:
    """The largest difference, of numbers above 1 as a share of them; NaN and NaN are equal.

    Of several numbers of a box or position it is a share of the largest: a side of 10,000 pixels,
    rounded, is no better known where the box begins near 0.
    """
    largest = 0.0
    for a, b in zip(jax.tree.leaves(ours), expected, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if a.shape != b.shape or (np.isfinite(a) != np.isfinite(b)).any():
            return float("inf")
        finite = np.isfinite(b)
        size = np.where(finite, np.abs(b), 0)
        size = size.max(-1, keepdims=True, initial=1) if b.ndim > 1 else np.maximum(size, 1)
        apart = np.where(finite, a, 0) - np.where(finite, b, 0)
        largest = max(largest, float((np.abs(apart) / size).max(initial=0)))
    return largest


def sample(array: Any) -> np.ndarray:
    """About `NUMBERS` numbers spread over an array."""
    flat = np.asarray(array).reshape(-1)
    return flat[:: max(1, flat.size // NUMBERS)]


def store(n: int = 40) -> None:
    """Writes torchvision's results of the first case of n boxes of each operation."""
    stored: dict[str, Any] = {}
    for name, operation in OPERATIONS.items():
        for i, array in enumerate(theirs(name, case(name, 0, n))):
            whole = array.astype(np.int16) if operation.exact else sample(array)
            stored[f"{name}/{i}"] = whole
    np.savez_compressed(STORED, **stored)
    print(STORED, STORED.stat().st_size, "bytes")


def with_torch() -> str:
    """`reports.environment` with torch's versions."""
    versions = [f"{name} {metadata.version(name)}" for name in ("torch", "torchvision")]
    return f"{reports.environment().removesuffix('.')}, {', '.join(versions)}."


def parity(seeds: int, n: int) -> list[tuple[str, ...]]:
    """Rows of a table: operation, cases of n boxes, largest difference."""
    rows: list[tuple[str, ...]] = []
    for name, operation in OPERATIONS.items():
        ours, largest = jax.jit(operation.ours), 0.0
        for seed in range(seeds):
            arrays = case(name, seed, n)
            apart = difference(ours(*arrays), theirs(name, arrays))
            largest = max(largest, apart)
        said = "equal" if not largest else f"{largest:.1e}"
        rows.append((name, f"{seeds:,} × {n} boxes", said))
        print(*rows[-1], sep=", ", flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Prints and writes the table, or stores the tests' numbers."""
    parser = reports.parser(__file__, __doc__ or "")
    parser.add_argument("--store", action="store_true", help="renew the numbers of the tests")
    parser.add_argument("--seeds", type=int, default=1000, help="cases of each operation")
    parser.add_argument("--boxes", type=int, default=40, help="boxes of a case")
    flags = parser.parse_args(argv)
    if flags.store:
        store()
        return
    made = with_torch()
    rows = parity(flags.seeds, flags.boxes)
    command = f"python -m benchmarks.detection_parity --seeds={flags.seeds} --boxes={flags.boxes}"
    lines = [made, "", *reports.table(HEAD, rows)]
    reports.write(flags.report, "detection/ beside torchvision", command, lines)


if __name__ == "__main__":
    sys.exit(reports.run(main))
