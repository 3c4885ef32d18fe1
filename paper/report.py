"""Everything that has been run, as one Markdown page and one HTML page that needs no other file.

    python -m paper.report                      # reads results/, writes results/report.{md,html}

First the questions of `docs/questions.md` and their answers. Then every table and figure of the
paper has its place, and what has not been run says so; then whatever else lies among the results.
Figures are part of the page; every section names command, data, seeds, device and versions.
"""

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from errors import UserError
from paper import (
    appendices,
    degradation,
    embedded,
    figure1,
    figure4,
    figure6,
    figure7,
    identity_mappings,
    questions,
    table1,
    table3,
    table4,
    table5,
    table6,
)
from run import command, files, result
from run.command import in_html

TITLE = "The paper's tables and figures, and ours"
QUESTIONS = Path(__file__).parents[1] / "docs" / "questions.md"
FIELDS = {"title", "header", "tables", "figures", "remarks"}
STYLE = """
:root { color-scheme: light }
body { font: 16px/1.55 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 58rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem }
h1 { font-size: 1.9rem; line-height: 1.2 }
h2 { font-size: 1.35rem; margin: 3rem 0 .75rem; padding-top: 1rem; border-top: 1px solid #ccc }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .5rem }
nav { columns: 2; column-gap: 2rem; padding: 0; margin: 1.5rem 0 }
nav div { break-inside: avoid }
a { color: #0b57a4 }
.scroll { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right }
td:not(:first-child) { white-space: nowrap }
th { vertical-align: bottom; border-bottom: 2px solid #888; font-weight: 600 }
th:first-child, td:first-child { text-align: left; padding-left: 0 }
figure { margin: 1.5rem 0 }
figure img { display: block; width: 100%; height: auto; max-width: 52rem }
figure img { display: block; max-width: 100% }
pre { overflow-x: auto; background: #f5f5f5; padding: .6rem .8rem }
code { font: .9em ui-monospace, monospace; overflow-wrap: anywhere }
.header { color: #555; font-size: .85rem; padding-left: 1.1rem }
.missing { color: #a00 }
@media (max-width: 40rem) { nav { columns: 1 } }
"""


class Section(NamedTuple):
    """One part of the paper.

    Attributes:
      names: of the result, and of other commands that write the same one.
      title: where nothing was run.
      command: what runs it without preparing data.
      empty: makes its tables with the paper's numbers alone.
    """

    names: tuple[str, ...]
    title: str
    command: str
    empty: Callable[[], list[dict[str, Any]]] = list


def sections() -> list[Section]:
    """Every part, in the paper's order."""
    depths = "--depths 20 56"
    nets = [f"{family}{d}" for family in ("plain", "resnet") for d in figure6.DEPTHS]
    tested = "python main.py --config=configs/digits.py --workdir=runs/digits && " + (
        "python -m paper.{} --workdirs runs/digits --protocol=center"
    )

    detected = "python main.py --config=configs/detection/scenes.py --workdir=runs/scenes && " + (
        "python -m paper.{} --workdirs runs/scenes"
    )
    on_scenes = {name: detected.format(name) for name in ("table8", "table9")}

    def on_digits(name: str, options: str = depths) -> str:
        return f"python -m paper.{name} --dataset=digits {options}"

    return [
        Section(
            ("figure1",),
            figure1.TITLE,
            on_digits("figure1"),
            lambda: degradation.tables(["plain20", "plain56"], {}),
        ),
        Section(("table1",), table1.TITLE, "python -m paper.table1", lambda: table1.tables({})),
        Section(
            ("figure4", "table2"), figure4.TITLE, on_digits("figure4"), lambda: figure4.tables({})
        ),
        Section(
            ("table3",), table3.TITLE, on_digits("table3", "--depths 20"), lambda: table3.tables({})
        ),
        Section(("table4",), table4.TITLE, tested.format("table4"), lambda: table4.tables([])),
        Section(("table5",), table5.TITLE, tested.format("table5"), lambda: table5.tables([])),
        Section(
            ("figure6",), figure6.TITLE, on_digits("figure6"), lambda: degradation.tables(nets, {})
        ),
        Section(("table6",), table6.TITLE, on_digits("table6"), lambda: table6.tables({})),
        Section(("figure7",), figure7.TITLE, on_digits("figure7")),
        *(
            Section(
                (one.name,),
                one.title,
                on_scenes.get(one.name, f"python -m paper.{one.name}"),
                one.tables,
            )
            for one in appendices.TABLES
        ),
        Section(
            ("identity_mappings",),
            identity_mappings.TITLE,
            on_digits("identity_mappings", "--depth 20"),
            lambda: identity_mappings.tables({}),
        ),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the options, gathers and writes both pages."""
    p = command.Parser("python -m paper.report", __doc__)
    p.add_argument("--results", default="results", help="folder that the other commands wrote to")
    p.add_argument("--out", help="folder of the pages; default: the same")
    args = p.parse_args(argv)
    out = args.out or args.results
    markdown, body, titles, counts = [f"# {TITLE}", ""], [], [], [0, 0]
    if QUESTIONS.is_file():
        markdown += [questions.as_markdown(QUESTIONS, out), ""]
        body.append(f"<section id='questions'>{questions.as_html(QUESTIONS, out)}</section>")
        titles.append(("questions", questions.title(QUESTIONS), True))
    for section in tqdm(sections(), unit="section", disable=None):
        name, found = _found(args.results, section.names)
        counts[found is None] += 1
        content = found or {"title": section.title, "tables": section.empty()}
        content = {"figures": [], "remarks": []} | content
        command_of_part = None if found else section.command
        titles.append((name, content["title"], found is not None))
        markdown += [*_markdown(content, args.results, out, command_of_part), ""]
        body.append(_html(content, name, args.results, command_of_part))
    for name, content in _further(args.results):
        folder = files.at(args.results, name).parent
        titles.append((name, content["title"], True))
        markdown += [*_markdown(content, folder, out), ""]
        body.append(_html(content, name, folder))
    page = files.write_text(files.at(out, "report.md"), "\n".join(markdown))
    whole = (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>Paper and reproduction</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{TITLE}</h1>\n" + "\n".join([_contents(titles), *body]) + "\n</body></html>\n"
    )
    html_page = files.write_text(files.at(out, "report.html"), whole)
    print(f"{page}, {html_page}: {counts[0]} parts run, {counts[1]} not run.")


def _found(folder, names):
    """The first of the names that has a result, and the result; or the first name and None."""
    for name in names:
        content = result.read(folder, name)
        if content is None:
            continue
        if not _is_result(content):
            raise UserError(
                f"{files.at(folder, name)}.json: not a result of `python -m paper.{name}`; "
                f"expected {', '.join(sorted(FIELDS))}. Delete it and run the command again."
            )
        return name, content
    return names[0], None


def _is_result(content):
    return isinstance(content, dict) and set(content) >= FIELDS


def _further(folder):
    """Other results, of analyses for example, and those one folder further: `[(name, content)]`."""
    known = {name for section in sections() for name in section.names}
    root = files.at(folder)
    paths = [*root.glob("*.json"), *root.glob("*/*.json")]
    names = {path.relative_to(root).with_suffix("").as_posix() for path in paths} - known
    found = []
    for name in sorted(names, key=lambda name: name.split("/")[::-1]):
        content, (*parents, _) = result.read(folder, name), name.split("/")
        if _is_result(content):
            title = ": ".join([*parents, content["title"]])
            found.append((name, content | {"title": title}))
    return found


def _markdown(content, folder, out, not_run=None):
    links = [os.path.relpath(files.at(folder, figure), out) for figure in content["figures"]]
    if not_run is None:
        return result.markdown(content | {"figures": links}, level=2)
    return [*result.markdown_body(content, level=2), f"**not run**; for example: `{not_run}`"]


def _contents(titles):
    lines = []
    for name, title, was_run in titles:
        state = "" if was_run else " <span class='missing'>(not run)</span>"
        lines.append(f"<div><a href='#{in_html(name)}'>{in_html(title)}</a>{state}</div>")
    return "<nav>" + "\n".join(lines) + "</nav>"


def _html(content, name, folder, not_run=None):
    parts = [f"<section id='{in_html(name)}'><h2>{in_html(content['title'])}</h2>"]
    for table in content["tables"]:
        if table["heading"]:
            parts.append(f"<h3>{in_html(table['heading'])}</h3>")
        parts.append(_html_table(table))
    for figure in content["figures"]:
        parts.append(f"<figure>{embedded.picture(files.at(folder) / figure)}</figure>")
    parts += [f"<p>{in_html(remark)}</p>" for remark in content["remarks"]]
    if not_run is None:
        items = []
        for line in result.header_lines(content["header"]):
            items.append(re.sub("`(.*)`", r"<code>\1</code>", in_html(line)))
        parts.append("<ul class='header'><li>" + "<li>".join(items) + "</ul>")
    else:
        suggested = in_html(not_run)
        parts.append(f"<p class='missing'>not run; for example: <code>{suggested}</code></p>")
    return "\n".join([*parts, "</section>"])


def _html_table(table):
    def row(tag, cells):
        return "<tr>" + "".join(f"<{tag}>{in_html(c)}</{tag}>" for c in cells) + "</tr>"

    body = "\n".join(row("td", map(result.cell, cells)) for cells in table["rows"])
    head = row("th", table["columns"])
    table = f"<table><thead>{head}</thead>\n<tbody>{body}</tbody></table>"
    return f"<div class='scroll'>{table}</div>"


if __name__ == "__main__":
    sys.exit(command.run(main))
