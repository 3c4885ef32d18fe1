"""Signals while a run trains: received at once, acted on between two steps."""

import os
import signal
import threading

HANDLED = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """A signal asked the run to stop; everything up to `step` is saved."""

    def __init__(self, step: int, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name} after step {step}")
        self.step = step
        self.signum = signum


class Signals:
    """Turns the first SIGINT or SIGTERM into `received`; a second SIGINT ends the process at once.

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
        self._previous = {n: signal.signal(n, lambda *_: None) for n in HANDLED}
        self._previous_fd = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reader,), daemon=True).start()
        return self

    def _watch(self, reader):
        with open(reader, "rb", buffering=0) as pipe:
            while number := pipe.read(1):
                if number[0] in HANDLED:
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
            for signum, handler in self._previous.items():
                signal.signal(signum, handler)
            os.close(self._writer)
