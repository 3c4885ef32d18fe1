"""Table 5: the ensemble of any number of workdirs, multi-scale fully convolutional (section 4.1).

python -m paper.table5 --workdirs runs/r34 runs/r50 runs/r101 runs/r101b runs/r152 runs/r152b

The paper's ensemble has six models of different depth, two of them of 152 layers; its 3.57 % is of
ImageNet's test set, whose labels are not public: here the split is `--split`.
"""

import sys

from paper import experiment, from_workdirs, numbers, result

TITLE = "Table 5: ensembles"


def main(argv=None):
    """Parses the options, tests the ensemble and publishes."""
    args = from_workdirs.parser(__doc__).parse_args(argv)
    measured = from_workdirs.together(args, "table5")
    return result.publish(
        args.out,
        "table5",
        TITLE,
        experiment.header("table5", args, from_workdirs.notes(args, [measured])),
        tables(measured),
        measured=measured,
    )


def tables(measured):
    """The ensemble's error beside the paper's; `measured` is falsy when nothing was run."""
    ensemble = "ResNet (ILSVRC'15, six models)"
    rows = []
    for name, paper in numbers.TABLE5.items():
        if name == ensemble:
            ours = 100 * measured["top5_error"] if measured else result.NOT_RUN
            top1 = 100 * measured["top1_error"] if measured else result.NOT_RUN
            gap = f"{ours - paper:+.2f}" if measured else None
            number = f", ours of {len(measured['networks'])}" if measured else ""
            rows.append([name + number, top1, ours, paper, gap])
        else:
            rows.append([name, None, None, paper, None])
    columns = ["ensemble", "top-1 (%)", "top-5 (%)", "paper's top-5 (test)", "difference"]
    return [result.table("", columns, rows)]


if __name__ == "__main__":
    sys.exit(experiment.run(main))
