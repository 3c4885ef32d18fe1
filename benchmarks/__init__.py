"""Programs that measure, with their reports: `python -m benchmarks.step_time --help`."""
