"""The config of an existing run: `--config=configs/workdir.py:runs/x` (what evaluation uses)."""

import json
from pathlib import Path

from configs import common
from errors import UserError


def get_config(workdir):
    """Reads `config.json` of a workdir; fields that it lacks have today's defaults.

    Raises:
      UserError: when there is no readable config.
    """
    path = Path(workdir) / "config.json"
    try:
        saved = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: not the config of a run ({error}); --workdir must be the folder of a run "
            "that `python main.py --config=… --workdir=…` has started."
        ) from error
    return common.from_dict(saved)
