"""Figures in the paper's manner: thin lines for training error, bold ones for test error."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from run import plotting

COLOURS = ("#c8a000", "#00a0c8", "#c03030", "#303030", "#7a3fa0", "#2e8b57")
CAPTION = (
    "Curves are means over seeds. Thin dashed: error on the augmented training batches since the "
    "point before, in training mode. Bold: error on the images of the curve that the header names "
    "(one run each: faint). Crosses: error on the training images after the last step, not "
    "augmented, in evaluation mode; this is the training error of the tables."
)
GREY = "#777777"


def save(figure: Any, out: str, name: str) -> str:
    """Writes `<out>/<name>.svg` and returns its file name."""
    path = Path(out, f"{name}.svg")
    return plotting.save(figure, path, metadata={"Date": None}, bbox_inches="tight").name


def mean_curve(runs: Sequence[dict[str, Any]], split: str) -> list[tuple[int, float]]:
    """Pointwise mean over runs of `[[step, error], …]`; the runs have the same steps."""
    curves = [run["curves"][split] for run in runs if run["curves"][split]]
    if not curves:
        return []
    length = min(map(len, curves))
    return [
        (curves[0][i][0], sum(curve[i][1] for curve in curves) / len(curves)) for i in range(length)
    ]


def error_curves(
    axis: Any, runs: Sequence[dict[str, Any]], names: Sequence[str], title: str
) -> None:
    """Draws the curves of `names` as CAPTION says, with a legend that says it too.

    Args:
      axis: matplotlib axes.
      runs: as `experiment.train_grid` returns them.
      names: in the order of their colours; what follows a comma is not in the legend.
      title: of the panel.
    """
    for colour, name in zip(itertools.cycle(COLOURS), names, strict=False):
        mine = [run for run in runs if run["name"] == name]
        thin, bold = mean_curve(mine, "train"), mean_curve(mine, "validation")
        if thin:
            axis.plot(*zip(*thin, strict=True), color=colour, lw=0.8, ls="--")
        for run in mine:
            points = run["curves"]["validation"]
            if points and len(mine) > 1:
                axis.plot(*zip(*points, strict=True), color=colour, lw=0.5, alpha=0.35)
            if points:
                clean = 100 * run["training"]["top1_error"]
                axis.plot(points[-1][0], clean, "x", color=colour, ms=6, clip_on=False, zorder=3)
        if bold:
            label = name.partition(",")[0]
            axis.plot(*zip(*bold, strict=True), color=colour, lw=2.4, label=label)
    axis.plot([], [], color=GREY, lw=0.8, ls="--", label="training batches (augmented)")
    axis.plot([], [], color=GREY, lw=2.4, label="test")
    axis.plot([], [], "x", color=GREY, label="training images (clean), end")
    axis.set(xlabel="step", ylabel="error (%)", title=title)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.25)
    axis.legend(fontsize="x-small")


def over_depths(
    axis: Any,
    runs: Sequence[dict[str, Any]],
    families: Mapping[str, Sequence[str]],
    depths: Sequence[int],
    title: str,
) -> None:
    """Draws the clean training error at the end over depths: a cross a run, a line of the means.

    Args:
      axis: matplotlib axes.
      runs: as `experiment.train_grid` returns them.
      families: name in the legend → names of its networks, one for every depth.
      depths: of the networks.
      title: of the panel.
    """
    for colour, (family, names) in zip(COLOURS[2:], families.items(), strict=False):
        means = []
        for depth, name in zip(depths, names, strict=True):
            errors = [100 * r["training"]["top1_error"] for r in runs if r["name"] == name]
            axis.plot([depth] * len(errors), errors, "x", color=colour, ms=5, alpha=0.7)
            means.append(sum(errors) / len(errors))
        axis.plot(depths, means, color=colour, lw=2, label=f"{family}, mean")
    axis.plot([], [], "x", color=GREY, label="one run")
    axis.set_yscale("symlog", linthresh=1)  # errors of 0 are among them
    axis.set(xlabel="layers", ylabel="error on the training images (%)", title=title)
    axis.set_xticks(depths, map(str, depths))
    axis.set_ylim(0, 100)
    axis.grid(alpha=0.25)
    axis.legend(fontsize="x-small")
