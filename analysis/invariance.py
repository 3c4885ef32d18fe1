"""Translation: what changes in the network when the image moves by 0 … 16 pixels.

    python -m analysis.invariance --workdir=runs/digits-resnet20-seed0

Images move right and down over black. Invariance: how far logits and pooled features stay, and how
often the answer does. Equivariance: how far feature maps move with the image; it is measured at
shifts of whole positions of each map, on the part that both maps have.
"""

import functools
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from analysis import subject
from data.normalization import normalize
from run import command, plotting
from testing.opened_run import OpenedRun

MAX_SHIFT = 16
AXES = {"down": 1, "right": 2}


def shift(images: np.ndarray, pixels: int, axis: int) -> np.ndarray:
    """Moves `[batch, height, width, channels]` down (axis 1) or right (axis 2) over zeros."""
    if pixels == 0:
        return images
    moved = np.zeros_like(images)
    size = images.shape[axis]
    target, source = [slice(None)] * 4, [slice(None)] * 4
    target[axis], source[axis] = slice(pixels, None), slice(0, size - pixels)
    moved[tuple(target)] = images[tuple(source)]
    return moved


def change(moved: Any, reference: Any) -> float:
    """Relative change, ‖moved − reference‖ / ‖reference‖, mean over the batch."""
    difference, reference = np.asarray(moved) - np.asarray(reference), np.asarray(reference)
    axes = tuple(range(1, reference.ndim))
    norm = np.sqrt(np.square(reference).sum(axes))
    return float(np.mean(np.sqrt(np.square(difference).sum(axes)) / np.maximum(norm, 1e-12)))


def equivariance_error(
    moved: np.ndarray, reference: np.ndarray, pixels: int, axis: int, image_side: int
) -> float | None:
    """`change` between a moved image's map and the equally moved map of the image.

    Returns:
      None when the shift is not a whole number of positions or leaves no common part.
    """
    side = reference.shape[axis]
    stride = -(-image_side // side)
    positions, rest = divmod(pixels, stride)
    if rest or positions >= side:
        return None
    common = side - positions
    ours = np.take(moved, np.arange(positions, side), axis=axis)
    return change(ours, np.take(reference, np.arange(common), axis=axis))


def measure(run: OpenedRun, images: np.ndarray, shifts: Iterable[int]) -> list[dict[str, Any]]:
    """Changes of every endpoint at every shift, means over both directions.

    Args:
      run: with the network and its variables.
      images: uint8 `[number, height, width, channels]`.
      shifts: pixels, each below the image's sides.

    Returns:
      one dictionary per shift: `pixels`, `logits`, `pooled` (relative changes), `same_answer` (a
      share) and `stem`, `stage1` … as `{'invariance', 'equivariance'}` (relative changes).
    """
    step = jax.jit(functools.partial(_endpoints, run))
    reference = jax.tree.map(np.asarray, step(run.variables, images))
    rows = []
    for pixels in tqdm(shifts, desc="shifts", unit="shift", disable=None):
        each = []
        for axis in AXES.values():
            moved = step(run.variables, shift(images, pixels, axis))
            moved = jax.tree.map(np.asarray, moved)
            each.append(_compare(moved, reference, pixels, axis, images.shape[axis]))
        rows.append({"pixels": pixels} | _mean(each))
    return rows


def _endpoints(run, variables, images):
    x = normalize(images, *run.facts.normalization)
    logits, endpoints = run.model.apply(variables, x, train=False)
    kept = {name: endpoints[name].astype(jnp.float32) for name in subject.stages(endpoints)}
    return kept | {"pooled": endpoints["pooled"], "logits": logits}


def _compare(moved, reference, pixels, axis, image_side):
    row = {name: change(moved[name], reference[name]) for name in ("logits", "pooled")}
    answers = moved["logits"].argmax(-1) == reference["logits"].argmax(-1)
    row["same_answer"] = float(answers.mean())
    for name in subject.stages(reference):
        row[name] = {
            "invariance": change(moved[name], reference[name]),
            "equivariance": equivariance_error(
                moved[name], reference[name], pixels, axis, image_side
            ),
        }
    return row


def _mean(rows):
    def mean(values):
        if isinstance(values[0], dict):
            return {key: mean([value[key] for value in values]) for key in values[0]}
        return None if None in values else float(np.mean(values))

    return {key: mean([row[key] for row in rows]) for key in rows[0]}


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the options, measures and writes `invariance.json` and `invariance.png`."""
    p = subject.parser("invariance", __doc__, images=256)
    p.add_argument("--max_shift", type=command.positive, default=MAX_SHIFT, help="pixels")
    args = p.parse_args(argv)
    run, out = subject.open_workdir(args)
    images, _ = subject.load_images(run, args.split, args.images)
    largest = min(args.max_shift, *(side - 1 for side in images.shape[1:3]))
    rows = measure(run, images, range(largest + 1))
    content = {"workdir": args.workdir, "images": len(images), "shifts": rows}
    path = subject.write(out / "invariance.json", args, content)
    picture = _plot(rows, out)
    print("pixels  same answer  logits  pooled   (relative changes)")
    for row in rows:
        print(
            f"{row['pixels']:6d} {100 * row['same_answer']:10.1f} % "
            f"{row['logits']:7.3f} {row['pooled']:7.3f}"
        )
    print(f"{path}, {picture}")


def _plot(rows, out):
    figure, axes = plotting.pyplot().subplots(1, 3, figsize=(14, 4), layout="constrained")
    pixels = [row["pixels"] for row in rows]
    for name in ("logits", "pooled"):
        axes[0].plot(pixels, [row[name] for row in rows], marker=".", label=name)
    axes[0].plot(pixels, [row["same_answer"] for row in rows], "k--", label="same answer (share)")
    axes[0].set(title="invariance", ylabel="relative change")
    for axis, kind in zip(axes[1:], ("invariance", "equivariance"), strict=True):
        for name in subject.stages(rows[0]):
            points = [(r["pixels"], r[name][kind]) for r in rows if r[name][kind] is not None]
            axis.plot(*zip(*points, strict=True), marker=".", label=name)
    axes[1].set(title="feature maps where they were")
    axes[2].set(title="feature maps moved with the image")
    for axis in axes:
        axis.set(xlabel="shift (pixels)")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    return plotting.save(figure, out / "invariance.png", dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    sys.exit(command.run(main))
