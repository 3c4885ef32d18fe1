"""Figures in the paper's manner: thin lines for training error, bold ones for test error."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from run import plotting

COLOURS = ("#c8a000", "#00a0c8", "#c03030", "#303030", "#7a3fa0", "#2e8b57")


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
    """Draws the curves of `names` (means over seeds; each seed's test curve faintly).

    Args:
      axis: matplotlib axes.
      runs: as `experiment.train_grid` returns them.
      names: in the order of their colours.
      title: of the panel.
    """
    for colour, name in zip(COLOURS, names, strict=False):
        mine = [run for run in runs if run["name"] == name]
        thin, bold = mean_curve(mine, "train"), mean_curve(mine, "validation")
        if thin:
            axis.plot(*zip(*thin, strict=True), color=colour, lw=0.8, ls="--")
        for run in mine if len(mine) > 1 else ():
            points = run["curves"]["validation"]
            if points:
                axis.plot(*zip(*points, strict=True), color=colour, lw=0.5, alpha=0.35)
        if bold:
            axis.plot(*zip(*bold, strict=True), color=colour, lw=2.4, label=name)
    axis.set(xlabel="step", ylabel="error (%)", title=title)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.25)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize="small")
