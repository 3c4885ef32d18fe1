"""Figure 1: a plain network of 56 layers is worse than one of 20, in training as in testing.

python -m paper.figure1 --dataset=cifar10
python -m paper.figure1 --dataset=digits --seeds 0 1 2
"""

import sys
from collections.abc import Sequence

from paper import degradation, experiment
from run import command

TITLE = "Figure 1: deeper plain networks train worse"


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the options, runs and writes."""
    args = experiment.parser("figure1", __doc__, depths=[20, 56]).parse_args(argv)
    degradation.publish(args, ("plain",), TITLE)


if __name__ == "__main__":
    sys.exit(command.run(main))
