"""Table 3: shortcuts A (zero-padding), B (projections where shapes change), C (all projections).

    python -m paper.table3 --dataset=tfds:imagenet2012               # 34 layers, and 50, 101, 152
    python -m paper.table3 --dataset=digits --depths 20 --seeds 0 1 2

Section 4.1; errors are those of ten crops. The plain network is trained as well.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from paper import degradation, experiment, imagenet_form, numbers, plots
from run import command, result

TITLE = "Table 3: identity and projection shortcuts on ImageNet"
DEPTHS = {"imagenet": [34, 50, 101, 152], "cifar": [56]}
OPTIONS = ("A", "B", "C")


def entries(depths: Sequence[int]) -> list[experiment.Entry]:
    """Plain and options A, B, C at the first depth; option B at the others, as in the paper."""
    first, *deeper = depths
    grid = [experiment.Entry(f"plain{first}", f"plain{first}")]
    grid += [
        experiment.Entry(f"resnet{first}{option}", f"resnet{first}", {"shortcut": option})
        for option in OPTIONS
    ]
    return grid + [experiment.Entry(f"resnet{d}", f"resnet{d}", {"shortcut": "B"}) for d in deeper]


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the options, trains the grid, tests and publishes."""
    args = imagenet_form.parse("table3", __doc__, argv, DEPTHS)
    runs, notes = imagenet_form.train_and_test(args, entries(args.depths))
    summary, top5 = experiment.summarise(runs), experiment.summarise(runs, "top5_error")
    result.publish(
        args,
        imagenet_form.title(TITLE, args.dataset),
        result.header(args, notes, runs),
        [
            *tables(summary, top5, args.dataset == numbers.TABLE2_DATASET),
            degradation.every_run(runs),
        ],
        figures=plots.every_error(runs, args.out, args.name),
        summary=summary,
        top5=top5,
        runs=runs,
    )


def tables(
    summary: Mapping[str, Any], top5: Mapping[str, Any] | None = None, same_data: bool = True
) -> list[dict[str, Any]]:
    """Training error, top-1 and top-5 test error beside the paper's; `same_data`: differences."""
    rows = []
    for name in dict.fromkeys([*summary, *numbers.TABLE3]):
        mine, paper1, paper5 = summary.get(name), *numbers.TABLE3.get(name, (None, None))
        ours: list[str | None] = [None, None, None]
        if name.startswith(("plain", "resnet")):
            ours = [result.ours(mine and mine["train"]), result.ours(mine)]
            ours.append(result.ours((top5 or {}).get(name)))
        gap = result.difference(mine, paper1) if same_data else None
        rows.append([name, *ours, paper1, paper5, gap])
    columns = ["network", "training error (%)", "top-1 (%)", "top-5 (%)"]
    columns += ["paper's top-1, ImageNet", "paper's top-5", "difference (top-1)"]
    return [result.table("", columns, rows)]


if __name__ == "__main__":
    sys.exit(command.run(main))
