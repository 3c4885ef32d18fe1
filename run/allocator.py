"""The C library's allocator, told to keep a step's memory for the next step.

On a CPU, XLA asks for the temporary memory of a program at every call and frees it afterwards.
glibc returns large blocks to the system, which hands them out again page by page and zeroed: a
fourth of the processor time of a ResNet-20 step, a seventh of ResNet-50's
(`docs/development_log.md`).
"""

import ctypes
import importlib.metadata
import importlib.util
import os
import sys

# The options of mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """From now on this process reuses what it frees instead of returning it to the system.

    All threads share one heap, since the others have no room for large blocks; threads that have
    one of their own already keep it, so this comes before JAX starts its backend. The process then
    stays as large as it once was. Does nothing where JAX has an accelerator or the C library is not
    glibc.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" and _only_cpu() else None
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(M_ARENA_MAX, 1)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def _only_cpu():
    """Whether JAX will compute on the CPU; asking JAX itself would start its threads."""
    chosen = os.environ.get("JAX_PLATFORMS")
    if chosen:
        return chosen == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")  # CUDA, ROCm, …
    return not plugins and importlib.util.find_spec("libtpu") is None
