"""Table 6: test error and parameters of the CIFAR networks of 20 to 1202 layers (section 4.2).

python -m paper.table6 --dataset=cifar10 --seeds 0 1 2 3 4
python -m paper.table6 --dataset=digits --depths 20 32 --steps=300
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import models
from models.summary import count_parameters
from paper import experiment, numbers
from run import command, result

DEPTHS = [20, 32, 44, 56, 110, 1202]
TITLE = "Table 6: residual networks of 20 to 1202 layers"


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the options, trains the grid and publishes."""
    args = experiment.parser("table6", __doc__, depths=DEPTHS).parse_args(argv)
    grid = [experiment.Entry(f"resnet{depth}", f"resnet{depth}") for depth in args.depths]
    runs, notes = experiment.train_grid(args, grid)
    summary = experiment.summarise(runs)
    mean, std = numbers.TABLE6_RESNET110
    result.publish(
        args,
        TITLE,
        result.header(args, notes, runs),
        tables(summary, args.dataset == numbers.TABLE6_DATASET, args.width),
        remarks=[f"The paper's 110 layers: the best of five runs; their mean is {mean} ± {std} %."],
        summary=summary,
        runs=runs,
    )


def tables(
    summary: Mapping[str, Any], same_data: bool = True, width: int | None = None
) -> list[dict[str, Any]]:
    """Networks with parameters (counted from the module) and errors, ours and the paper's.

    A difference to the paper's error stands only where `same_data`. `width` is that of the networks
    in `summary`; the paper's is 16.
    """
    rows = []
    for name in dict.fromkeys([*summary, *numbers.TABLE6]):
        network = name.partition(",")[0]
        mine, paper = summary.get(name), numbers.TABLE6.get(network)
        best = min(mine["values"]) if mine else None
        rows.append(
            [
                name,
                parameters(network, width if mine else None),
                numbers.TABLE6_PARAMETERS.get(network),
                result.ours(mine and mine["train"]),
                result.ours(mine),
                best,
                paper,
                result.difference(mine, paper) if same_data else None,
            ]
        )
    rows += [[n, *[None] * 5, e, None] for n, e in numbers.TABLE6_OTHERS.items()]
    columns = ["network", "parameters at 32×32", "paper (10⁶)", "training error (%)"]
    columns += ["test error (%)", "best run", "paper, CIFAR-10 (%)", "difference"]
    return [result.table("", columns, rows)]


def parameters(name: str, width: int | None = None) -> str:
    """Trained parameters of a CIFAR network for 32×32 colour images, with separators."""
    config, _ = experiment.recipe("cifar10", name)
    config.model.width = width or config.model.width
    return f"{count_parameters(models.create(config.model, 10), (32, 32, 3)):,}"


if __name__ == "__main__":
    sys.exit(command.run(main))
