"""The paper's tables and figures, one module each: `python -m paper.figure6 --help`."""
