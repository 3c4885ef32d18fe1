"""Programs that measure, with their reports: `python -m benchmarks.step_time --help`."""

from run import interrupt

interrupt.ends_modules_at_once()
