"""Everything that has been run, as one Markdown page and one HTML page that needs no other file.

    python -m paper.report                      # reads results/, writes results/report.{md,html}

Every table and figure of the paper has its place; what has not been run says so. Figures are inline
SVG; every section names command, data, seeds, device and versions.
"""

import html
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from errors import UserError
from paper import (
    degradation,
    figure1,
    figure4,
    figure6,
    figure7,
    identity_mappings,
    table1,
    table3,
    table4,
    table5,
    table6,
)
from run import command, files, result

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
figure svg { display: block; width: 100%; height: auto; max-width: 52rem }
code { font: .9em ui-monospace, monospace; overflow-wrap: anywhere }
.header { color: #555; font-size: .85rem; padding-left: 1.1rem }
.missing { color: #a00 }
@media (max-width: 40rem) { nav { columns: 1 } }
"""


def sections() -> list[tuple[str, str, Callable[[], list[dict[str, Any]]]]]:
    """Name, title and maker of the empty tables of every part, in the paper's order."""
    plain = [f"{family}{d}" for family in ("plain", "resnet") for d in figure6.DEPTHS]
    return [
        (
            "figure1",
            figure1.TITLE,
            lambda: degradation.tables(["plain20", "plain56"], {}),
        ),
        ("table1", table1.TITLE, lambda: table1.tables({})),
        ("figure4", figure4.TITLE, lambda: figure4.tables({})),
        ("table3", table3.TITLE, lambda: table3.tables({})),
        ("table4", table4.TITLE, lambda: table4.tables([])),
        ("table5", table5.TITLE, lambda: table5.tables([])),
        ("figure6", figure6.TITLE, lambda: degradation.tables(plain, {})),
        ("table6", table6.TITLE, lambda: table6.tables({})),
        ("figure7", figure7.TITLE, list),
        ("identity_mappings", identity_mappings.TITLE, lambda: identity_mappings.tables({})),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the options, gathers and writes both pages."""
    p = command.Parser("python -m paper.report", __doc__)
    p.add_argument("--results", default="results", help="folder that the other commands wrote to")
    p.add_argument("--out", help="folder of the pages; default: the same")
    args = p.parse_args(argv)
    out = args.out or args.results
    markdown, body = ["# The paper's tables and figures, and ours", ""], []
    titles, counts = [], [0, 0]
    for name, title, empty in tqdm(sections(), unit="section", disable=None):
        found = _read(args.results, name)
        counts[found is None] += 1
        content = found or {"title": title, "tables": empty(), "figures": [], "remarks": []}
        titles.append((name, content["title"], found is not None))
        links = [os.path.relpath(Path(args.results, figure), out) for figure in content["figures"]]
        markdown += [*_markdown(content | {"figures": links}, name, found is not None), ""]
        body.append(_html(content, name, found is not None, args.results))
    page = files.write_text(Path(out, "report.md"), "\n".join(markdown))
    whole = (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>Paper and reproduction</title><style>{STYLE}</style></head>\n"
        "<body><h1>The paper's tables and figures, and ours</h1>\n"
        + "\n".join([_contents(titles), *body])
        + "\n</body></html>\n"
    )
    html_page = files.write_text(Path(out, "report.html"), whole)
    print(f"{page}, {html_page}: {counts[0]} parts run, {counts[1]} not run.")


def _read(folder, name):
    content = result.read(folder, name)
    needed = {"title", "header", "tables", "figures", "remarks"}
    if content is not None and (not isinstance(content, dict) or not needed <= set(content)):
        raise UserError(
            f"{Path(folder) / name}.json: not a result of `python -m paper.{name}`; expected "
            f"{', '.join(sorted(needed))}. Delete it and run the command again."
        )
    return content


def _markdown(content, name, was_run):
    if was_run:
        return result.markdown(content, level=2)
    stub = content | {"header": None}
    return [*result.markdown_body(stub, level=2), f"**not run**: `python -m paper.{name}`"]


def _contents(titles):
    lines = []
    for name, title, was_run in titles:
        state = "" if was_run else " <span class='missing'>(not run)</span>"
        lines.append(f"<div><a href='#{name}'>{html.escape(title)}</a>{state}</div>")
    return "<nav>" + "\n".join(lines) + "</nav>"


def _html(content, name, was_run, folder):
    parts = [f"<section id='{name}'><h2>{html.escape(content['title'])}</h2>"]
    for table in content["tables"]:
        if table["heading"]:
            parts.append(f"<h3>{html.escape(table['heading'])}</h3>")
        parts.append(_html_table(table))
    for figure in content["figures"]:
        parts.append(f"<figure>{_inline_svg(Path(folder) / figure, name)}</figure>")
    parts += [f"<p>{html.escape(remark)}</p>" for remark in content["remarks"]]
    if was_run:
        items = []
        for line in result.header_lines(content["header"]):
            items.append(re.sub("`(.*)`", r"<code>\1</code>", html.escape(line)))
        parts.append("<ul class='header'><li>" + "<li>".join(items) + "</ul>")
    else:
        parts.append(f"<p class='missing'>not run: <code>python -m paper.{name}</code></p>")
    return "\n".join([*parts, "</section>"])


def _html_table(table):
    def row(tag, cells):
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    body = "\n".join(row("td", map(result.cell, cells)) for cells in table["rows"])
    head = row("th", table["columns"])
    table = f"<table><thead>{head}</thead>\n<tbody>{body}</tbody></table>"
    return f"<div class='scroll'>{table}</div>"


def _inline_svg(path, name):
    """The drawing itself, its ids made unique in the page.

    Raises:
      UserError: the file is missing or holds no drawing.
    """
    try:
        text = path.read_text()
        drawing = text[text.index("<svg") :]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no figure ({error}); run `python -m paper.{name}`.") from error
    drawing = re.sub(r'\bid="', f'id="{name}-', drawing)
    drawing = re.sub(r"url\(#", f"url(#{name}-", drawing)
    return re.sub(r'href="#', f'href="#{name}-', drawing)


if __name__ == "__main__":
    sys.exit(command.run(main))
