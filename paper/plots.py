"""Figures in the paper's manner: thin lines for training error, bold ones for test error."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from run import files, plotting

COLOURS = ("#c8a000", "#00a0c8", "#c03030", "#303030", "#7a3fa0", "#2e8b57")
CAPTION = (
    "Curves are means over seeds. Thin dashed: error on the augmented training batches since the "
    "point before, in training mode. Bold: error on the images of the curve that the header names "
    "(faint: one run each). Crosses: error on the training images after the last step, not "
    "augmented, in evaluation mode; this is the training error of the tables. Last panel: "
    "the loss on the same images, on a logarithmic axis."
)
GREY = "#777777"


def save(figure: Any, out: str, name: str) -> str:
    """Writes `<out>/<name>.svg` and returns its file name."""
    path = files.at(out, f"{name}.svg")
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
    """Draws the curves of `names` as CAPTION and the legend of `legend` say.

    Args:
      axis: matplotlib axes.
      runs: as `experiment.train_grid` returns them.
      names: in the order of their colours.
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
            axis.plot(*zip(*bold, strict=True), color=colour, lw=2.4)
    axis.set(xlabel="step", ylabel="error (%)", title=title)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.25)


def legend(figure: Any, labels: Sequence[str], bold: str) -> None:
    """One legend for the panels of `error_curves`, below them: colours, and kinds of lines.

    Args:
      figure: of matplotlib, with the constrained layout.
      labels: of the colours.
      bold: what the bold curves are of, e.g. 'test'.
    """
    from matplotlib.lines import Line2D  # slow to import

    colours = zip(itertools.cycle(COLOURS), labels, strict=False)
    handles = [Line2D([], [], color=colour, lw=4, label=label) for colour, label in colours]
    handles += [
        Line2D([], [], color=GREY, lw=2.4, label=f"{bold} (mean; faint: one run)"),
        Line2D([], [], color=GREY, lw=0.8, ls="--", label="training batches, augmented"),
        Line2D([], [], color=GREY, ls="", marker="x", label="training images as they are, one run"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(labels) + 3, fontsize=9)


def every_error(runs: Sequence[dict[str, Any]], out: str, name: str) -> list[str]:
    """Draws `<out>/<name>.svg`: a row of marks for each network, one for a run's error.

    Args:
      runs: as `experiment.train_grid` returns them.
      out, name: folder and name of the figure.

    Returns:
      its file name, or nothing without matplotlib.
    """
    if not plotting.can_draw(f"{name}.svg"):
        return []
    names = list(dict.fromkeys(run["name"] for run in runs))
    figure, axis = plotting.pyplot().subplots(
        figsize=(8, 1.2 + 0.3 * len(names)), layout="constrained"
    )
    for part, marker, label in (
        ("final", "o", "test, one run"),
        ("training", "x", "training images as they are, one run"),
    ):
        errors = [100 * run[part]["top1_error"] for run in runs]
        places = [names.index(run["name"]) for run in runs]
        axis.plot(errors, places, marker, fillstyle="none", label=label, clip_on=False)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlim(left=0)
    axis.set_xlabel("error (%)")
    axis.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    return [save(figure, out, name)]


def over_depths(
    axis: Any,
    runs: Sequence[dict[str, Any]],
    families: Mapping[str, Sequence[str]],
    depths: Sequence[int],
    title: str,
) -> None:
    """Draws the clean training loss at the end over depths: a cross a run, a line of the means.

    Args:
      axis: matplotlib axes.
      runs: as `experiment.train_grid` returns them.
      families: name in the legend → names of its networks, one for every depth.
      depths: of the networks.
      title: of the panel.
    """
    for colour, (family, names) in zip(COLOURS[4:], families.items(), strict=False):
        means = []
        for depth, name in zip(depths, names, strict=True):
            losses = [run["training"]["loss"] for run in runs if run["name"] == name]
            axis.plot([depth] * len(losses), losses, "x", color=colour, ms=5, alpha=0.7)
            means.append(sum(losses) / len(losses))
        axis.plot(depths, means, color=colour, lw=2, label=f"{family}, mean")
    axis.plot([], [], "x", color=GREY, label="one run")
    axis.set_yscale("log")
    axis.set(xlabel="layers", ylabel="loss on the training images (nats)", title=title)
    axis.set_xticks(depths, map(str, depths))
    axis.grid(alpha=0.25)
    axis.legend(fontsize="x-small")
