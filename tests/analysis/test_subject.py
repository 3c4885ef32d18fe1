"""What the analyses share, and what they say of wrong arguments."""

import numpy as np

from analysis import cam, invariance, residuals, subject
from configs import digits
from run import command
from run.workdir import Workdir


def test_a_spread_shows_an_exact_zero_and_a_tiny_number():
    assert subject.spread([0.0, 0.0]) == "0"
    assert subject.spread([1e-9]) == "1e-09"
    assert subject.spread([1.0, 3.0]) == "2 ± 1.4"
    assert subject.spread([None, 0.5]) == "0.5"
    assert subject.spread([None]) is None


def test_a_mosaic_is_made_of_whole_images():
    images = np.arange(3 * 2 * 4).reshape(3, 2, 4, 1)
    made = subject.mosaic(images, 5)
    assert made.shape == (1, 6, 8, 1)
    np.testing.assert_array_equal(made[0, :2, :4], images[0])
    np.testing.assert_array_equal(made[0, 2:4, :4], images[2])
    np.testing.assert_array_equal(made[0, 2:4, 4:], images[0])


def test_blocks_of_a_shallow_network_stand_in_the_stages_of_the_deepest():
    shallow, deep = ([f"stage{i}/block{j}" for i in (1, 2) for j in range(n)] for n in (1, 3))
    assert subject.deepest([shallow, deep, ["stage1/block1"] * 9]) == deep
    assert subject.places(deep, deep) == [1, 2, 3, 4, 5, 6]
    assert subject.places(shallow, deep) == [2, 5]


def test_networks_are_named_by_what_they_are():
    fields = digits.get_config("resnet8").model
    assert subject.network_name(fields) == "resnet8"
    changed = dict(fields) | {"shortcut_scale": 0.5, "preactivation": True}
    assert subject.network_name(changed) == "resnet8, pre-activated, shortcut × 0.5"
    assert subject.network_name(dict(fields) | {"residual": False}) == "plain8"


def test_errors_name_file_and_expectation(workdir, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for name in ("config.json", "data.json"):
        (tmp_path / "empty" / name).write_text((workdir / name).read_text())
    assert command.run(residuals.main, [f"--workdir={tmp_path / 'empty'}"]) == 1
    assert "holds no finished checkpoint; expected" in capsys.readouterr().err

    (tmp_path / "note.png").write_text("not an image")
    assert command.run(cam.main, [f"--workdir={workdir}", str(tmp_path / "note.png")]) == 1
    error = capsys.readouterr().err
    assert "note.png: not a readable image" in error and "expected" in error

    empty = Workdir(tmp_path / "empty")
    empty.write_facts(empty.read_facts() | {"label_names": list("abcdefghij")})
    (tmp_path / "empty" / "checkpoints").symlink_to(workdir / "checkpoints")
    assert command.run(invariance.main, [f"--workdir={tmp_path / 'empty'}"]) == 1
    assert "was trained on 10 classes" in capsys.readouterr().err
