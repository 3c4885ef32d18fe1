"""Boxes of activation maps against boxes of the data, through the command."""

import json

import jax
import numpy as np
import pytest

from analysis import localization, subject
from analysis.cam import box, cam
from configs import base
from configs.detection import single_scenes
from errors import UserError
from testing import opened_run
from tests.support.analysed import outcome
from tests.support.ilsvrc import write_localization
from tests.support.untrained import make_workdir

pytestmark = pytest.mark.slow


def untrained(config, folder):
    config.batch_size = 8
    config.model.update(depth=18, width=4)
    return make_workdir(config, folder)


@pytest.fixture(scope="module")
def of_photographs(tmp_path_factory):
    root = tmp_path_factory.mktemp("photographs")
    config = base.base()
    config.dataset = f"folder:{write_localization(root)}"
    config.data.update(image_size=64, test_split="val", num_threads=1)
    config.augment.update(resize_min=64, resize_max=72)
    config.eval.update(batch_size=8, resize=70)
    return untrained(config, root / "run")


def test_scenes(tmp_path, capsys):
    config = single_scenes.get_config("quick")
    config.data.test_split = "test[:20]"
    folder = untrained(config, tmp_path / "run")
    localization.main([f"--workdir={folder}", "--threshold=0.3"])
    found = outcome(folder, "localization")
    assert found["images"] == 20 and "masked_images" not in found
    assert found["localization_error"] <= found["top5_localization_error"] <= 100
    assert "box of the true class" in capsys.readouterr().out
    with pytest.raises(UserError, match="--threshold=1.0: expected"):
        localization.main([f"--workdir={folder}", "--threshold=1"])


def test_each_photograph_counts_once_with_its_own_size(of_photographs):
    localization.main([f"--workdir={of_photographs}"])
    found = outcome(of_photographs, "localization")
    assert found["images"] == 10  # two batches of training's 8
    run = opened_run.load(of_photographs)
    data = subject.open_data(run, "test")
    truth = localization.truth_of(run, data, "test", "")
    ours = localization.locate(run, data, "test", truth, 0.2)
    assert list(ours) == list(range(10))
    for i in (0, 9):
        batch = [*localization._batches(run, data, "test", truth)][i // 8]
        whole = batch["image"][i % 8, 1].astype(np.float32)
        mean, std = run.facts.normalization
        images = ((whole - mean) / std)[None]
        maps = cam(run.model, run.variables, jax.numpy.asarray(images), batch["label"][i % 8, None])
        np.testing.assert_array_equal(ours[i].own, box(np.asarray(maps[0]), *truth[i].size))
        assert sorted(ours[i].classes) == [0, 1, 2]


def test_a_photograph_of_another_size_than_its_file_says_is_named(of_photographs, tmp_path):
    config = json.loads((of_photographs / "config.json").read_text())
    images = config["dataset"].removeprefix("folder:")
    target = tmp_path / "boxes"
    (target / "val").mkdir(parents=True)
    source = localization.ilsvrc.boxes_folder(localization.files.at(images))
    for file in (source / "val").iterdir():
        changed = file.read_text().replace("<height>96", "<height>97")
        (target / "val" / file.name).write_text(changed)
    with pytest.raises(UserError, match=r"ILSVRC2012_val_.*of 112×97 pixels, the file has 112×96"):
        localization.main([f"--workdir={of_photographs}", f"--boxes={target}"])
