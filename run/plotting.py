"""Drawing without a display, and writing a figure whole or not at all."""

import importlib.util
import logging
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from run import files

LOG = logging.getLogger("residual")


def can_draw(name: str) -> bool:
    """Whether matplotlib is installed; if not, the log says that there is no figure `name`."""
    if importlib.util.find_spec("matplotlib"):
        return True
    LOG.warning("matplotlib is not installed: there is no %s", name)
    return False


def pyplot() -> ModuleType:
    """matplotlib's pyplot without a display (slow to import, so only when used)."""
    import matplotlib

    matplotlib.use("agg")
    # Text as text and no random names: an SVG file is small and the same on every run.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "paper"})
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, path: str | os.PathLike, **options: Any) -> Path:
    """Writes a figure and closes it; the ending of `path` names the format.

    Args:
      figure: of matplotlib.
      path: of the file, which is returned.
      options: of `Figure.savefig`.

    Raises:
      UserError: the file cannot be written.
    """
    path = files.at(path)
    with files.explained(path), files.whole(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix("."), **options)
    pyplot().close(figure)
    return path
