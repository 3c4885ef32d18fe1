"""ILSVRC2012 in miniature: archives → prepare_data.py → configs/resnet50.py → losses → errors.

The same photographs as array_record, as TFRecord and as a folder of files give the same losses.
"""

import json

import pytest

import evaluate
import train
from configs import resnet50
from run import logs
from run.workdir import Workdir
from tests.support import ilsvrc


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """`(config.dataset, config.data_dir)` of the three."""
    root = tmp_path_factory.mktemp("ilsvrc")
    records = ilsvrc.prepare(root)
    ilsvrc.rewrite_as_tfrecord(records, root / "tfrecord")
    ilsvrc.write_folder(records, root / "folder")
    return {
        "array_record": ("tfds:imagenet2012", str(records)),
        "tfrecord": ("tfds:imagenet2012", str(root / "tfrecord")),
        "folder": (f"folder:{root / 'folder'}", str(root / "index")),
    }


def miniature(dataset, data_dir):
    """ResNet-50 of 8 channels on 64-pixel crops: three steps of all 18 training images."""
    config = resnet50.get_config()
    config.update(dataset=dataset, data_dir=data_dir, tensorboard=False)
    config.update(batch_size=18, num_steps=3, log_every=1, checkpoint_every=2, eval_every=100)
    config.optim.boundaries = (2,)
    config.model.update(width=8, scan_blocks=True)
    config.data.update(image_size=64, num_threads=2)
    config.augment.update(resize_min=64, resize_max=96)
    config.eval.update(batch_size=4, resize=72)
    return config


def losses(workdir):
    return [line["loss"] for line in logs.read_lines(workdir / "metrics.jsonl")]


@pytest.mark.slow
def test_paper_recipe_from_records_is_bit_equal(datasets, tmp_path):
    """With the paper's augmentation; TFRecord keeps the order of array_record."""
    for form in ("array_record", "tfrecord"):
        result = train.train(miniature(*datasets[form]), tmp_path / form)
        assert result["images"] == ilsvrc.VALIDATION
    assert losses(tmp_path / "array_record") == losses(tmp_path / "tfrecord")
    timing = logs.read_lines(tmp_path / "tfrecord" / "timing.jsonl")
    assert all(0 <= line["data_wait_fraction"] <= 1 for line in timing)

    evaluated = evaluate.run(
        Workdir(tmp_path / "tfrecord").read_config(), str(tmp_path / "tfrecord")
    )
    final = logs.final_line(tmp_path / "tfrecord")
    assert evaluated["loss"] == pytest.approx(final["loss"], rel=1e-5)
    assert json.loads((tmp_path / "tfrecord" / "evaluation.json").read_text())["images"] == 10


@pytest.mark.slow
def test_folder_gives_the_losses_of_the_records(datasets, tmp_path):
    """Whole-set batches without random crops: nothing depends on the order of the files."""
    found = {}
    for form in ("array_record", "folder"):
        config = miniature(*datasets[form])
        config.augment.update(kind="none", pca_noise=0.0)
        config.model.sync_bn = True
        config.optim.learning_rate = 1e-4  # rounding grows with the updates
        train.train(config, tmp_path / form)
        found[form] = losses(tmp_path / form)
    assert found["folder"][0] == pytest.approx(found["array_record"][0], rel=1e-5)
    # 50 layers of BN over 18 images amplify the rounding of another order of summation.
    assert found["folder"] == pytest.approx(found["array_record"], rel=1e-2)


@pytest.mark.slow
def test_an_imagenet_stem_on_small_images_is_warned_of(datasets, tmp_path, caplog):
    config = miniature(*datasets["folder"])
    config.num_steps = 1
    config.optim.boundaries = ()
    train.train(config, str(tmp_path / "run"))
    assert "model.stem=imagenet" in caplog.text and "model.stem=cifar" in caplog.text
