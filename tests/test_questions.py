"""docs/questions.md: every question has every part, and a measured number stands in its result."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "questions.md"
PARTS = ("Answer", "Literature", "Measured here", "What this does not show")
# A decimal, a number with a thousands separator, or one that is a share or a spread.
NUMBER = re.compile(r"(?<![\w.,])-?\d+(?:,\d{3})+|(?<![\w.,])-?\d+\.\d+(?:e-?\d+)?|\b\d+(?= %)")


def questions(text):
    """`{question: its text}`."""
    _, *parts = re.split(r"^## (.*)$", text, flags=re.M)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def unfounded(measured, folder):
    """Numbers of a paragraph that stand in none of the results that it links to."""
    links = re.findall(r"\]\((\.\./results/[\w./]+\.md)\)", measured)
    results = " ".join((folder / link).read_text() for link in links)
    shown = re.sub(r"\]\([^)]*\)", "", measured)
    results += results.replace(",", "")
    numbers = (n.replace(",", "") for n in NUMBER.findall(shown))
    return [n for n in numbers if not re.search(rf"(?<![\d.]){n}(?!\d)", results)]


QUESTIONS = questions(PAGE.read_text())


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_has_every_part_and_its_numbers_are_measured(question):
    text = QUESTIONS[question]
    found = re.findall(r"^\*\*([\w ]+)\.\*\*", text, re.M)
    assert found == list(PARTS), question
    measured = re.search(r"\*\*Measured here\.\*\*(.*?)(?=\n\n)", text, re.S)[1]
    assert not unfounded(measured, PAGE.parent), question
    assert "../results/" in measured or "not measured here" in measured.lower(), question
    assert "```bash\n" in text, f"{question}: no command"


def test_a_number_from_nowhere_is_found(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.md").write_text("| plain20 | 0.30 ± 0.17 | 69,632 |")
    (tmp_path / "docs").mkdir()
    link = "[a](../results/a.md)"
    assert unfounded(f"0.30 ± 0.17 %, 69,632 weights {link}", tmp_path / "docs") == []
    assert unfounded(f"0.31 and 12 % and 1,000 {link}", tmp_path / "docs") == [
        "0.31",
        "12",
        "1000",
    ]
    assert unfounded(f"0.3 {link}", tmp_path / "docs") == ["0.3"]
