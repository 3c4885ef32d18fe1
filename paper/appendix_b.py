"""What appendix B gains in testing: refined boxes, global context, several sizes, ensembles.

python -m paper.appendix_b --workdirs RUN RUN --context RUN

Tests finished detectors with each option. Gains are over the same runs tested plainly, those of
context over the runs of `--workdirs`; the paper's are over the row before in table 9. AP in %.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data.facts import SPLITS
from input_pipeline import open_data
from paper import numbers
from run import command, result
from run.mesh import make_mesh
from testing import fitting
from training import task

PLAIN, REFINED, SCALES, ENSEMBLE = "tested plainly", "box refinement", "multi-scale", "ensemble"
CONTEXT, ALL = "context", "box refinement and multi-scale"
# Rows of table 9: what has the option, what has not, and the column of AP at 0.5.
PAPER = {
    REFINED: ("+ box refinement", "resnet101", 0),
    CONTEXT: ("+ context", "+ box refinement", 0),
    SCALES: ("+ multi-scale testing", "+ context", 0),
    ENSEMBLE: ("ensemble of 3", "+ multi-scale testing", 2),
}
OPTIONS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    REFINED: {"refine_boxes": True},
    SCALES: {"protocol": "multiscale"},
    ALL: {"refine_boxes": True, "protocol": "multiscale"},
}


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the options, tests and publishes."""
    p = result.parser("appendix_b", "What the paper's appendix B gains in testing.")
    p.add_argument("--workdirs", nargs="+", required=True, help="finished detectors; an ensemble")
    p.add_argument("--context", nargs="*", default=[], help="the same with detection.context")
    p.add_argument("--scales", nargs="+", type=int, required=True, help="shorter sides, pixels")
    p.add_argument("--split", default="test", choices=SPLITS, help="validation chooses scales")
    args = p.parse_args(argv)
    groups = {
        group: [task.opened(folder, "detection") for folder in folders]
        for group, folders in {PLAIN: args.workdirs, CONTEXT: args.context}.items()
        if folders
    }
    config = groups[PLAIN][0].config
    args.dataset = config.dataset
    everyone = [one for runs in groups.values() for one in runs]
    measure = measurer(config, everyone, args)
    measured = []
    for group, runs in groups.items():
        prefix = "" if group == PLAIN else f"{CONTEXT}, "
        for name, fields in OPTIONS.items():
            found = [measure([one], fields) for one in runs]
            row = (prefix + name).removesuffix(f", {PLAIN}")
            measured.append({"name": row, "runs": len(runs), "found": found})
    runs = groups[PLAIN]
    if len(runs) > 1:
        for name, fields in OPTIONS.items():
            found = [measure(runs, fields)]
            row = f"{ENSEMBLE}, {name}".removesuffix(f", {PLAIN}")
            measured.append({"name": row, "runs": len(runs), "found": found})
    every = [{"seed": one.config.seed} for one in everyone]
    notes = [
        f"{config.dataset} {args.split} instead of COCO; ResNet-{config.model.depth} "
        f"({config.detection.network}) instead of ResNet-101 (c4)",
        f"shorter sides {args.scales} instead of 200 to 1000 in five steps",
        *(f"{one.workdir}: after {one.step} of {one.config.num_steps} steps" for one in everyone),
    ]
    head = result.header(args, notes, every)
    title = "Appendix B: what is gained in testing"
    result.publish(args, title, head, [table(measured)], measured=measured)


def table(measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The means over runs, and their gains over the first row, beside the paper's.

    Args:
      measured: `{'name', 'runs', 'found'}` with a test's `AP50` and `AP` for each result in
        `found`; the first is the plain test.
    """
    rows, plain = [], None
    for one in measured:
        means = np.array([[found[k] for k in ("AP50", "AP")] for found in one["found"]]).mean(0)
        plain = means if plain is None else plain
        gains = [None, None] if one is measured[0] else [f"{gain:+.2f}" for gain in means - plain]
        rows.append([one["name"], one["runs"], *map(float, means), *gains, *_papers(one["name"])])
    gains = ["gain at IoU 0.5", "gain", "paper's gain at IoU 0.5", "paper's gain"]
    return result.table("", ["tested", "runs", "AP at IoU 0.5", "AP", *gains], rows)


def _papers(name):
    """The gains of table 9: each over what stands in the row before."""
    if name not in PAPER:
        return [None, None]
    better, worse, column = PAPER[name]
    rows = (numbers.TABLE9[row][column : column + 2] for row in (better, worse))
    return [f"{a - b:+.1f}" for a, b in zip(*rows, strict=True)]


def measurer(
    config: ConfigDict, runs: Sequence[Any], args: argparse.Namespace
) -> Callable[[Sequence[Any], Mapping[str, Any]], dict[str, Any]]:
    """A function that tests some of the runs, as one, with fields of `config.eval` changed.

    Args:
      config: what the data are opened with.
      runs: opened; they have to fit one another and the data.
      args: with `split` and `scales`.
    """
    mesh = make_mesh()
    config.eval.split, config.eval.scales = args.split, tuple(args.scales)
    data = open_data(config, mesh)
    fitting.check(runs, data, config)

    def measure(runs: Sequence[Any], fields: Mapping[str, Any]) -> dict[str, Any]:
        asked = config.copy_and_resolve_references()
        asked.eval.update(fields)
        found = task.tested(asked, runs, data, mesh)
        print(f"{len(runs)} of {fields}: {task.of(asked).said(found)}", file=sys.stderr)
        return found

    return measure


if __name__ == "__main__":
    sys.exit(command.run(main))
