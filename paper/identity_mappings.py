"""Identity Mappings in Deep Residual Networks (arXiv 1603.05027), tables 1 and 2.

    python -m paper.identity_mappings --dataset=cifar10 --seeds 0 1 2 3 4
    python -m paper.identity_mappings --dataset=digits --depth 20 --tables 1

Why x, and not x/2: table 1 scales, gates, convolves or drops the shortcut. Table 2 moves BN and
ReLU. Both are ResNet-110, medians of five runs; an error above 20 % counts as "fail". `--depth 164`
is the paper's ResNet-164, of bottlenecks.
"""

import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from paper import degradation, experiment, numbers, plots
from run import command, result

TITLE = "Identity mappings: shortcuts (table 1) and activations (table 2)"
TABLE1: dict[str, dict[str, Any]] = {
    "original": {},
    "plain (shortcut 0, f 1)": {"residual": False},  # as the follow-up says; `plain110` elsewhere
    "scaling (shortcut 0.5, f 1)": {"shortcut_scale": 0.5},
    "scaling (shortcut 0.5, f 0.5)": {"shortcut_scale": 0.5, "residual_scale": 0.5},
    "exclusive gating, b = 0": {"variant": "exclusive_gating", "gate_bias": 0.0},
    "exclusive gating, b = -6": {"variant": "exclusive_gating", "gate_bias": -6.0},
    "exclusive gating, b = -7": {"variant": "exclusive_gating", "gate_bias": -7.0},
    "shortcut-only gating, b = 0": {"variant": "shortcut_gating", "gate_bias": 0.0},
    "shortcut-only gating, b = -6": {"variant": "shortcut_gating", "gate_bias": -6.0},
    "1x1 conv shortcut": {"shortcut": "C"},
    "dropout shortcut": {"variant": "dropout_shortcut"},
}
TABLE2: dict[str, dict[str, Any]] = {
    "original": {},
    "BN after addition": {"variant": "bn_after_addition"},
    "ReLU before addition": {"variant": "relu_before_addition"},
    "ReLU-only pre-activation": {"variant": "relu_only_preactivation"},
    "full pre-activation": {"preactivation": True},
}
ROWS = {1: TABLE1, 2: TABLE2}


def entries(depth: int, tables_: Iterable[int]) -> list[experiment.Entry]:
    """The grid of the chosen tables; 'original' is in both and trained once."""
    network = f"resnet{depth}" + (",bottleneck" if depth == 164 else "")
    chosen = {name: fields for number in tables_ for name, fields in ROWS[number].items()}
    return [
        experiment.Entry(f"resnet{depth} {name}", network, fields)
        for name, fields in chosen.items()
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the options, trains the grid and publishes."""
    p = experiment.parser("identity_mappings", __doc__)
    p.add_argument("--depth", type=int, default=110, help="of the residual network")
    p.add_argument("--tables", type=int, nargs="+", choices=(1, 2), default=[1, 2])
    args = p.parse_args(argv)
    runs, notes = experiment.train_grid(args, entries(args.depth, args.tables))
    if args.depth != 110:
        notes.append(f"{args.depth} layers instead of 110")
    if len(args.seeds) < 5:
        notes.append(f"median of {len(args.seeds)} instead of five runs")
    summary = experiment.summarise(runs)
    result.publish(
        args,
        TITLE,
        result.header(args, notes, runs),
        [
            *(
                table
                for suffix in experiment.suffixes(args)
                for table in tables(
                    _of_rate(summary, suffix),
                    args.tables,
                    suffix,
                    args.dataset == numbers.TABLE6_DATASET,
                )
            ),
            degradation.every_run(runs),
        ],
        figures=plots.every_error(runs, args.out, args.name),
        summary=summary,
        runs=runs,
    )


def _of_rate(summary, suffix):
    """By the names of the rows: without the network before and the rate behind."""
    return {
        name.partition(" ")[2].removesuffix(suffix): found
        for name, found in summary.items()
        if name.endswith(suffix)
    }


def tables(
    summary: Mapping[str, Any],
    chosen: Sequence[int] = (1, 2),
    suffix: str = "",
    same_data: bool = True,
) -> list[dict[str, Any]]:
    """Both tables beside the paper's medians.

    Args:
      summary: by the names of the rows.
      chosen: which tables.
      suffix: of their headings.
      same_data: whether a difference to the paper's numbers means something.
    """
    columns = ["training error (%)", "median test error (%)", "runs that failed"]
    columns += ["paper, ResNet-110 on CIFAR-10", "difference"]
    listed = []
    if 1 in chosen:
        rows = [
            _row(n, summary.get(n), numbers.IDENTITY_MAPPINGS_TABLE1[n], same_data) for n in TABLE1
        ]
        listed.append(result.table(f"Table 1: shortcuts{suffix}", ["shortcut", *columns], rows))
    if 2 in chosen:
        rows = [
            [*_row(name, summary.get(name), paper110, same_data), paper164]
            for name, (paper110, paper164) in numbers.IDENTITY_MAPPINGS_TABLE2.items()
        ]
        columns = ["activation", *columns, "paper, ResNet-164"]
        listed.append(result.table(f"Table 2: activations{suffix}", columns, rows))
    return listed


def _row(name, mine, paper, same_data):
    if mine is None:
        return [name, None, result.NOT_RUN, None, paper, None]
    failed = [e for e in mine["values"] if e > numbers.IDENTITY_MAPPINGS_FAILS_ABOVE]
    median = statistics.median(mine["values"])
    shown = numbers.FAIL if median > numbers.IDENTITY_MAPPINGS_FAILS_ABOVE else f"{median:.2f}"
    comparable = same_data and shown != numbers.FAIL and paper != numbers.FAIL
    difference = f"{median - paper:+.2f}" if comparable else None
    return [
        name,
        result.ours(mine["train"]),
        shown,
        f"{len(failed)} of {len(mine['values'])}",
        paper,
        difference,
    ]


if __name__ == "__main__":
    sys.exit(command.run(main))
