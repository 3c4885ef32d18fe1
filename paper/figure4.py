"""Figure 4 and table 2: the degradation experiment on ImageNet, 18 against 34 layers (section 4.1).

    python -m paper.figure4 --dataset=tfds:imagenet2012
    python -m paper.figure4 --dataset=folder:PATH --steps=5000 --image_size=64
    python -m paper.figure4 --dataset=digits --depths 20 56 --steps=200      # with CIFAR's networks

`python -m paper.table2` is the same command. Errors are those of ten crops.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from paper import degradation, experiment, imagenet_form, numbers
from run import command, result

TITLE = "Figure 4 and table 2: 18 and 34 layers on ImageNet"
DEPTHS = {"imagenet": [18, 34], "cifar": [20, 56]}
FAMILIES = ("plain", "resnet")


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the options, trains the grid, tests and publishes."""
    args = imagenet_form.parse("figure4", __doc__, argv, DEPTHS)
    runs, notes = imagenet_form.train_and_test(args, degradation.entries(FAMILIES, args.depths))
    summary = experiment.summarise(runs)
    panels = [("plain", lambda n: n.startswith("plain")), ("ResNet", lambda n: "resnet" in n)]
    figure = degradation.draw(runs, list(summary), panels, args)
    result.publish(
        args,
        TITLE,
        result.header(args, notes, runs),
        tables(summary),
        figures=[figure],
        summary=summary,
        runs=runs,
    )


def tables(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Table 2: top-1 error of plain and residual networks beside the paper's."""
    rows = [
        [name, result.ours(mine), paper, result.difference(mine, paper)]
        for name in dict.fromkeys([*numbers.TABLE2, *summary])
        for mine, paper in [(summary.get(name), numbers.TABLE2.get(name))]
    ]
    columns = ["network", "top-1 error (%)", "paper (%)", "difference"]
    return [result.table("", columns, rows)]


if __name__ == "__main__":
    sys.exit(command.run(main))
