"""Table 14: ImageNet localization.

python -m paper.table14 --workdirs runs/localization

As table 13 (appendix C), against what others reached.
"""

import functools
import sys

from paper import appendices
from run import command

main = functools.partial(appendices.main, "table14", __doc__)

if __name__ == "__main__":
    sys.exit(command.run(main))
