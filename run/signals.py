"""Signals while a run trains: received at once, acted on between two steps."""

import os
import signal
import threading
from collections.abc import Mapping
from typing import Any

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """A signal asked the run to stop; everything up to `step` is saved."""

    def __init__(self, step: int, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name} after step {step}")
        self.step = step
        self.signum = signum


def set_handlers(handlers: Mapping[int, Any]) -> dict[int, Any]:
    """Sets how signals are handled; returns how they were, for another call.

    A SIGHUP that is ignored stays so: that is what `nohup` asks for. Only the main thread may set
    any; others change nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    chosen = {n: h for n, h in handlers.items() if not (ignored and n == signal.SIGHUP)}
    return {number: signal.signal(number, handler) for number, handler in chosen.items()}


class Signals:
    """Turns the first of `HANDLED` into `received`; a second SIGINT ends the process at once.

    A thread reads the signals, since Python's own handlers wait while the main thread is inside a
    compilation or waits for the device. While `nothing_to_lose` the first signal ends the process.
    """

    def __init__(self, nothing_to_lose: bool = False):
        self.received = 0
        self.nothing_to_lose = nothing_to_lose
        self._previous = {}

    def __enter__(self):
        if threading.current_thread() is not threading.main_thread():
            return self  # a notebook's worker: signals stay as they are
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._previous = set_handlers(dict.fromkeys(HANDLED, lambda *_: None))
        self._previous_fd = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reader,), daemon=True).start()
        return self

    def _watch(self, reader):
        with open(reader, "rb", buffering=0) as pipe:
            while number := pipe.read(1):
                if number[0] in self._previous:
                    self._receive(number[0])

    def _receive(self, signum):
        if self.nothing_to_lose or (self.received and signum == signal.SIGINT):
            name = signal.Signals(signum).name
            os.write(2, f"\nended by {name}; run the same command to continue.\n".encode())
            os._exit(128 + signum)
        self.received = self.received or signum

    def __exit__(self, *exc):
        if self._previous:
            signal.set_wakeup_fd(self._previous_fd)
            set_handlers(self._previous)
            os.close(self._writer)
