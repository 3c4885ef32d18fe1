"""Table 12: ImageNet detection.

python -m paper.table12 --workdirs runs/det_r101_c4

200 classes, mAP at IoU 0.5 in % (appendix B).
"""

import functools
import sys

from paper import appendices
from run import command

main = functools.partial(appendices.main, "table12", __doc__)

if __name__ == "__main__":
    sys.exit(command.run(main))
