"""Table 7: detection on Pascal VOC.

python -m paper.table7 --workdirs runs/voc_r101_c4

Faster R-CNN with the layers of a residual network shared up to conv4 (appendix A). mAP at IoU 0.5
in %.
"""

import functools
import sys

from paper import appendices
from run import command

main = functools.partial(appendices.main, "table7", __doc__)

if __name__ == "__main__":
    sys.exit(command.run(main))
