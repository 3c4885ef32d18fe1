"""What a command does before JAX is used first."""

import os
from pathlib import Path
from typing import Any

import jax

from run import allocator, determinism, processes

COMPILATION_CACHE = Path.home() / ".cache" / "residual-networks" / "xla"


def set_up_jax(join_seconds: int, *, deterministic: bool, **join: Any) -> None:
    """Keeps freed memory and compiled programs, and joins the other processes of the run.

    Args:
      deterministic: see `run.determinism`.
      join_seconds: how long all processes may take to come; 0: `JOIN_LIMIT_S`.
      join: of `run.processes.join`.
    """
    if deterministic:
        determinism.request()
    allocator.keep_freed_memory()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(COMPILATION_CACHE))
    processes.join(limit_s=join_seconds or processes.JOIN_LIMIT_S, **join)
