"""The session for a card, rehearsed: jobs, their budget, going on; each stage at a tiny scale."""

import json
import os
from pathlib import Path

import pytest

from benchmarks import gpu_session
from benchmarks.gpu_session import DONE, Job, run, session
from errors import UserError
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
    assert all("--steps=20" in job.words for job in jobs if job.stage == "speed")
    with pytest.raises(UserError, match="expected some of correctness"):
        gpu_session.main(["--stages", "speeed", f"--out={tmp_path}"])
    (tmp_path / "fashion_mnist.npz").touch()
    more = gpu_session.jobs(gpu_session.CARD, tmp_path, data_dir=str(tmp_path))
    assert "training: Fashion-MNIST, ResNet-20" in {job.key for job in more}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["correctness", "speed", "flags"])
def test_a_stage_at_tiny_scale_where_nothing_else_is_installed(stage, tmp_path, monkeypatch):
    path = os.pathsep.join([str(BARE), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    status = gpu_session.main(["--tiny", "--stages", stage, f"--out={tmp_path}"])
    results = json.loads(Path(tmp_path, "session.json").read_text())
    assert status == 0, results
    if stage == "correctness":
        exact, half = (json.loads(found["said"][-1]) for found in results.values())
        assert set(exact) == set(half) == {"as the recipe", "plain"}
        assert max(max(of.values()) for of in exact.values()) < 1e-4
        assert 1e-4 < max(max(of.values()) for of in half.values()) < 0.5
