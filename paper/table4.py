"""Table 4: best single models, multi-scale fully convolutional testing, from given workdirs.

python -m paper.table4 --workdirs runs/resnet50 runs/resnet101 runs/resnet152

Section 4.1: the network is applied to the whole image with its shorter side at each of 224, 256,
384, 480 and 640 pixels, mirrored too, and the scores are averaged.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from paper import from_workdirs, numbers
from run import command, result

TITLE = "Table 4: best single models"


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the options, tests and publishes."""
    args = from_workdirs.parser("table4", __doc__).parse_args(argv)
    from_workdirs.publish(args, TITLE, [[workdir] for workdir in args.workdirs], tables)


def tables(measured: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Top-1 and top-5 error of every workdir and of the paper's networks."""
    rows, used = [], set()
    for one in measured:
        paper1, paper5 = numbers.TABLE4.get(one["name"], (None, None))
        used.add(one["name"])
        top1, top5 = 100 * one["top1_error"], 100 * one["top5_error"]
        same_data = one["dataset"] == numbers.TABLE2_DATASET
        gap = f"{top1 - paper1:+.2f}" if paper1 and same_data else None
        rows.append([f"{one['name']} ({one['workdir']})", top1, top5, paper1, paper5, gap])
    for name, (paper1, paper5) in numbers.TABLE4.items():
        if name not in used:
            ours = result.NOT_RUN if name.startswith("resnet") else None
            rows.append([name, ours, ours, paper1, paper5, None])
    columns = ["network", "top-1 (%)", "top-5 (%)", "paper's top-1", "paper's top-5", "difference"]
    return [result.table("", columns, rows)]


if __name__ == "__main__":
    sys.exit(command.run(main))
