"""Looking into trained networks: `python -m analysis.cam --workdir=…` and its neighbours."""
