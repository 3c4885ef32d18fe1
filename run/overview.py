"""Many runs at a glance: what their workdirs say, as a list or as one page with the curves.

Files are only read, and none is believed: what is damaged is named, and everything that is shown is
escaped.
"""

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from configs import base
from errors import UserError, first_line
from run import files, logs
from run.command import in_html, printable
from run.workdir import RUN, Workdir

COLUMNS = ("run", "network", "state", "step", "validation", "test", "age")
UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
WIDTH, HEIGHT = 300, 160  # of a chart
CURVES = (("train", "#888", 1), ("validation", "#d62728", 2.5), ("test", "#1f77b4", 2.5))
UNREADABLE = (OSError, ValueError, TypeError, AttributeError, RecursionError)


class Run(NamedTuple):
    """What a workdir says.

    Attributes:
      cells: text for each of `COLUMNS`.
      fields: its config, flat; empty when it cannot be read.
      lines: of metrics.jsonl.
      problems: what is damaged.
    """

    cells: tuple[str, ...]
    fields: dict[str, Any]
    lines: list[dict[str, Any]]
    problems: list[str]


def find(folder: str | Path) -> tuple[list[Run], list[str]]:
    """The workdirs in `folder` and below, sorted by path, and the folders that cannot be read.

    Raises:
      UserError: there is no such folder.
    """
    if not files.at(folder).is_dir():
        shown = printable(str(folder))
        raise UserError(f"{shown}: there is no such folder; expected one of workdirs.")
    runs: list[Run] = []
    unreadable: list[OSError] = []
    for path, folders, names in files.walk(folder, unreadable.append):
        workdir = Workdir(path)
        has_steps = workdir.checkpoints.name in folders and workdir.committed_steps()
        if has_steps or {workdir.config.name, workdir.metrics.name} & set(names):
            run = _read(workdir, folder)
            if run.fields or run.problems or run.lines:
                folders.clear()
                runs.append(run)
        folders.sort()
    return runs, [f"{error.filename}: {error.strerror}" for error in unreadable]


def _read(workdir, folder):
    problems, lines, damaged, steps = [], [], [], []
    fields = _config(workdir, problems)
    try:
        steps = workdir.committed_steps()  # first: whose lines are there before them
        if workdir.metrics.is_file():  # a pipe would never end
            lines, damaged = logs.whole_and_damaged(workdir.metrics)
        if steps and fields.get("log_every"):
            gaps = logs.gaps(lines, logs.logged_steps(fields, steps[-1]))
            problems += [f"{workdir.metrics.name}: {gap}" for gap in gaps]
    except (UserError, *UNREADABLE) as error:
        problems.append(first_line(error))
    if damaged:
        numbers = ", ".join(str(number) for number, _ in damaged[:5])
        problems.append(f"{workdir.metrics.name}: {len(damaged)} damaged line(s): {numbers}")
    step = max([*steps, *(line["step"] for line in lines)], default=0)
    final = any(line.get("final") for line in lines)
    state = "finished" if final else "unfinished" if step else "not begun"
    state = "running" if files.locked(workdir.lock) else state
    of = f" of {fields['num_steps']}" if "num_steps" in fields else ""
    cells = (
        os.path.relpath(workdir.path, folder),
        _network(fields),
        "damaged" if problems else state,
        f"{step}{of}",
        *(_last_error(lines, split) for split in ("validation", "test")),
        _age(workdir),
    )
    return Run(cells, fields, lines, problems)


def _config(workdir, problems):
    """A run's config, flat; empty, with a problem, when it cannot be read or is none of ours."""
    try:
        if not workdir.config.is_file():
            problems.append(f"{workdir.config.name}: there is none")
            return {}
        fields, _ = files.unsealed(workdir.config.read_text(encoding="utf-8"))
        fields.pop(RUN, None)
        if not isinstance(model := fields.get("model"), dict) or "depth" not in model:
            return {}  # somebody else's
        return base.flatten(fields)
    except UNREADABLE as error:
        problems.append(f"{workdir.config.name}: {first_line(error)}")
        return {}


def _network(fields):
    if "model.depth" not in fields:
        return "?"
    family = "plain" if fields.get("model.residual") is False else "resnet"
    return f"{family}{fields['model.depth']}"


def _number(value):
    """A finite float, or None."""
    try:
        number = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _last_error(lines, split):
    values = [logs.error(line) for line in lines if line.get("split") == split]
    number = _number(values[-1]) if values else None
    return "" if not values else "?" if number is None else f"{100 * number:.2f} %"


def _age(workdir):
    """Time since something was written."""
    written = []
    for path in (workdir.metrics, workdir.timing, workdir.config, workdir.checkpoints):
        try:
            written.append(path.stat().st_mtime)
        except OSError:
            continue
    age = max(0.0, time.time() - max(written, default=time.time()))
    name, unit = next((u for u in UNITS if age >= u[1]), UNITS[-1])
    return f"{age / unit:.0f} {name}"


def differing(runs: Sequence[Run]) -> list[str]:
    """Names of the config fields that are not the same in all runs; missing ones are defaults."""
    configs = [_complete(run) for run in runs if run.fields]
    names = sorted(set().union(*configs))
    return [n for n in names if len({json.dumps(c.get(n), sort_keys=True) for c in configs}) > 1]


def _complete(run):
    return base.flatten(base.to_dict(base.base())) | run.fields


def _choices(run, names):
    fields = _complete(run) if run.fields else {}
    return ", ".join(f"{name}={fields[name]}" for name in names if name in fields)


def listing(runs: Sequence[Run], unreadable: Sequence[str] = ()) -> Iterator[str]:
    """The lines of a table: a run, below it its choices and what is damaged."""
    names = differing(runs)
    rows = [COLUMNS, *(tuple(map(printable, run.cells)) for run in runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row, run in zip(rows, [None, *runs], strict=True):
        yield "  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip()
        if run is not None:
            notes = [_choices(run, names), *(f"damaged: {problem}" for problem in run.problems)]
            yield from (f"    {printable(note)}" for note in notes if note)
    yield from (f"not read: {printable(problem)}" for problem in unreadable)


def page(runs: Sequence[Run], unreadable: Sequence[str] = ()) -> str:
    """One HTML page: the table, and each run's error and loss side by side on common axes."""
    names = differing(runs)
    rows = "".join(
        f"<tr>{''.join(f'<td>{in_html(cell)}' for cell in run.cells)}"
        f"<td>{in_html(_choices(run, names))}<td>{in_html('; '.join(run.problems))}"
        for run in runs
    )
    heads = "".join(f"<th>{name}" for name in (*COLUMNS, "config", "damaged"))
    lines = [line for run in runs for line in run.lines]
    last = max([1.0, *filter(None, (_number(line["step"]) for line in lines))])
    top = max([1e-9, *filter(None, (_number(line.get("loss")) for line in lines))])
    charts = "".join(
        f"<figure><figcaption>{in_html(run.cells[0])}</figcaption>"
        + _chart(run.lines, logs.error, last, 1.0, "error, 0 to 100 %")
        + _chart(run.lines, lambda line: line.get("loss"), last, top, f"loss, 0 to {top:.3g}")
        + "</figure>"
        for run in runs
    )
    legend = ", ".join(f'<b style="color:{colour}">{split}</b>' for split, colour, _ in CURVES)
    notes = "".join(f"<p>not read: {in_html(problem)}" for problem in unreadable)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Runs</title><style>'
        "body{font:14px sans-serif}td,th{padding:2px 8px;text-align:left;vertical-align:top}"
        "main{display:flex;flex-wrap:wrap}figure{margin:8px}svg{border:1px solid #ccc}"
        f"</style><h1>{len(runs)} runs</h1><table><tr>{heads}{rows}</table>{notes}"
        f"<p>{legend}; all charts from step 0 to {last:.0f}."
        f"<main>{charts}</main></html>\n"
    )


def _chart(lines, value_of, last_step, top, title):
    curves = []
    for split, colour, width in CURVES:
        pairs = [
            (_number(line["step"]), _number(value_of(line)))
            for line in lines
            if line.get("split") == split
        ]
        points = [
            (WIDTH * step / last_step, HEIGHT * (1 - min(max(value / top, 0), 1)))
            for step, value in pairs
            if step is not None and value is not None
        ]
        text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        style = f'fill="none" stroke="{colour}" stroke-width="{width}"'
        curves.append(f'<polyline points="{text}" {style}/>')
        if len(points) == 1:
            x, y = points[0]
            curves.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">'
        f"<title>{title}</title>{''.join(curves)}</svg>"
    )
