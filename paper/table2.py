"""Table 2: top-1 error of 18 and 34 layers, plain and residual; figure 4 in numbers (section 4.1).

python -m paper.table2 --dataset=tfds:imagenet2012      # the same as python -m paper.figure4
"""

import sys

from paper.figure4 import main
from run import command

if __name__ == "__main__":
    sys.exit(command.run(main))
