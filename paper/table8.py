"""Table 8: detection on COCO.

python -m paper.table8 --workdirs runs/coco_r101_c4

Faster R-CNN as in table 7 (appendix A); AP in %, at IoU 0.5 and averaged over 0.5 to 0.95.
"""

import functools
import sys

from paper import appendices
from run import command

main = functools.partial(appendices.main, "table8", __doc__)

if __name__ == "__main__":
    sys.exit(command.run(main))
