"""Sums in a fixed order on a GPU: XLA's flag for it, which must be there before JAX starts.

The program itself leaves no order free (`benchmarks.hlo.Program.free_sums` reads it); what is left
are NVIDIA's libraries, from whose convolutions XLA takes the fastest of a trial at start-up, and
some of those add up as their threads come. The flag takes fixed ones, without a trial.
"""

import os

import jax

from errors import UserError

FLAG = "--xla_gpu_deterministic_ops=true"


def request() -> None:
    """Asks for it; comes before JAX starts its backend."""
    if not requested():
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}".strip()


def requested() -> bool:
    """Whether XLA's flags ask for it."""
    return FLAG in os.environ.get("XLA_FLAGS", "").split()


def check(wanted: bool) -> None:
    """Raises UserError where it is wanted, nobody asked for it in time, and it would matter."""
    if wanted and not requested() and jax.default_backend() == "gpu":
        raise UserError(
            "deterministic=True: XLA must know before JAX starts, and this process has started it; "
            f"set XLA_FLAGS={FLAG} (main.py does so itself)."
        )
