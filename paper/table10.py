"""Table 10: Pascal VOC 2007, with what appendix B adds.

python -m paper.table10 --workdirs runs/voc_r101_c4

mAP at IoU 0.5 in % (appendix B).
"""

import functools
import sys

from paper import appendices
from run import command

main = functools.partial(appendices.main, "table10", __doc__)

if __name__ == "__main__":
    sys.exit(command.run(main))
