"""Reading Markdown: the tables of a report, so that a test asks for one fact; a page's code."""

import re


def code_blocks(page, language):
    """The fenced blocks of a file that name a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.S | re.M)


def tables(lines):
    """The tables among Markdown lines, each a list of rows: column title → text.

    Where several columns have one title, the later ones are `title (2)`, `title (3)`, ….
    """
    found, header = [], None
    for line in lines:
        if not line.startswith("|"):
            header = None
        elif header is None:
            header = _unique(_cells(line))
            found.append([])
        elif set(line) - set("|-: "):
            found[-1].append(dict(zip(header, _cells(line), strict=True)))
    return found


def row(rows, first):
    """The one row whose first cell is `first`."""
    (found,) = (r for r in rows if next(iter(r.values())) == first)
    return found


def _cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _unique(titles):
    seen = []
    for title in titles:
        number = sum(t == title or t.startswith(f"{title} (") for t in seen) + 1
        seen.append(title if number == 1 else f"{title} ({number})")
    return seen
