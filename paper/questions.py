"""A page of the documentation as a part of the report: one heading lower, links from its folder."""

import os
import re
import urllib.parse
from pathlib import Path

from paper import embedded

OUTSIDE = re.compile(r"(?:[a-z]+:|#)")  # how a link begins that leads to no file


def title(page: Path) -> str:
    """The text of the page's first heading."""
    return re.search(r"^# (.*)$", page.read_text(), re.M)[1]


def as_markdown(page: Path, out: str) -> str:
    """The page for a Markdown file in the folder `out`."""
    lines, in_code = [], False
    for line in page.read_text().splitlines():
        in_code ^= line.startswith("```")
        if not in_code:
            line = re.sub(r"^#", "##", line)
            line = re.sub(
                r"(\]\()([^)]+)(\))", lambda m: m[1] + _moved(page, m[2], out) + m[3], line
            )
        lines.append(line)
    return "\n".join(lines)


def as_html(page: Path, out: str) -> str:
    """The page for an HTML file in the folder `out`, with its pictures in it."""
    from markdown_it import MarkdownIt  # comes with flax; needed once

    rendered = MarkdownIt("js-default").render(as_markdown(page, out))
    rendered = rendered.replace("<table>", "<div class='scroll'><table>")
    rendered = rendered.replace("</table>", "</table></div>")

    def embed(match):
        source = urllib.parse.unquote(match[1])
        if OUTSIDE.match(source):
            return match[0]
        path = Path(os.path.normpath(Path(out, source)))  # `out` need not be there yet
        return f"<figure>{embedded.picture(path)}</figure>"

    return re.sub(r'<img src="([^"]*)"[^>]*>', embed, rendered)


def _moved(page, target, out):
    """A link of `page` as it leads from `out` to the same place."""
    if OUTSIDE.match(target):
        return target
    path, mark, heading = target.partition("#")
    return os.path.relpath(page.parent / path, out) + mark + heading
