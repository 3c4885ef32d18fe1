"""How far a run is and how fast: the progress bar, or lines where nobody looks at a terminal."""

import contextlib
import logging
import shutil
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from math import nan
from typing import Any, Protocol

import jax

try:
    from tqdm import tqdm
except ImportError:  # a machine that has only what computing needs: lines instead of bars
    from run.no_bar import NoBar as tqdm  # type: ignore[assignment]

LOG = logging.getLogger("residual")


def messages_beside_a_bar() -> AbstractContextManager[None]:
    """While open, messages of the log do not tear a progress bar."""
    try:
        from tqdm.contrib.logging import logging_redirect_tqdm
    except ImportError:
        return contextlib.nullcontext()
    return logging_redirect_tqdm()


class Waits(Protocol):
    """A feed that counts the seconds which the loop has waited for it."""

    wait_seconds: float


class Progress(tqdm):
    """A progress bar over the steps of a run, which also measures its speed.

    Args:
      num_steps: of the whole run.
      step: where it continues.
      batch_size: of the global batch.
      feed: what the loop waits for.
    """

    def __init__(self, num_steps: int, step: int, batch_size: int, feed: Waits):
        # Not tqdm's own way: it shows nothing on a terminal without a size (docker -t, script).
        columns, rows = shutil.get_terminal_size()
        super().__init__(
            total=num_steps,
            initial=step,
            unit="step",
            disable=None if jax.process_index() == 0 else True,
            ncols=columns,
            nrows=rows,
        )
        self._batch_size, self._feed = batch_size, feed
        self._since, self._steps, self._waited = time.perf_counter(), 0, 0.0
        self._step = step

    def advance(self, steps: int) -> None:
        """Counts steps."""
        self._steps += steps
        self._step += steps
        self.update(steps)

    def show(self, values: Mapping[str, Any]) -> dict[str, float]:
        """Shows the loss and, if any, error of steps, with the speed since the last call.

        Returns:
          `{'images_per_second', 'data_wait_fraction'}`.
        """
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        speed = {
            "images_per_second": self._steps * self._batch_size / seconds,
            "data_wait_fraction": (self._feed.wait_seconds - self._waited) / seconds,
        }
        left = (self.total - self._step) * seconds / max(self._steps, 1)
        self._since, self._steps, self._waited = now, 0, self._feed.wait_seconds
        rate, loss = speed["images_per_second"], values.get("loss", nan)
        error = [100 * values["top1_error"]] if "top1_error" in values else []
        shown = ", ".join([f"loss {loss:.3f}", *(f"error {e:.1f} %" for e in error)])
        self.set_postfix_str(f"{rate:.0f} images/s, {shown}")
        if self.disable:
            LOG.info(
                "step %d/%d: %s, %.0f images/s, %s left",
                *(self._step, self.total),
                ", ".join([f"loss {loss:.4f}", *(f"training error {e:.2f} %" for e in error)]),
                *(rate, tqdm.format_interval(round(left))),
            )
        return speed
