"""The degradation experiment: plain against residual networks over depths (section 4.2)."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from paper import experiment, numbers, plots
from run import plotting, result

PAPER: dict[str, Any] = numbers.TABLE6 | {"plain110": f"> {numbers.PLAIN110_AT_LEAST:.0f}"}
FAMILIES = {"plain": "plain", "resnet": "residual"}  # names of networks begin so; in words
COMPARED = (
    "error and loss on the training images, not augmented, in evaluation mode, after the last "
    "step: every deeper network against the shallowest of its family, at every rate apart, over "
    "all seeds. All runs are reported; no rate, step or seed is chosen afterwards. "
)
# The digits are too few and too easy for it; elsewhere test error may fall with depth (table 6).
TEST_ERRORS = {"digits": "Test errors stand beside and decide nothing"}
TEST_ERRORS_TOO = "Test errors of residual networks are compared likewise, whichever way they go"


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


def compared(dataset: str) -> str:
    """What a claim about this data set rests on, as it was written down before the runs."""
    return COMPARED + TEST_ERRORS.get(dataset, TEST_ERRORS_TOO)


def publish(args: argparse.Namespace, families: Sequence[str], title: str) -> None:
    """Trains the grid and publishes it with a figure `<out>/<args.name>.svg`.

    Args:
      args: parsed options of `experiment.parser` with depths.
      families: of `entries`.
      title: of the page.
    """
    runs, notes = experiment.train_grid(args, entries(families, args.depths))
    summary = experiment.summarise(runs)
    result.publish(
        args,
        title,
        result.header(args, notes, runs, compared=compared(args.dataset)),
        [
            *tables(list(summary), summary, args.dataset == numbers.TABLE6_DATASET),
            *depth_tables(runs, args.depths, experiment.suffixes(args)),
            every_run(runs),
        ],
        figures=draw(runs, args),
        remarks=[plots.CAPTION],
        summary=summary,
        runs=runs,
    )


def tables(
    names: Sequence[str], summary: Mapping[str, Any], same_data: bool = True
) -> list[dict[str, Any]]:
    """Every network beside the paper's CIFAR-10 error; a difference only where `same_data`."""
    rows = []
    for name in names:
        mine, paper = summary.get(name), PAPER.get(name.partition(",")[0])
        train = result.ours(mine["train"]) if mine else None
        loss = result.ours(mine["loss"], digits=4) if mine else None
        gap = result.difference(mine, paper) if same_data else None
        rows.append([name, train, loss, result.ours(mine), paper, gap])
    columns = ["network", "training error (%)", "training loss", "test error (%)"]
    return [result.table("", [*columns, "paper, CIFAR-10 (%)", "difference"], rows)]


def depth_tables(
    runs: Sequence[Mapping[str, Any]], depths: Sequence[int], suffixes: Sequence[str] = ("",)
) -> list[dict[str, Any]]:
    """What depth adds: every deeper network minus the shallowest of its family, seed by seed.

    Positive: the deeper network is worse. On training error too, that is degradation and not
    overfitting.
    """
    shallow, *deeper = sorted(set(depths))
    rows = []
    for suffix in suffixes:
        for family in FAMILIES:
            for depth in deeper:
                pairs = _by_seed(runs, f"{family}{shallow}{suffix}", f"{family}{depth}{suffix}")
                if not pairs:
                    continue
                gaps = [
                    [b[part][key] - a[part][key] for a, b in pairs]
                    for part, key in (
                        ("training", "top1_error"),
                        ("training", "loss"),
                        ("final", "top1_error"),
                    )
                ]
                error, loss, test = (sum(values) / len(values) for values in gaps)
                worse = [sum(gap > 0 for gap in values) for values in gaps]
                rows.append(
                    [f"{FAMILIES[family]}{suffix}", f"{shallow} → {depth}"]
                    + [f"{100 * error:+.2f}", f"{loss:+.4f}", f"{100 * test:+.2f}"]
                    + [f"{number} of {len(pairs)}" for number in worse]
                )
    columns = ["family", "depth", "training error (points)", "training loss", "test error (points)"]
    columns += ["seeds with more training error", "with more training loss"]
    columns += ["with more test error"]
    heading = "What depth adds (mean over seeds)"
    return [result.table(heading, columns, rows)] if rows else []


def _by_seed(runs, *names):
    """The runs of the named networks side by side, for the seeds that all of them have."""
    found = [{run["seed"]: run for run in runs if run["name"] == name} for name in names]
    return [[of[seed] for of in found] for seed in found[0] if all(seed in of for of in found)]


def every_run(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A table of all runs: the clean training error and the test error of each seed."""
    seeds = sorted({run["seed"] for run in runs})
    cells = {
        (run["name"], run["seed"]): f"{100 * run['training']['top1_error']:.2f}, "
        f"{100 * run['final']['top1_error']:.2f}"
        for run in runs
    }
    names = dict.fromkeys(run["name"] for run in runs)
    rows = [[name, *(cells.get((name, seed)) for seed in seeds)] for name in names]
    columns = ["network", *(f"seed {seed}" for seed in seeds)]
    return result.table("Every run: training, test error (%)", columns, rows)


def draw(runs: Sequence[dict[str, Any]], args: argparse.Namespace) -> list[str]:
    """Draws `<args.out>/<args.name>.svg`; returns its name, or nothing without matplotlib.

    A row for every rate. In it a panel of curves for every family, and where there are several
    depths, the clean training loss at the end over the depths.
    """
    if not plotting.can_draw(f"{args.name}.svg"):
        return []
    families = [f for f in FAMILIES if any(run["name"].startswith(f) for run in runs)]
    suffixes = experiment.suffixes(args)
    columns = len(families) + (len(set(args.depths)) > 1)
    figure, axes = plotting.pyplot().subplots(
        len(suffixes),
        columns,
        figsize=(4.8 * columns, 4 * len(suffixes)),
        squeeze=False,
        layout="constrained",
    )
    for row, suffix in zip(axes, suffixes, strict=True):
        networks = {
            family: [f"{family}{depth}{suffix}" for depth in args.depths] for family in families
        }
        for axis, (family, names) in zip(row, networks.items(), strict=False):
            plots.error_curves(axis, runs, names, f"{FAMILIES[family]}{suffix}")
            axis.sharey(row[0])
        if columns > len(families):
            words = {FAMILIES[family]: names for family, names in networks.items()}
            plots.over_depths(row[-1], runs, words, args.depths, f"at the end{suffix}")
    bold = "held-out images" if args.validation_size else "test"
    plots.legend(figure, [f"{depth} layers" for depth in args.depths], bold)
    return [plots.save(figure, args.out, args.name)]
