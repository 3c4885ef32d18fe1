"""The reports `benchmarks/NAME.md`: a program writes the top, people write below `NOTES`."""

import datetime
import importlib.metadata
import os
import platform
import sys
from pathlib import Path

from run import allocator, command, files

NOTES = "\n## What was tried"
CPU_FACTS = Path("/proc/cpuinfo")


def processor():
    """The processor's name and number of cores, e.g. '2 cores of Intel(R) Xeon(R) Processor'."""
    lines = CPU_FACTS.read_text().splitlines() if CPU_FACTS.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0] if names else platform.machine()}"


def environment(device="cpu", packages=("jax", "jaxlib", "flax")):
    """One sentence: date, device, versions and the load of the machine at this moment.

    Args:
      device: the accelerator's name; 'cpu' stands for the processor's.
      packages: distributions whose versions are named besides Python's.
    """
    where = processor() if device == "cpu" else f"{device}, host with {processor()}"
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    busy = os.getloadavg()[0]
    return (
        f"{datetime.date.today()}; {where}; load average {busy:.1f} at the start; "
        f"Python {platform.python_version()}, {versions}."
    )


def table(header, rows):
    """A Markdown table as lines; `header` and each row are sequences of cells."""
    head = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return head + [f"| {' | '.join(map(str, row))} |" for row in rows]


def write(path, title, command, lines):
    """Writes a report and prints it; what stands below `NOTES` in the file stays.

    Args:
      path: the report's file.
      title: its heading.
      command: what was typed.
      lines: Markdown lines; the first says where and when (`environment`).
    """
    path = Path(path)
    text = "\n".join([f"# {title}", "", f"    {command}", "", *lines]) + "\n"
    before = path.read_text() if path.exists() else ""
    _, heading, notes = before.partition(NOTES)
    files.write_text(path, text + heading + notes)
    print(text)


def run(main):
    """Calls `main` with the command line's arguments; returns the exit status.

    As in `main.py`, a process that computes on the CPU keeps what it frees.
    """
    allocator.keep_freed_memory()
    return command.run(main, sys.argv[1:])
