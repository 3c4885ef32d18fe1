"""Waiting for something that another thread or process does, without hoping for a time."""

import time


def wait_until(condition, seconds=120):
    """Waits for `condition()`; AssertionError when it is not met within a long time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.001)
