"""Figure 4 and table 2: the degradation experiment on ImageNet, 18 against 34 layers (section 4.1).

    python -m paper.figure4 --dataset=tfds:imagenet2012
    python -m paper.figure4 --dataset=folder:PATH --steps=5000 --image_size=64
    python -m paper.figure4 --dataset=digits --depths 20 56 --steps=200      # with CIFAR's networks

`python -m paper.table2` does the same. The curves are of the center crop, as in the paper's figure;
the test errors in the table are those of ten crops, as in its table 2.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from paper import degradation, experiment, imagenet_form, numbers, plots
from run import command, result

TITLE = "Figure 4 and table 2: plain and residual networks on ImageNet"
DEPTHS = {"imagenet": [18, 34], "cifar": [20, 56]}
FAMILIES = ("plain", "resnet")


def main(argv: Sequence[str] | None = None, name: str = "figure4") -> None:
    """Parses the options, trains the grid, tests and publishes under `name`."""
    args = imagenet_form.parse(name, __doc__, argv, DEPTHS)
    runs, notes = imagenet_form.train_and_test(args, degradation.entries(FAMILIES, args.depths))
    summary = experiment.summarise(runs)
    result.publish(
        args,
        imagenet_form.title(TITLE, args.dataset),
        result.header(args, notes, runs, compared=degradation.compared(args.dataset)),
        [
            *tables(summary, args.dataset == numbers.TABLE2_DATASET),
            *degradation.depth_tables(runs, args.depths, experiment.suffixes(args)),
        ],
        figures=degradation.draw(runs, args),
        remarks=[plots.CAPTION],
        summary=summary,
        runs=runs,
    )


def tables(summary: Mapping[str, Any], same_data: bool = True) -> list[dict[str, Any]]:
    """Training and test error of every network beside table 2's; a difference if `same_data`."""
    rows = [
        [
            name,
            result.ours(mine and mine["train"]),
            result.ours(mine),
            paper,
            result.difference(mine, paper) if same_data else None,
        ]
        for name in dict.fromkeys([*summary, *numbers.TABLE2])
        for mine, paper in [(summary.get(name), numbers.TABLE2.get(name))]
    ]
    columns = ["network", "training error (%)", "top-1 test error (%)", "paper, ImageNet (%)"]
    return [result.table("", [*columns, "difference"], rows)]


if __name__ == "__main__":
    sys.exit(command.run(main))
