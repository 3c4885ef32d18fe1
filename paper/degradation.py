"""The degradation experiment: plain against residual networks over depths (section 4.2)."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paper import experiment, numbers, plots
from run import plotting, result

PAPER: dict[str, Any] = numbers.TABLE6 | {"plain110": f"> {numbers.PLAIN110_AT_LEAST:.0f}"}

Panels = Sequence[tuple[str, Callable[[str], bool]]]


def entries(families: Sequence[str], depths: Sequence[int]) -> list[experiment.Entry]:
    """The grid: every depth of every family ('plain', 'resnet'), shortcuts without parameters.

    Option A is what the CIFAR networks have anyway, and figure 4's (section 4.1): the plain and the
    residual network of a depth have the same parameters.
    """
    return [
        experiment.Entry(f"{family}{depth}", f"{family}{depth}", {"shortcut": "A"})
        for family in families
        for depth in depths
    ]


def publish(args: argparse.Namespace, families: Sequence[str], title: str, panels: Panels) -> None:
    """Trains the grid and publishes it with a figure `<out>/<args.name>.svg`.

    Args:
      args: parsed options of `experiment.parser` with depths.
      families: of `entries`.
      title: of the page.
      panels: `[(title of the panel, function name → whether it is drawn there)]`.
    """
    runs, notes = experiment.train_grid(args, entries(families, args.depths))
    summary = experiment.summarise(runs)
    figure = draw(runs, list(summary), panels, args)
    result.publish(
        args,
        title,
        result.header(args, notes, runs),
        tables(list(summary), summary, args.depths),
        figures=[figure],
        summary=summary,
        runs=runs,
    )


def degradation(summary: Mapping[str, Any], depths: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Deepest minus shallowest, in points, per family: `{'plain': {'test', 'train'}, …}`.

    Positive: the deeper network is worse. On training error too, that is degradation and not
    overfitting.
    """
    found = {}
    for family in ("plain", "resnet"):
        ends = [summary.get(f"{family}{depth}") for depth in (min(depths), max(depths))]
        if all(ends) and min(depths) < max(depths):
            shallow, deep = ends
            found[family] = {
                "shallow": min(depths),
                "deep": max(depths),
                "test": deep["mean"] - shallow["mean"],
                "train": deep["train"] - shallow["train"],
            }
    return found


def tables(
    names: Sequence[str], summary: Mapping[str, Any], depths: Sequence[int]
) -> list[dict[str, Any]]:
    """Every network beside the paper's CIFAR-10 error; what depth adds, deepest − shallowest."""
    rows = []
    for name in names:
        mine, paper = summary.get(name), PAPER.get(name)
        train = mine["train"] if mine else None
        rows.append([name, train, result.ours(mine), paper, result.difference(mine, paper)])
    columns = ["network", "training error (%)", "test error (%)", "paper (%)", "difference"]
    listed = [result.table("", columns, rows)]
    gaps = [
        [family, f"{g['shallow']} → {g['deep']}", f"{g['train']:+.2f}", f"{g['test']:+.2f}"]
        for family, g in degradation(summary, depths).items()
    ]
    if gaps:
        columns = ["family", "depth", "training error (points)", "test error (points)"]
        listed.append(result.table("What depth adds to the error", columns, gaps))
    return listed


def draw(
    runs: Sequence[dict[str, Any]], names: Sequence[str], panels: Panels, args: argparse.Namespace
) -> str:
    """Draws one panel of error curves each into `<args.out>/<args.name>.svg`; returns its name."""
    figure, axes = plotting.pyplot().subplots(
        1, len(panels), figsize=(5 * len(panels), 4), sharey=True, squeeze=False
    )
    for axis, (title, shown) in zip(axes[0], panels, strict=True):
        plots.error_curves(axis, runs, [n for n in names if shown(n)], title)
    return plots.save(figure, args.out, args.name)
