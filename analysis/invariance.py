"""Translation: what moves with the image, and what stays.

    python -m analysis.invariance --workdir=runs/digits-resnet20-seed0

What the network sees is moved: normalised images. (1) Equivariance: windows are cut out of a mosaic
of images, one some pixels further than the other, and their feature maps compared where both see
the same pixels. At shifts of a whole number of positions of a map, multiples of its stride, they
are equal, but for the border: the positions that the padding reaches. (2) Invariance: images are
moved over zeros, and the change of feature maps, pooled features, logits and answer is measured.
"""

import functools
import operator
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from analysis import subject
from data.normalization import normalize
from run import command, plotting, result
from testing.opened_run import OpenedRun

MAX_SHIFT = 16
LARGEST = 1024  # side of a window in pixels; maps that need a larger one are left out
AXES = {"down": 1, "right": 2}


def shift(images: np.ndarray, pixels: int, axis: int) -> np.ndarray:
    """Moves `[batch, height, width, channels]` down (axis 1) or right (axis 2) over zeros."""
    moved = np.roll(images, pixels, axis)
    moved[(slice(None),) * axis + (slice(pixels),)] = 0
    return moved


def change(moved: Any, reference: Any) -> float:
    """Relative change, ‖moved − reference‖ / ‖reference‖, mean over the batch."""
    difference, reference = np.asarray(moved) - np.asarray(reference), np.asarray(reference)
    axes = tuple(range(1, reference.ndim))
    norm = np.sqrt(np.square(reference).sum(axes))
    return float(np.mean(np.sqrt(np.square(difference).sum(axes)) / np.maximum(norm, 1e-12)))


def equivariance_error(
    moved: np.ndarray, reference: np.ndarray, pixels: int, axis: int, stride: int, border: int
) -> dict[str, float | None]:
    """`change` between a moved image's map and the equally moved map of the image.

    Args:
      moved, reference: `[batch, h, w, channels]`, of the image moved and not.
      pixels: by which it moved along `axis`; the map is moved by the nearest number of positions.
      stride: pixels between the map's positions.
      border: positions at each edge that padding reaches.

    Returns:
      `{'inside', 'border'}`: without and with nothing but the positions that padding reaches in one
      of the two; None where there are none.
    """
    positions, side = (pixels + stride // 2) // stride, reference.shape[axis]
    if positions >= side:
        return {"inside": None, "border": None}
    ours = np.take(moved, np.arange(positions, side), axis)
    theirs = np.take(reference, np.arange(side - positions), axis)
    sides = [size - 2 * border for size in ours.shape[1:3]]
    inside = np.zeros(ours.shape[1:3], bool)
    if min(sides) > 0:
        inside[border : -border or None, border : -border or None] = True
    return {
        name: change(ours[:, mask], theirs[:, mask]) if mask.any() else None
        for name, mask in (("inside", inside), ("border", ~inside))
    }


def reach_of_padding(model: Any, variables: Any, channels: int) -> dict[str, tuple[int, int]]:
    """`{endpoint: (stride, border)}`: pixels per position; positions that padding reaches.

    What pixels reach is found with NaN, which passes through every layer: in a strip of one pixel's
    width, whose first and last S pixels are NaN, S being the largest stride. What the last of them
    reaches is what the padding's innermost pixel reaches, moved by S. Endpoints whose every
    position is reached are left out.
    """
    length = 2 * LARGEST
    strip = jnp.zeros((1, length, 1, channels))

    @jax.jit
    def apply(variables, strip):
        _, endpoints = model.apply(variables, strip, train=False)
        return {name: endpoints[name] for name in subject.stages(endpoints)}

    sizes = {name: x.shape[1] for name, x in jax.eval_shape(apply, variables, strip).items()}
    outer = length // min(sizes.values())
    endpoints = apply(variables, strip.at[:, :outer].set(jnp.nan).at[:, -outer:].set(jnp.nan))
    found = {}
    for name in subject.stages(endpoints):
        reached = np.atleast_1d(np.isnan(np.asarray(endpoints[name], np.float32)).any((0, 2, 3)))
        if not reached.all():
            stride = length // len(reached)
            first, last = int(np.argmin(reached)), int(np.argmin(reached[::-1]))
            found[name] = (stride, max(first, last) - outer // stride)
    return found


def measure_equivariance(
    apply: Callable[[Any], dict[str, Any]],
    images: np.ndarray,
    shifts: Sequence[int],
    reaches: dict[str, tuple[int, int]],
) -> tuple[int, list[dict[str, Any]]]:
    """`equivariance_error` of every endpoint at every shift, means over both directions.

    Args:
      apply: images → endpoints.
      images: normalised, `[number, height, width, channels]`; the tiles of the mosaic.
      shifts: in pixels.
      reaches: of `reach_of_padding`.

    Returns:
      `(side, rows)`: of the windows in pixels; one dictionary per shift: `pixels` and, by endpoint,
      `{'inside', 'border'}`.
    """
    strides = [stride for stride, _ in reaches.values()]
    needed = [stride * (2 * border + 4) + max(shifts) for stride, border in reaches.values()]
    side = max([size for size in needed if size <= LARGEST], default=max(strides) * 4)
    side = -(-side // max(strides)) * max(strides)
    mosaic = subject.mosaic(images, side + max(shifts))
    window = functools.partial(_window, mosaic, side, max(shifts))
    reference = apply(window(0, 1))
    rows = []
    for pixels in tqdm(shifts, desc="equivariance", unit="shift", disable=None):
        each = []
        for axis in AXES.values():
            moved = apply(window(pixels, axis))
            row = {}
            for name, (stride, border) in reaches.items():
                both = moved[name], reference[name]
                row[name] = equivariance_error(*both, pixels, axis, stride, border)
            each.append(row)
        rows.append({"pixels": pixels} | _mean(each))
    return side, rows


def _window(mosaic, side, largest, pixels, axis):
    """A window whose content lies `pixels` further down or right than in that of 0 pixels."""
    corner = [largest, largest]
    corner[axis - 1] -= pixels
    top, left = corner
    return mosaic[:, top : top + side, left : left + side]


def measure_invariance(
    apply: Callable[[Any], dict[str, Any]], images: np.ndarray, shifts: Iterable[int]
) -> list[dict[str, Any]]:
    """Changes of everything at every shift over zeros, means over both directions.

    Args:
      apply: images → endpoints and logits.
      images: normalised, `[number, height, width, channels]`.
      shifts: in pixels, each below the image's sides.

    Returns:
      one dictionary per shift: `pixels`, `same_answer` (a share), and relative changes of `logits`,
      `pooled`, `stem`, `stage1` …, of the maps where they were.
    """
    reference = apply(images)
    rows = []
    for pixels in tqdm(shifts, desc="invariance", unit="shift", disable=None):
        each = []
        for axis in AXES.values():
            moved = apply(shift(images, pixels, axis))
            answers = moved["logits"].argmax(-1) == reference["logits"].argmax(-1)
            changes = {name: change(moved[name], reference[name]) for name in reference}
            each.append({"same_answer": float(answers.mean())} | changes)
        rows.append({"pixels": pixels} | _mean(each))
    return rows


def _mean(rows):
    def mean(values):
        if isinstance(values[0], dict):
            return {key: mean([value[key] for value in values]) for key in values[0]}
        return None if None in values else float(np.mean(values))

    return {key: mean([row[key] for row in rows]) for key in rows[0]}


def measure(run: OpenedRun, images: np.ndarray, largest: int) -> dict[str, Any]:
    """Both measurements on a run's network; `images` uint8, shifts 0 … `largest` pixels.

    Returns:
      `{'side', 'reach', 'equivariance', 'invariance'}`: `reach` of `reach_of_padding`.
    """

    @jax.jit
    def compiled(variables, images):
        logits, endpoints = run.model.apply(variables, images, train=False)
        kept = {name: endpoints[name] for name in (*subject.stages(endpoints), "pooled")}
        return jax.tree.map(lambda x: x.astype(jnp.float32), kept | {"logits": logits})

    def apply(images):
        return jax.tree.map(np.asarray, compiled(run.variables, images))

    x = np.asarray(normalize(jnp.asarray(images), *run.facts.normalization))
    reaches = reach_of_padding(run.model, run.variables, x.shape[-1])
    side, equivariance = measure_equivariance(apply, x, range(largest + 1), reaches)
    within = range(min(largest + 1, *x.shape[1:3]))
    return {
        "side": side,
        "reach": {
            name: dict(zip(("stride", "border"), r, strict=True)) for name, r in reaches.items()
        },
        "equivariance": equivariance,
        "invariance": measure_invariance(apply, x, within),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the options, measures and writes `invariance.json`, `.md`, `.svg` and `.png`."""
    p = subject.parser("invariance", __doc__, images=256)
    p.add_argument("--max_shift", type=command.positive, default=MAX_SHIFT, help="pixels")
    args = p.parse_args(argv)
    runs = subject.open_workdirs(args)
    measured = []
    for run in runs:
        images, _ = subject.load_images(run, args.split, args.images)
        measured.append({"workdir": run.workdir} | measure(run, images, args.max_shift))
    subject.publish(
        args,
        runs,
        "Translation: what moves with the image, and what stays",
        tables(measured),
        _plot(measured),
        measured=measured,
    )


def tables(measured: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Equivariance inside and at the border, and invariance; means and spreads over runs."""
    reach = measured[0]["reach"]
    rows = []
    for i, row in enumerate(measured[0]["equivariance"]):
        cells = [
            subject.spread(one["equivariance"][i][name][part] for one in measured)
            for name in reach
            for part in ("inside", "border")
        ]
        rows.append([row["pixels"], *cells])
    titles = [
        f"{name}, {part} (stride {reach[name]['stride']})"
        for name in reach
        for part in ("inside", "border")
    ]
    heading = "Equivariance: windows of a mosaic, relative difference of the moved maps"
    listed = [result.table(heading, ["shift (pixels)", *titles], rows)]
    stages = subject.stages(measured[0]["invariance"][0])
    names = ["same_answer", "logits", "pooled", *stages]
    rows = [
        [
            row["pixels"],
            *(subject.spread(m["invariance"][i][name] for m in measured) for name in names),
        ]
        for i, row in enumerate(measured[0]["invariance"])
    ]
    columns = ["shift (pixels)", "same answer (share)", *names[1:]]
    heading = "Invariance: images moved over zeros, relative change of what is where it was"
    return [*listed, result.table(heading, columns, rows)]


def _plot(measured):
    figure, axes = plotting.pyplot().subplots(1, 3, figsize=(14, 5), layout="constrained")

    def lines(axis, kind, value, **style):
        of_runs = zip(*(one[kind] for one in measured), strict=True)
        points = [(rows[0]["pixels"], [value(row) for row in rows]) for rows in of_runs]
        points = [(pixels, np.mean(values)) for pixels, values in points if None not in values]
        axis.plot([x for x, _ in points], [y for _, y in points], marker=".", **style)

    reach = measured[0]["reach"]
    for axis, part in zip(axes, ("inside", "border"), strict=False):
        for name in reach:
            label = f"{name} (stride {reach[name]['stride']})"
            style = {"lw": 4, "alpha": 0.4} if name == "stem" else {}  # others may lie on it
            value = functools.partial(lambda name, part, row: row[name][part], name, part)
            lines(axis, "equivariance", value, label=label, **style)
    for name in ("pooled", "logits", "same_answer"):
        style = {"color": "k", "ls": "--"} if name == "same_answer" else {}
        lines(axes[2], "invariance", operator.itemgetter(name), label=name, **style)
    axes[0].set(title="maps moved with the image: inside", ylabel="relative difference")
    axes[1].set(title="the same where padding reaches")
    axes[2].set(title="images moved over zeros", ylabel="relative change")
    for axis in axes:
        axis.set(xlabel="shift (pixels)")
        axis.set_ylim(bottom=-0.03)
        axis.grid(alpha=0.3)
        subject.legend_below(axis)
    return figure


if __name__ == "__main__":
    sys.exit(command.run(main))
