"""Table 13: ImageNet localization, part by part.

python -m paper.table13 --workdirs runs/localization

A box is right with an IoU of at least 0.5 with one of its class (appendix C). Errors on validation
in %.
"""

import functools
import sys

from paper import appendices
from run import command

main = functools.partial(appendices.main, "table13", __doc__)

if __name__ == "__main__":
    sys.exit(command.run(main))
