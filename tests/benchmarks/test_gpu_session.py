"""The session for a card, rehearsed: jobs, their budget, going on; each stage at a tiny scale."""

import importlib
import json
import logging
import os
import re
import subprocess
import sys

import pytest

from benchmarks import gpu_session, gpu_worker, reports, startup, step_time
from benchmarks.gpu_session import DONE, Job, run, session
from benchmarks.whole_step import Row
from errors import UserError
from run import determinism, logs
from tests.support import markdown
from tests.test_bare_machine import BARE

QUICK = Job("first", "quick", ("-c", "print('words'); print('more')"))
SLOW = Job("first", "slow", ("-c", "import time; print('began', flush=True); time.sleep(600)"))
BAD = Job("second", "bad", ("-c", "raise SystemExit('no card')"))


def test_what_is_done_is_not_run_again_and_the_rest_is(tmp_path):
    first = session([QUICK, BAD], tmp_path, 5, {})
    assert first[QUICK.key]["state"] == DONE and first[QUICK.key]["said"] == ["words", "more"]
    assert first[BAD.key]["state"] == "status 1" and first[BAD.key]["said"] == ["no card"]
    path = tmp_path / "session.json"
    assert json.loads(path.read_text()) == first
    changed = QUICK._replace(words=("-c", "print('other')"))
    for jobs, expected in (([QUICK, BAD], ["words", "more"]), ([changed], ["other"])):
        again = session(jobs, tmp_path, 5, {})
        assert again[QUICK.key]["said"] == expected
        assert BAD.key in again  # what another call found stays
    text = (tmp_path / "session.md").read_text()
    assert "| first: quick | done |" in text and "    other" in text


@pytest.mark.slow
def test_a_job_ends_with_its_time_and_what_is_left_is_not_run(tmp_path, monkeypatch):
    found = run(SLOW, 2, {})
    assert found["state"].startswith("out of time after 2 s") and found["said"] in ([], ["began"])
    monkeypatch.setattr(gpu_session, "STAGE_S", 1)
    results = session([SLOW, QUICK, BAD], tmp_path, 5, {})
    assert set(results) == {SLOW.key, BAD.key}  # the stage has no time left; the next has its own
    assert "| first: quick | not run |" in (tmp_path / "session.md").read_text()
    assert session([QUICK], tmp_path / "other", 0, {}) == {}


def test_the_stages_are_those_of_the_page_and_can_be_named(tmp_path):
    jobs = list(gpu_session.jobs(gpu_session.CARD, tmp_path, "python-with-torch"))
    stages = list(dict.fromkeys(job.stage for job in jobs))
    assert stages == ["correctness", "speed", "determinism", "overhead", "flags", "training"]
    assert len({job.key for job in jobs}) == len(jobs)
    speed = [job for job in jobs if job.stage == "speed"]
    assert all("--steps=20" in job.words for job in speed)
    assert len(speed) == 4 * len(gpu_session.CARD.speed)  # with torch, twice
    with pytest.raises(UserError, match="expected some of correctness"):
        gpu_session.main(["--stages", "speeed", f"--out={tmp_path}"])
    (tmp_path / "fashion_mnist.npz").touch()
    more = gpu_session.jobs(gpu_session.CARD, tmp_path, data_dir=str(tmp_path))
    assert "training: Fashion-MNIST, ResNet-20" in {job.key for job in more}


def test_stages_share_the_time(tmp_path, monkeypatch):
    limits = {}

    def noted(job, seconds, device):
        limits[job.name] = seconds
        return {"state": DONE, "seconds": 0, "command": job.command, "said": []}

    monkeypatch.setattr(gpu_session, "run", noted)
    jobs = [Job(stage, stage, ("x",)) for stage in gpu_session.SHARES]
    session(jobs, tmp_path, 25, {})
    assert [round(limits[stage] / 60) for stage in ("correctness", "speed")] == [4, 8]  # 21 left
    assert max(limits.values()) <= gpu_session.STAGE_S
    session([*jobs, Job("training", "new", ("x",))], tmp_path, 25, {})
    assert limits["new"] == pytest.approx(gpu_session.STAGE_S, abs=1)  # alone: all of it


def test_without_a_card_it_says_so(tmp_path):
    with pytest.raises(UserError, match="no accelerator.*--tiny"):
        gpu_session.main([f"--out={tmp_path}"])


def test_every_family_of_the_card_can_be_made():
    found = {row: set(gpu_worker.families(Row.parse(row))) for row in gpu_session.CARD.small}
    assert set.union(*found.values()) == set(gpu_worker.FAMILIES)
    assert {"grouped", "wide", "3×3 downsampling"} == found["resnet50:8"] - found["resnet18:8"]


def test_this_jax_knows_every_flag():
    """XLA ends a process that has one that it does not know."""
    code = "import jax; print(jax.jit(lambda x: x + 1)(1))"
    words = " ".join(flag for flag, _ in gpu_worker.FLAGS.values())
    environment = {**os.environ, "XLA_FLAGS": words, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=True
    )
    assert done.stdout.strip() == b"2" and determinism.FLAG in words


# ---- Each job at a tiny scale


@pytest.mark.slow
def test_a_stage_where_nothing_else_is_installed(tmp_path, monkeypatch):
    path = os.pathsep.join([str(BARE), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setattr(gpu_session, "STAGE_S", 3600)  # other work on the machine fails no test
    words = ["--tiny", "--stages", "training", "--minutes=60", f"--out={tmp_path}"]
    status = gpu_session.main(words)
    results = json.loads((tmp_path / "session.json").read_text())
    assert status == 0, results
    assert logs.final_line(tmp_path / "digits-0")["images"] == 899
    table = json.loads((tmp_path / "figure6.json").read_text())
    assert len(table["runs"]) == 2 and table["figures"] == []


@pytest.fixture
def rehearse(tmp_path, monkeypatch, capsys):
    """Runs the tiny jobs whose names begin so, in this process; returns what they printed last."""
    logger = logging.getLogger("residual")
    level = logger.level
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # as the session does

    def run_all(key):
        jobs = [j for j in gpu_session.jobs(gpu_session.TINY, tmp_path) if j.key.startswith(key)]
        assert jobs
        for job in jobs:
            importlib.import_module(job.words[1]).main(job.words[2:])
        return capsys.readouterr().out.splitlines()

    yield run_all
    logger.setLevel(level)


@pytest.mark.slow
def test_gradients_are_those_of_the_cpu(rehearse):
    exact, half = map(json.loads, rehearse("correctness")[-2:])
    assert max(exact["as the recipe, float32"].values()) < 1e-4
    assert 1e-4 < max(half["as the recipe, bfloat16"].values()) < 0.5


@pytest.mark.slow
def test_speed_is_measured_contender_by_contender(rehearse, tmp_path):
    rehearse("speed")
    records = json.loads((tmp_path / "step_time.json").read_text())
    ours, peer = records
    assert [r["contender"] for r in records] == [step_time.OURS, step_time.PEER]
    assert all(r["images_per_s"] > 0 and r["roofline_with_bn"] > r["roofline"] > 0 for r in records)
    report = (tmp_path / "step_time.md").read_text().splitlines()
    (table,) = markdown.tables(report)
    rows = [list(row.values()) for row in table]
    assert [row[:2] for row in rows[:2]] == [
        ["resnet8, 2 × 8², float32", name] for name in (step_time.OURS, step_time.PEER)
    ]
    ratio = peer["step_ms"] / ours["step_ms"]
    assert [row[-1] for row in rows[:2]] == [f"{ratio:.2f}", "1.00"]
    (absent,) = (row for row in rows if row[0] == "resnet50, 256, bfloat16")
    assert "not run" in absent

    other = peer | {"network": "resnet14"}
    identity = ("network", "batch", "size", "dtype")
    again = reports.updated([*records, other], [peer], identity)
    assert again == [other, peer]  # a row is replaced as a whole
    with pytest.raises(UserError, match="--only='torch'"):
        step_time.main(["--rows=resnet8:2", "--only=torch"])


@pytest.mark.slow
def test_a_killed_run_has_the_bits_of_one_that_was_not(rehearse):
    ((name, found),) = json.loads(rehearse("determinism")[-1]).items()
    ((step, differences),) = found.items()
    assert name == "deterministic=True" and differences == []
    assert step in [f"killed after step {n} and resumed" for n in (4, 8, 12)], step


@pytest.mark.slow
def test_the_loop_is_compared_with_the_bare_step(rehearse, tmp_path):
    rehearse("overhead: loop")
    (turns,) = markdown.tables((tmp_path / "loop.md").read_text().splitlines())
    assert float(markdown.row(turns, "median")["bare step, ms/step"]) > 0


@pytest.mark.slow
def test_moments_of_the_start_are_read_from_what_jax_and_the_loop_print(rehearse, tmp_path):
    rehearse("overhead: start-up")
    moments, _ = markdown.tables((tmp_path / "startup.md").read_text().splitlines())
    assert [row["seconds until"] for row in moments] == list(startup.MOMENTS)
    seconds = [float(row["warm"]) for row in moments]
    assert sorted(seconds) == seconds


@pytest.mark.slow
def test_memory_of_a_compiled_step_is_a_line_over_the_batch(rehearse, tmp_path):
    rehearse("overhead: memory")
    (report,) = tmp_path.glob("memory-*.md")
    (shown,), *_ = markdown.tables(report.read_text().splitlines())
    assert (shown["network"], shown["remat"]) == ("resnet8, batch 2, float32", "none")
    assert shown["× none"] == shown["× none (2)"] == "1.00"
    assert int(shown["largest batch in 0.1 GiB"].replace(",", "")) > 4
    (share,) = re.findall(r"\((.*)%\)", shown["compiled there, GiB"])
    assert 90 < float(share) <= 100


@pytest.mark.slow
def test_each_flag_has_its_gain(rehearse):
    lines = [json.loads(line) for line in rehearse("flags") if line.startswith("{")]
    dispatched, base, flag = (value for line in lines for value in line.values())
    assert dispatched > 0 and base["gain"] == 0
    assert flag["gain"] == pytest.approx(base["ms"] / flag["ms"] - 1)
