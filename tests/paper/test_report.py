"""The report: what was run, what was not, and the page of questions."""

import contextlib
import importlib
import re

import pytest

from errors import UserError
from paper import appendices, experiment, from_workdirs, report
from run import result


@pytest.mark.slow
def test_a_report_of_nothing_says_so_everywhere(tmp_path, capsys):
    report.main([f"--results={tmp_path}"])
    assert "0 parts run, 18 not run" in capsys.readouterr().out
    text = (tmp_path / "report.md").read_text()
    assert text.count("**not run**") == 18
    assert re.search(r"resnet110 .*not run.* 6\.43", text)


@pytest.mark.slow
def test_every_suggested_command_is_one(tmp_path, monkeypatch):
    """Its options are known, nothing that it needs is missing; what it trains is not waited for."""
    report.main([f"--results={tmp_path}"])
    found = re.findall(r"for example: `(.*)`", (tmp_path / "report.md").read_text())
    assert len(found) == 18
    appendix = {f"paper.{table.name}" for table in appendices.TABLES}
    started = []
    monkeypatch.setattr(experiment, "train_grid", lambda args, grid: started.append(args) or 1 / 0)
    monkeypatch.setattr(from_workdirs, "publish", lambda args, *_: started.append(args) or 1 / 0)
    for line in found:
        [*first, words] = line.split(" && ")
        assert all(
            re.match(r"python main.py --config=configs/(digits|detection/scenes).py", one)
            for one in first
        )
        _, _, module, *argv = words.split()
        if module == "paper.table1":
            continue
        if module in appendix:
            with (
                pytest.raises(UserError, match="runs/scenes") if first else contextlib.nullcontext()
            ):
                importlib.import_module(module).main([*argv, f"--out={tmp_path}"])
            continue
        with pytest.raises(ZeroDivisionError):
            importlib.import_module(module).main(argv)
        assert getattr(started[-1], "dataset", "digits") in ("digits", None)


@pytest.mark.slow
def test_the_page_of_questions_is_a_part_of_the_report(tmp_path, monkeypatch):
    docs, out = tmp_path / "docs", tmp_path / "results"
    docs.mkdir()
    out.mkdir()
    (out / "a.svg").write_text('<?xml version="1.0"?><svg id="x"><use href="#x"/></svg>')
    page = docs / "questions.md"
    page.write_text(
        "# Questions\n\n## Why x?\n\nAs `f` [says](paper.md#why), see [it](http://a.b/c), "
        "a < b & <b>c</b>.\n\n![A](../results/a.svg) ![A](../results/a.svg)\n\n"
        "```bash\n# no heading\npython -m x\n```\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n"
    )
    monkeypatch.setattr(report, "QUESTIONS", page)
    report.main([f"--results={out}", f"--out={tmp_path / 'new' / 'pages'}"])
    assert "src='data:image/svg+xml;base64," in (tmp_path / "new/pages/report.html").read_text()
    report.main([f"--results={out}"])
    text, markdown = (out / "report.html").read_text(), (out / "report.md").read_text()
    assert "<h2>Questions</h2>" in text and "<h3>Why x?</h3>" in text
    assert "<a href='#questions'>Questions</a>" in text
    assert 'href="../docs/paper.md#why"' in text and 'href="http://a.b/c"' in text
    assert "&lt;b&gt;c" in text and "<td" in text and "# no heading\n" in text
    assert text.count("<img alt='a'") == 2
    assert "![A](a.svg)" in markdown and "\n### Why x?" in markdown and "\n# no heading" in markdown


@pytest.mark.slow
def test_other_results_have_their_place_at_the_end(tmp_path):
    args = result.parser("lesions", "", room="analysis").parse_args([f"--out={tmp_path}"])
    result.publish(args, "Lesions & more", result.header(args), [result.table("", ["a"], [[1]])])
    (tmp_path / "other.json").write_text("[1]")
    args.out = str(tmp_path / "deeper")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper/a.svg").write_text("<svg/>")
    result.publish(args, "Lesions", result.header(args), [], figures=["a.svg"])
    report.main([f"--results={tmp_path}"])
    page, markdown = ((tmp_path / name).read_text() for name in ("report.html", "report.md"))
    assert "<h2>deeper: Lesions</h2>" in page and "data:image/svg+xml" in page
    assert "deeper/a.svg" in markdown
    assert "<h2>Lesions &amp; more</h2>" in page.partition("id='identity_mappings'")[2]
    assert "python -m analysis.lesions" in page


def test_a_foreign_file_among_the_results(tmp_path):
    (tmp_path / "table6.json").write_text('{"rows": []}')
    with pytest.raises(UserError, match=r"table6\.json: not a result of"):
        report.main([f"--results={tmp_path}"])
    (tmp_path / "table6.json").write_text('{"rows": [')
    with pytest.raises(UserError, match=r"table6\.json: cannot be read"):
        report.main([f"--results={tmp_path}"])


@pytest.mark.slow
def test_scripts_of_results_do_not_run(tmp_path):
    script = "<script>alert(1)</script>\x1b[2J"
    name = "x' onload='alert(2)"  # of the file, which stands in the page's anchors
    args = result.parser(name, "", room="analysis").parse_args([f"--out={tmp_path}"])
    (tmp_path / "a.svg").write_text(f"<svg>{script}</svg>")
    table = result.table(script, [script], [[script]])
    head = result.header(args) | {"dataset": script}
    result.publish(args, script, head, [table], figures=["a.svg"], remarks=[script])
    report.main([f"--results={tmp_path}"])
    for file in ("report.html", "report.md", f"{name}.md"):
        text = (tmp_path / file).read_text()
        assert "<script>alert" not in text and "\x1b" not in text
    assert name not in (tmp_path / "report.html").read_text()
