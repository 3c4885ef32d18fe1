"""What a command does before JAX is used first."""

import os
from pathlib import Path
from typing import Any

import jax

from run import allocator, processes

COMPILATION_CACHE = Path.home() / ".cache" / "residual-networks" / "xla"


def set_up_jax(join_seconds: int, **join: Any) -> None:
    """Keeps freed memory and compiled programs, and joins the other processes of the run.

    Args:
      join_seconds: how long all processes may take to come; 0: `JOIN_LIMIT_S`.
      join: of `run.processes.join`.
    """
    allocator.keep_freed_memory()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(COMPILATION_CACHE))
    processes.join(limit_s=join_seconds or processes.JOIN_LIMIT_S, **join)
