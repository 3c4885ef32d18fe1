"""Table 2: top-1 error of 18 and 34 layers, plain and residual; figure 4 in numbers (section 4.1).

python -m paper.table2 --dataset=tfds:imagenet2012      # trains and writes what paper.figure4 does
"""

import functools
import sys

from paper import figure4
from run import command

main = functools.partial(figure4.main, name="table2")

if __name__ == "__main__":
    sys.exit(command.run(main))
