"""Table 3: shortcuts A (zero-padding), B (projections where shapes change), C (all projections).

    python -m paper.table3 --dataset=tfds:imagenet2012               # 34 layers, and 50, 101, 152
    python -m paper.table3 --dataset=digits --depths 20 --seeds 0 1 2

Section 4.1; errors are those of ten crops. The plain network is trained as well.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from paper import experiment, imagenet_form, numbers
from run import command, result

TITLE = "Table 3: identity and projection shortcuts"
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
        TITLE,
        result.header(args, notes, runs),
        tables(summary, top5),
        summary=summary,
        top5=top5,
        runs=runs,
    )


def tables(
    summary: Mapping[str, Any], top5: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Top-1 and top-5 error of every network beside the paper's."""
    rows = []
    for name in dict.fromkeys([*numbers.TABLE3, *summary]):
        mine, paper1, paper5 = summary.get(name), *numbers.TABLE3.get(name, (None, None))
        ours = (
            [None, None]
            if not name.startswith(("plain", "resnet"))
            else [
                result.ours(mine),
                result.ours((top5 or {}).get(name)),
            ]
        )
        rows.append([name, *ours, paper1, paper5, result.difference(mine, paper1)])
    columns = ["network", "top-1 (%)", "top-5 (%)", "paper's top-1", "paper's top-5"]
    return [result.table("", [*columns, "difference (top-1)"], rows)]


if __name__ == "__main__":
    sys.exit(command.run(main))
