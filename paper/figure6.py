"""Figure 6: training and test error of plain and residual networks over depths (section 4.2).

    python -m paper.figure6 --dataset=cifar10                       # the paper's 64k steps
    python -m paper.figure6 --dataset=digits --depths 20 56 110 --width 4 --steps 1000 \\
        --learning_rates 0.1 0.03 --seeds 0 1 2 3 4                 # an hour on two cores

The third panel of the paper, 110 against 1202 layers, is `--depths 110 1202`. The paper does not
draw plain-110 (over 60 %).
"""

import sys
from collections.abc import Sequence

from paper import degradation, experiment
from run import command

DEPTHS = [20, 32, 44, 56, 110]
TITLE = "Figure 6: plain and residual networks over depths"


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the options, runs and writes."""
    args = experiment.parser("figure6", __doc__, depths=DEPTHS).parse_args(argv)
    degradation.publish(args, ("plain", "resnet"), TITLE)


if __name__ == "__main__":
    sys.exit(command.run(main))
