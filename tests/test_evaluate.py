"""Whole evaluations of a tiny run: what is written, what is refused."""

import json

import numpy as np
import pytest

import evaluate
import train
from configs import digits
from errors import UserError
from run.workdir import Workdir
from testing import opened_run
from tests.support.untrained import make_workdir


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, data_dir):
    """A finished run of a tiny network on digits."""
    folder = tmp_path_factory.mktemp("run") / "a"
    config = digits.get_config("resnet8,paper")
    config.update(data_dir=data_dir, batch_size=32, num_steps=4, log_every=2, tensorboard=False)
    config.model.width = 4
    config.optim.boundaries = (2, 3)
    config.eval.update(batch_size=500, scales=(8, 12))
    train.train(config, folder)
    return folder


def evaluated(workdir, **fields):
    config = opened_run.load(workdir).config
    config.eval.update(fields)
    return evaluate.run(config, workdir)


@pytest.mark.slow
def test_the_workdir_alone_gives_the_final_result_again(workdir, capsys):
    final = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    result = evaluated(workdir)
    assert {k: result[k] for k in ("top1_error", "top5_error", "images")} == {
        k: final[k] for k in ("top1_error", "top5_error", "images")
    }
    assert result["loss"] == pytest.approx(final["loss"], rel=1e-5)
    folder = Workdir(workdir)
    assert folder.read(folder.evaluation) == result
    line = f"top-1 error {100 * result['top1_error']:.2f} %, top-5 error"
    assert line in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["10crop", "multiscale"])
def test_protocols_of_a_run(workdir, protocol):
    result = evaluated(workdir, protocol=protocol, ensemble=(str(workdir),))
    assert (result["protocol"], result["images"]) == (protocol, 899)
    assert len(result["networks"]) == 2
    assert result["loss"] == pytest.approx(evaluated(workdir, protocol=protocol)["loss"], rel=1e-5)


@pytest.mark.slow
def test_precise_statistics_are_stored_on_request(workdir):
    result = evaluated(workdir, precise_bn=True, precise_bn_batches=2)
    assert not (workdir / "precise_bn.npz").exists()
    assert result["precise_bn"]
    stored = evaluated(workdir, precise_bn=True, precise_bn_batches=2, store_precise_bn=True)
    assert stored["loss"] == result["loss"]
    with np.load(workdir / "precise_bn.npz") as arrays:
        changed = dict(arrays)
    changed["stem_bn.mean"] = changed["stem_bn.mean"] + 1
    np.savez(workdir / "precise_bn.npz", **changed)
    read = evaluated(workdir, precise_bn=True, precise_bn_batches=2)
    assert read["loss"] != result["loss"]  # the stored ones were used
    again = evaluated(workdir, precise_bn=True, precise_bn_batches=3)
    assert again["loss"] != read["loss"]  # other batches: not the stored ones


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"protocol": "12crop"}, "eval.protocol='12crop': expected one of"),
        ({"split": "dev"}, "eval.split='dev'"),
        ({"protocol": "multiscale", "scales": (8, 3)}, "3 pixels is smaller than the network's"),
        ({"protocol": "multiscale", "scales": ()}, "expected at least one"),
        ({"split": "validation"}, "no image"),
        ({"precise_bn": True, "precise_bn_batches": 0}, "precise_bn_batches=0"),
        ({"ensemble": ("nowhere",)}, "nowhere"),
    ],
)
def test_errors_name_the_value(workdir, fields, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        evaluated(workdir, **fields)


def test_what_only_training_needs_does_not_stop_an_evaluation(tiny, tmp_path):
    """30 images a step are an odd number on each of two devices, and mixup would pair them."""
    tiny.batch_size, tiny.augment.mixup = 30, 0.3
    assert evaluate.run(tiny, make_workdir(tiny, tmp_path))["images"] == 899


def copy_run(workdir, target):
    for name in ("config.json", "data.json"):
        target.mkdir(exist_ok=True)
        (target / name).write_text((workdir / name).read_text())
    return target


def test_no_finished_checkpoint(workdir, tmp_path):
    empty = copy_run(workdir, tmp_path / "empty")
    with pytest.raises(UserError, match="holds no finished checkpoint; expected"):
        evaluated_from(empty, workdir)


def evaluated_from(folder, workdir, **fields):
    config = opened_run.load(workdir).config
    config.eval.update(fields)
    return evaluate.run(config, folder)


def relabelled(workdir, target, names):
    copy_run(workdir, target)
    folder = Workdir(target)
    folder.write_facts(folder.read_facts() | {"label_names": names})
    (target / "checkpoints").symlink_to(workdir / "checkpoints")
    return target


def test_an_ensemble_of_other_classes(workdir, tmp_path):
    other = relabelled(workdir, tmp_path / "other", [f"letter{i}" for i in range(10)])
    with pytest.raises(UserError, match=r"other was trained on 10 classes \(letter0"):
        evaluated(workdir, ensemble=(str(other),))


def test_data_of_other_classes(workdir, tmp_path):
    other = relabelled(workdir, tmp_path / "other", [f"letter{i}" for i in range(10)])
    with pytest.raises(UserError, match="digits has 10 classes"):
        evaluated_from(other, workdir)
