"""What a command does before JAX is used first."""

import os
from pathlib import Path
from typing import Any

import jax

from run import allocator, processes

COMPILATION_CACHE = Path.home() / ".cache" / "residual-networks" / "xla"


def set_up_jax(*processes_of_the_run: Any, join_seconds: int, **options: Any) -> None:
    """Keeps freed memory and compiled programs, and joins the other processes of the run.

    Args:
      processes_of_the_run, options: of `run.processes.join`.
      join_seconds: how long all may take to come; 0: `JOIN_LIMIT_S`.
    """
    allocator.keep_freed_memory()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(COMPILATION_CACHE))
    limit_s = join_seconds or processes.JOIN_LIMIT_S
    processes.join(*processes_of_the_run, limit_s=limit_s, **options)
