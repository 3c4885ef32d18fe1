"""Table 9: COCO, with what appendix B adds.

python -m paper.table9 --workdirs runs/coco_r101_c4

Box refinement, global context and multi-scale testing (appendix B): each of the paper's rows has
what stands in those before it, and ours what the run was last tested with. AP in %.
"""

import functools
import sys

from paper import appendices
from run import command

main = functools.partial(appendices.main, "table9", __doc__)

if __name__ == "__main__":
    sys.exit(command.run(main))
