"""Table 5: the ensemble of any number of workdirs, multi-scale fully convolutional (section 4.1).

python -m paper.table5 --workdirs runs/r34 runs/r50 runs/r101 runs/r101b runs/r152 runs/r152b

The paper's ensemble has six models of different depth, two of them of 152 layers; its 3.57 % is of
ImageNet's test set, whose labels are not public: here the split is `--split`.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from paper import from_workdirs, numbers
from run import command, result

TITLE = "Table 5: ensembles"


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the options, tests and publishes."""
    args = from_workdirs.parser("table5", __doc__).parse_args(argv)
    from_workdirs.publish(args, TITLE, [args.workdirs], tables)


def tables(measured: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The ensembles' errors beside the paper's; `measured` is empty when nothing was run."""
    *others, (name, paper) = numbers.TABLE5.items()
    rows = [[other, None, None, error, None] for other, error in others]
    if not measured:
        rows.append([name, result.NOT_RUN, result.NOT_RUN, paper, None])
    for one in measured:
        top1, top5 = 100 * one["top1_error"], 100 * one["top5_error"]
        number = f"{name}, ours of {len(one['networks'])}"
        same_data = one["dataset"] == numbers.TABLE2_DATASET
        rows.append([number, top1, top5, paper, f"{top5 - paper:+.2f}" if same_data else None])
    columns = ["ensemble", "top-1 (%)", "top-5 (%)", "paper's top-5 (test)", "difference"]
    return [result.table("", columns, rows)]


if __name__ == "__main__":
    sys.exit(command.run(main))
