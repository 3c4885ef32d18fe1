"""The list of runs: what is there, damaged and hostile too, and nothing changed by it."""

import json
import os

import pytest

import main
from configs import digits
from errors import UsageError, UserError
from run import files, overview
from run.logs import RunLog
from run.workdir import Workdir


def make(path, lines=(), **fields):
    """A workdir with what a run writes of these lines: (step, split, error)."""
    config = digits.get_config("resnet8,paper")
    config.update(fields)
    path.mkdir(parents=True)
    Workdir(path).claim(config)
    log = RunLog(path, 0, tensorboard=False)
    for step, split, error in lines:
        values = {"loss": 2 * error, "top1_error": error}
        log.metrics(step, split, values, **({"final": True} if split == "test" else {}))
    log.close()
    return path


@pytest.fixture
def folder(tmp_path):
    """Runs in every state, and a folder that is no run."""
    root = tmp_path / "runs"
    finished = [(300, "train", 0.5), (300, "validation", 0.25), (600, "test", 0.125)]
    make(root / "a", finished, seed=1)
    make(root / "deep" / "b", [(100, "train", 0.75)], batch_size=32)
    make(root / "c")
    (root / "other").mkdir()
    (root / "other" / "config.json").write_text('{"model_type": "resnet"}')
    (root / "others").mkdir()
    (root / "others" / "config.json").write_text('{"model": {"hidden": 8}}')
    return root


def listed(folder):
    return "\n".join(overview.listing(*overview.find(folder)))


def test_states_steps_and_errors(folder):
    runs, unreadable = overview.find(folder)
    cells = {run.cells[0]: run.cells[1:6] for run in runs}
    assert cells == {
        "a": ("resnet8", "finished", "600 of 600", "25.00 %", "12.50 %"),
        "c": ("resnet8", "not begun", "0 of 600", "", ""),
        "deep/b": ("resnet8", "unfinished", "100 of 600", "", ""),
    }
    assert not unreadable and not any(run.problems for run in runs)
    assert overview.differing(runs) == ["batch_size", "seed"]
    assert "batch_size=128, seed=1" in listed(folder)
    assert overview.find(folder / "a")[0][0].cells[0] == "."
    with files.lock(Workdir(folder / "deep" / "b").lock):
        states = {run.cells[0]: run.cells[2] for run in overview.find(folder)[0]}
    assert states == {"a": "finished", "c": "not begun", "deep/b": "running"}


def test_age_is_that_of_the_last_write(folder):
    for path in (folder / "a").iterdir():
        os.utime(path, (0, path.stat().st_mtime - 3 * 86400))
    ages = {run.cells[0]: run.cells[6] for run in overview.find(folder)[0]}
    assert ages["a"] == "3 d" and ages["c"].endswith((" s", " min"))


def test_lines_that_are_missing_before_a_checkpoint_are_named(folder):
    run = make(folder / "d", [(100, "train", 0.5)], log_every=100)
    (Workdir(run).checkpoints / "100").mkdir(parents=True)
    assert "missing" not in listed(run)
    (Workdir(run).checkpoints / "300").mkdir()
    assert "metrics.jsonl: 2 train line(s) are missing, the first of step 200" in listed(run)


def test_damage_is_named_and_the_rest_listed(folder):
    (folder / "a" / "config.json").write_text('{"model": {"depth"')
    with open(folder / "deep" / "b" / "metrics.jsonl", "a") as log:
        log.write('{"step": 200, "split": "train"\n')
    (folder / "c" / "metrics.jsonl").unlink()
    os.mkfifo(folder / "c" / "metrics.jsonl")  # would never end
    (folder / "nothing_else").mkdir()
    (folder / "nothing_else" / "config.json").write_bytes(b"\xff\xfe" * 50)
    states = {run.cells[0]: run.cells[2] for run in overview.find(folder)[0]}
    assert states == dict.fromkeys(["a", "deep/b", "nothing_else"], "damaged") | {"c": "not begun"}
    text = listed(folder)
    assert (
        "damaged: config.json: " in text and "damaged: metrics.jsonl: 1 damaged line(s): 2" in text
    )
    assert "12.50 %" in text  # what a damaged run still says


HOSTILE = "<script>alert(1)</script>&\x1b[31m\u202e\n"


@pytest.mark.parametrize("value", [HOSTILE, {"a": HOSTILE}, [HOSTILE], 1e999, 10**400, None])
def test_what_is_shown_is_escaped(tmp_path, value):
    path = make(tmp_path / "runs" / f"x{HOSTILE.replace('/', '|')}", [(5, "validation", 0.5)])
    fields = json.loads((path / "config.json").read_text())
    fields = {k: v for k, v in fields.items() if k in ("model", "num_steps")}
    fields |= {"dataset": value, "num_steps": value, "model": {"depth": value, HOSTILE: 1}}
    (path / "config.json").write_text(json.dumps(fields))
    line = {"step": 10**30, "split": "train", "loss": value, "top1_error": value}
    (path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    make(tmp_path / "runs" / "y")
    found = overview.find(tmp_path / "runs")
    page, text = overview.page(*found), "\n".join(overview.listing(*found))
    assert "<script" not in page and "\x1b" not in page and "\u202e" not in page
    assert "&lt;script&gt;" in page
    assert "\x1b" not in text and "\u202e" not in text and "\\x1b[31m" in text
    assert len(found[0]) == 2


def test_one_page_with_the_curves(folder):
    page = overview.page(*overview.find(folder))
    assert page.count("<figure>") == 3 and page.count("<svg") == 6
    assert "from step 0 to 600" in page
    # a's one training point of error 0.5 at half of the steps; the test point at the end
    assert 'cx="150.0" cy="80.0"' in page and 'cx="300.0" cy="140.0"' in page
    assert "nan" not in page and "<script" not in page


def test_the_command_reads_and_changes_nothing(folder, tmp_path, monkeypatch, capsys):
    def state():
        return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}

    before = state()
    monkeypatch.chdir(tmp_path)
    main.main(["main.py", "--mode=runs"])
    assert "resnet8  finished" in capsys.readouterr().out
    main.main(["main.py", "--mode=runs", str(folder), "--html"])
    assert (tmp_path / "runs.html").read_text().startswith("<!doctype html>")
    main.main(["main.py", "--mode=runs", str(folder / "deep"), "--html=one.html"])
    assert (tmp_path / "one.html").read_text().count("<figure>") == 1
    assert state() == before


def test_what_cannot_be_listed(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        overview.find(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert overview.find(tmp_path / "empty") == ([], [])
    for words in (["a", "b"], ["--workdirs=a"]):
        with pytest.raises(UsageError, match="unexpected argument"):
            main.main(["main.py", "--mode=runs", *words])
