"""The reports `benchmarks/NAME.md`: a program writes the top, people write below `NOTES`."""

import os
import platform
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from run import allocator, command, files
from run.provenance import provenance

NOTES = "\n## What was tried"
CPU_FACTS = Path("/proc/cpuinfo")


def processor() -> str:
    """The processor's name and number of cores, e.g. '2 cores of Intel(R) Xeon(R) Processor'."""
    lines = CPU_FACTS.read_text().splitlines() if CPU_FACTS.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0] if names else platform.machine()}"


def parser(file: str, description: str) -> command.Parser:
    """The arguments of `python -m benchmarks.<name>`, the module in `file`; so far only `--report`.

    The report lies beside the module and has its name.
    """
    path = Path(file)
    p = command.Parser(f"python -m benchmarks.{path.stem}", description)
    p.add_argument("--report", type=Path, default=path.with_suffix(".md"))
    return p


def environment() -> str:
    """One sentence: date, device, versions and the load of the machine at this moment."""
    busy, found = os.getloadavg()[0], provenance("")
    on_cpu = jax.default_backend() == "cpu"
    where = processor() if on_cpu else f"{found['device']}, host with {processor()}"
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"{found['date']}; {where}; load average {busy:.1f} at the start; {versions}."


def table(header: Sequence[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    """A Markdown table as lines; `header` and each row are sequences of cells."""
    head = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return head + [f"| {' | '.join(map(str, row))} |" for row in rows]


def updated(
    records: list[dict[str, Any]], new: list[dict[str, Any]], identity: Sequence[str]
) -> list[dict[str, Any]]:
    """`records`, where a new one takes the place of those with the same fields `identity`."""

    def key(record):
        return tuple(record[name] for name in identity)

    fresh = {key(record) for record in new}
    return [record for record in records if key(record) not in fresh] + new


def write(path: Path, title: str, command: str, lines: Iterable[str]) -> None:
    """Writes a report and prints it; what stands below `NOTES` in the file stays.

    Args:
      path: the report's file.
      title: its heading.
      command: what was typed.
      lines: Markdown lines; the first says where and when (`environment`).
    """
    text = "\n".join([f"# {title}", "", f"    {command}", "", *lines]) + "\n"
    before = path.read_text() if path.exists() else ""
    _, heading, notes = before.partition(NOTES)
    files.write_text(path, text + heading + notes)
    print(text)


def run(main: Callable[[Sequence[str] | None], None]) -> int:
    """Ends a benchmark as `run.command.run` does; returns the exit status.

    As in `main.py`, a process that computes on the CPU keeps what it frees.
    """
    allocator.keep_freed_memory()
    return command.run(main)
