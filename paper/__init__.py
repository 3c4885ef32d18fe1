"""The paper's tables and figures, one module each: `python -m paper.figure6 --help`."""

from run import interrupt

interrupt.ends_modules_at_once()
