"""Looking into trained networks: `python -m analysis.cam --workdir=…` and its neighbours."""

from run import interrupt

interrupt.ends_modules_at_once()
