"""The form of a result: a header, JSON, Markdown tables, numbers side by side with the paper's."""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from errors import UserError
from run import command, files
from run.provenance import provenance

NOT_RUN = "not run"


def parser(
    name: str, description: str, room: str = "paper", out: str = "results"
) -> command.Parser:
    """The arguments of `python -m <room>.<name>`, with `name`; so far only `--out`."""
    p = command.Parser(f"python -m {room}.{name}", description)
    p.set_defaults(name=name)
    p.add_argument("--out", default=out, help=f"folder of JSON, Markdown and figure ({out})")
    return p


def header(
    args: argparse.Namespace,
    notes: Sequence[str] = (),
    runs: Iterable[Mapping[str, Any]] = (),
    compared: str = "",
) -> dict[str, Any]:
    """What a reader needs to judge a number: how, when and on what it was measured.

    Args:
      args: of a `parser`.
      notes: what differs from the paper.
      runs: with the `seed` of each.
      compared: what a claim rests on, as it was written down before its runs.
    """
    return provenance(args.command) | {
        "dataset": getattr(args, "dataset", None),
        "seeds": sorted({run["seed"] for run in runs}),
        "scaled": list(notes),
        "compared": compared,
    }


def read(out: str | Path, name: str) -> Any:
    """The content of `<out>/<name>.json`, or None when there is none.

    Raises:
      UserError: the file is not JSON.
    """
    path = files.at(out, f"{name}.json")
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete it and run again.") from error


def table(heading: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> dict[str, Any]:
    """A table as data: `{'heading', 'columns', 'rows'}`; rows hold texts, numbers and None.

    A column without any value is left out.
    """
    names, cells = list(columns), [list(row) for row in rows]
    kept = [i for i in range(len(names)) if not cells or any(row[i] is not None for row in cells)]
    return {
        "heading": heading,
        "columns": [names[i] for i in kept],
        "rows": [[row[i] for i in kept] for row in cells],
    }


def publish(
    args: argparse.Namespace,
    title: str,
    head: dict[str, Any],
    tables: Sequence[dict[str, Any]],
    *,
    figures: Iterable[str] = (),
    remarks: Iterable[str] = (),
    **details: Any,
) -> None:
    """Writes `<out>/<name>.json` and `.md` and prints the Markdown.

    Args:
      args: of a `parser`.
      title: of the page.
      head: of `header`.
      tables: list of `table`.
      figures: file names in the folder.
      remarks: sentences below the tables.
      details: further fields of the JSON, e.g. the curves.
    """
    content = {
        "title": title,
        "header": head,
        "tables": tables,
        "figures": list(figures),
        "remarks": list(remarks),
        **details,
    }
    files.write_text(files.at(args.out, f"{args.name}.json"), json.dumps(content, indent=1) + "\n")
    text = "\n".join(markdown(content)) + "\n"
    files.write_text(files.at(args.out, f"{args.name}.md"), text)
    print(text)


def markdown(content: Mapping[str, Any], level: int = 1) -> list[str]:
    """Lines of Markdown of a published result."""
    head = [f"- {_escaped(line)}" for line in header_lines(content["header"])]
    return markdown_body(content, level) + head


def markdown_body(content: Mapping[str, Any], level: int = 1) -> list[str]:
    """The same without the header."""
    title = _escaped(content["title"])
    lines = ["#" * level + f" {title}", ""]
    for one in content["tables"]:
        if one["heading"]:
            lines += ["#" * (level + 1) + f" {_escaped(one['heading'])}", ""]
        lines += [*_markdown_table(one["columns"], one["rows"]), ""]
    for figure in content["figures"]:
        lines += [f"![{title}]({_escaped(figure)})", ""]
    for remark in content["remarks"]:
        lines += [_escaped(remark), ""]
    return lines


def _escaped(text):
    """Markdown may hold HTML, and a result that somebody sent a script, or codes of a terminal."""
    return command.printable(text).replace("<", "&lt;")


def header_lines(head: Mapping[str, Any]) -> list[str]:
    """The header as sentences, for people."""
    versions = ", ".join(f"{name} {version}" for name, version in head["versions"].items())
    compared = head.get("compared")
    return [
        f"command: `{head['command']}`",
        f"date: {head['date']}; device: {head['device']}; {versions}",
        f"data: {head['dataset'] or 'none'}; seeds: {', '.join(map(str, head['seeds'])) or 'none'}",
        "differs from the paper: " + ("; ".join(head["scaled"]) or "nothing"),
        *([f"compared, as written down before the runs: {compared}"] if compared else []),
    ]


def _markdown_table(columns, rows):
    columns, *body = [
        [_escaped(cell(value)).replace("|", "\\|") for value in row] for row in (columns, *rows)
    ]
    widths = [max(len(line[i]) for line in ([columns, *body])) for i in range(len(columns))]
    lines = [_row(columns, widths), "|" + "|".join(_rule(w, i) for i, w in enumerate(widths)) + "|"]
    return lines + [_row(line, widths) for line in body]


def _row(cells, widths):
    padded = [
        text.ljust(width) if i == 0 else text.rjust(width)
        for i, (text, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "| " + " | ".join(padded) + " |"


def _rule(width, index):
    return "-" * (width + 2) if index == 0 else "-" * (width + 1) + ":"


def cell(value: Any) -> str:
    """Text of a table cell: None is '–', floats have two decimals."""
    if value is None:
        return "–"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def ours(summary: Mapping[str, Any] | None, digits: int = 2) -> str:
    """'8.75 ± 0.12' over seeds, '8.75' for one run, 'not run' for None."""
    if summary is None:
        return NOT_RUN
    values = [summary["mean"]] + ([] if summary["std"] is None else [summary["std"]])
    return " ± ".join(f"{value:.{digits}f}" for value in values)


def difference(summary: Mapping[str, Any] | None, paper: Any) -> str | None:
    """Mean − paper in points with a sign, or None when either is not a number."""
    if summary is None or not isinstance(paper, int | float):
        return None
    return f"{summary['mean'] - paper:+.2f}"
