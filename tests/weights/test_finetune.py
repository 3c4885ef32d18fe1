"""Fine-tuning from a weight file on a folder: new head, frozen BN, and the linear probe."""

import logging
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import evaluate
import models
import train
from configs import base, command_line, finetune
from errors import UserError
from testing import opened_run
from tests.support.reference_weights import write_safetensors
from training.check import check
from weights.torchvision import to_torch

NETWORK = {"depth": 18, "width": 2, "downsample_in": "3x3"}
# What export.py would write into the file of a network that came from the authors' release.
CAFFE = {"downsample_in": "1x1", "stem_pool": "unpadded", "normalization": "caffe"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """train/ and val/ of two classes of four images, and weights of a 7-class network."""
    root = tmp_path_factory.mktemp("finetune")
    random = np.random.RandomState(0)
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            (root / "data" / split / label).mkdir(parents=True)
            for i in range(4):
                pixels = random.randint(0, 256, (40, 48, 3), np.uint8)
                Image.fromarray(pixels).save(root / "data" / split / label / f"{i}.jpg")
    model = models.create(NETWORK, 7)
    weights = jax.tree.map(np.asarray, init_of(model))
    write_safetensors(root / "weights.safetensors", to_torch(weights), {"format": "pt"})
    model = models.create(NETWORK, 2)
    weights = jax.tree.map(np.asarray, init_of(model))
    write_safetensors(root / "caffe.safetensors", to_torch(weights), CAFFE)
    return root


def init_of(model):
    init = jax.jit(lambda key: model.init(key, jnp.zeros((1, 32, 32, 3)), train=False))
    return init(jax.random.key(0))


def recipe(folder, arg):
    config = finetune.get_config(arg)
    config.update(
        dataset=f"folder:{folder / 'data'}",
        data_dir=str(folder / "cache"),
        init_from=str(folder / "weights.safetensors"),
        tensorboard=False,
        batch_size=4,
        num_steps=2,
        eval_every=2,
        log_every=2,
        checkpoint_every=2,
    )
    config.model.update(NETWORK)
    config.optim.warmup_steps = 0
    config.data.image_size = 32
    config.eval.update(batch_size=4, resize=32)
    return config


@pytest.mark.slow
def test_a_linear_probe_changes_the_head_alone(folder, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="residual"):
        result = train.train(recipe(folder, "probe"), tmp_path / "run")
    assert result["images"] == 8
    assert "the head of 7 classes is replaced by a new one of 2 classes" in caplog.text
    network = opened_run.load(tmp_path / "run")
    assert network.facts.label_names == ("cat", "dog")
    from safetensors.numpy import load_file

    before, after = load_file(folder / "weights.safetensors"), to_torch(network.variables)
    assert after["fc.weight"].shape == (2, 16)
    for key in before.keys() - {"fc.weight", "fc.bias"}:
        np.testing.assert_array_equal(after[key], before[key], err_msg=key)


@pytest.mark.slow
def test_a_head_is_not_replaced_without_permission(folder, tmp_path):
    config = recipe(folder, "")
    config.replace_head = False
    with pytest.raises(UserError, match=r"7 classes.*2"):
        train.train(config, tmp_path / "run")


@pytest.mark.slow
def test_a_run_takes_the_conventions_of_its_weights(folder, tmp_path, caplog):
    config = recipe(folder, "")
    config.optim.learning_rate = 0.0
    config.init_from = str(tmp_path / "caffe.safetensors")
    shutil.copy(folder / "caffe.safetensors", config.init_from)
    with caplog.at_level(logging.INFO, logger="residual"):
        tested = evaluate.run(config, tmp_path / "tested", weight_file=True)
        result = train.train(config, tmp_path / "run")
    for choice in (
        "stem_pool=unpadded, which replaces padded",
        "normalization=caffe, which replaces imagenet",
    ):
        assert caplog.text.count(choice) == 2
    network = opened_run.load(tmp_path / "run")
    assert (network.model.downsample_in, network.model.stem_pool) == ("1x1", "unpadded")
    assert network.facts.normalization.std.tolist() == [1, 1, 1]
    assert network.facts.normalization.mean.tolist() == pytest.approx([123.68, 116.779, 103.939])
    # The rate is zero, so the weights are as they came, and both ways test the same network.
    assert result["loss"] == pytest.approx(tested["loss"], rel=1e-5)
    Path(config.init_from).unlink()  # a run that has started needs the file no more
    assert train.train(config, tmp_path / "run")["loss"] == result["loss"]


def test_recipes_and_their_arguments():
    full, probe = finetune.get_config(""), finetune.get_config("probe")
    assert full.optim.train_only == "all" and probe.optim.train_only == "head"
    assert full.model.frozen_bn and full.model.downsample_in == "3x3"
    assert finetune.get_config("quick,probe").num_steps == 20
    with pytest.raises(UserError, match="probe"):
        finetune.get_config("resnet18")


def test_warm_up_follows_the_length_of_the_run():
    """Whatever the length: the first try of a few steps is not refused."""
    for steps, warm_up in ((2000, 100), (50, 2), (3, 0)):
        flags = ["main.py", f"--config.num_steps={steps}", "--config.init_from=w.pth"]
        config = command_line.with_fields(finetune.get_config(), flags)
        assert config.optim.warmup_steps == warm_up
        check(config, 1)
        assert base.to_dict(config)["optim"]["warmup_steps"] == warm_up
    flags = ["main.py", "--config.num_steps=50", "--config.optim.warmup_steps=7"]
    config = command_line.with_fields(finetune.get_config("probe"), flags)
    assert (config.optim.warmup_steps, config.num_steps) == (7, 50)


@pytest.mark.parametrize("frozen", [True, False])
def test_it_never_starts_from_nothing(folder, tmp_path, frozen):
    config = recipe(folder, "")
    config.init_from, config.model.frozen_bn = "", frozen
    with pytest.raises(
        UserError, match=r"(?s)init_from=''.*pretrained weights.*--config\.init_from"
    ):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_nan_under_frozen_statistics_names_them(folder, tmp_path):
    config = recipe(folder, "")
    config.optim.learning_rate = 1e30
    with pytest.raises(train.Diverged, match="not finite.*frozen_bn=True.*init_from"):
        train.train(config, tmp_path / "run")
