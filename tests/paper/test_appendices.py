"""Tables 7 to 14: the paper's numbers alone, and beside finished detectors."""

import importlib

import pytest

from configs import base
from errors import UserError
from paper import appendices, table8, table14
from run.logs import RunLog
from run.workdir import Workdir
from tests.support.published import published


def workdir(path, results=None, task="detection"):
    config = base.base()
    config.model.depth, config.task, config.dataset, config.seed = 18, task, "scenes", 3
    path.mkdir()
    Workdir(path).claim(config)
    if results:
        log = RunLog(path, 0, tensorboard=False)
        log.metrics(5, "test", {"loss": 1.0} | results, final=True)
        log.close()
    return path


@pytest.mark.parametrize("table", appendices.TABLES, ids=lambda table: table.name)
def test_the_papers_numbers_stand_alone(table, tmp_path):
    command = importlib.import_module(f"paper.{table.name}")
    content = published(command, [f"--out={tmp_path}"])
    [found] = content["tables"]
    assert len(found["rows"]) == len(table.rows) + 1
    assert "not run" in found["rows"][-1] and content["title"] == table.title
    assert content["header"]["scaled"] == ["nothing is run"]


def test_a_detector_stands_beside_the_papers(tmp_path):
    run = workdir(tmp_path / "run", {"AP": 61.5, "AP50": 91.25})
    argv = ["--workdirs", str(run), f"--out={tmp_path}"]
    content = published(table8, argv)
    assert content["tables"][0]["rows"] == [
        ["VGG-16", 41.5, 21.2, None, None],
        ["resnet101", 48.4, 27.2, None, None],
        [f"ours: resnet18 on scenes, {run}", None, None, 91.25, 61.5],
    ]
    assert content["header"]["seeds"] == [3]
    assert content["header"]["scaled"] == ["scenes instead of COCO"]
    folder = Workdir(run)  # a later test counts
    folder.write(folder.evaluation, {"AP": 62.0, "AP50": 92.0})
    assert published(table8, argv)["tables"][0]["rows"][-1][-2:] == [92.0, 62.0]


def test_what_is_no_tested_detector_is_refused(tmp_path):
    for run in (
        workdir(tmp_path / "untested"),
        workdir(tmp_path / "classifier", {"top1_error": 0.1}, "classification"),
        workdir(tmp_path / "detector", {"AP": 61.5, "AP50": 91.25}),  # table 14 wants an error
    ):
        with pytest.raises(UserError, match=run.name):
            table14.main(["--workdirs", str(run), f"--out={tmp_path}"])
