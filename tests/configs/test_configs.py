"""Every recipe builds, every field is documented and read, and the paper's values are there."""

import importlib
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import models
from configs import base, recipes
from configs.fields import FIELDS, IMAGENET_STEPS_PER_EPOCH
from errors import UserError
from run.workdir import Workdir

ROOT = Path(__file__).parents[2]
NETWORKS = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "plain18", "plain34"]
SMALL = ["cifar10", "cifar100", "fashion_mnist", "digits"]


def load(name, arg=""):
    return importlib.import_module(f"configs.{name}").get_config(arg)


def flat(config):
    return base.flatten(config)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("arg", ["", "goyal", "quick"])
def test_imagenet_recipes_build(name, arg):
    config = load(name, arg)
    model = models.create(config.model, 1000)
    logits, _ = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False)[0]
    )
    assert logits.shape == (1, 1000)
    assert f"{'resnet' if config.model.residual else 'plain'}{config.model.depth}" == name


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("arg", ["", "resnet110", "plain56", "resnet1202", "resnet20,goyal"])
def test_small_recipes_build(name, arg):
    config = load(name, arg)
    models.create(config.model, 10)
    depth = int(re.search(r"\d+", arg or "resnet20").group())
    assert (config.model.depth, config.model.shortcut) == (depth, "A")
    assert config.model.residual == (not arg.startswith("plain"))


def test_paper_values():
    config = load("resnet50")
    o = config.optim
    assert (config.batch_size, config.num_steps) == (256, 600_000)
    assert (o.learning_rate, o.momentum, o.weight_decay) == (0.1, 0.9, 1e-4)
    assert (o.momentum_form, o.nesterov, config.model.downsample_in) == ("paper", False, "1x1")
    assert (config.augment.kind, config.augment.resize_min, config.augment.resize_max) == (
        "scale_jitter",
        256,
        480,
    )
    cifar = load("cifar10", "resnet110")
    assert (cifar.batch_size, cifar.num_steps, cifar.optim.boundaries) == (
        128,
        64_000,
        (32_000, 48_000),
    )
    assert (cifar.data.validation_size, cifar.augment.pad) == (5_000, 4)
    assert (cifar.optim.warmup_until_error, cifar.optim.warmup_learning_rate) == (0.8, 0.01)
    assert load("cifar10", "resnet56").optim.warmup_until_error == 0


def test_goyal_values():
    config = load("resnet50", "goyal")
    assert config.model.downsample_in == "3x3"
    assert config.model.zero_init_residual
    assert config.num_steps == round(90 * IMAGENET_STEPS_PER_EPOCH)
    assert config.optim.reference_batch == 256
    assert config.optim.warmup_steps == round(5 * IMAGENET_STEPS_PER_EPOCH)
    assert not load("plain18", "goyal").model.zero_init_residual


@pytest.mark.parametrize("arg", ["resnet", "resnet-20", "plain20;", "fast"])
def test_unknown_arguments_are_refused(arg):
    with pytest.raises(UserError, match="config argument"):
        load("cifar10", arg)


def test_file_names_the_imagenet_network():
    with pytest.raises(UserError, match="the file names the network"):
        load("resnet50", "resnet18")


def test_every_field_has_help_and_a_reader():
    fields = flat(base.base())
    assert list(fields) and all(FIELDS[name].help for name in fields)
    sources = list(ROOT.glob("*.py")) + [
        p
        for folder in (
            "models",
            "data",
            "paper",
            "analysis",
            "training",
            "testing",
            "run",
            "weights",
        )
        for p in (ROOT / folder).rglob("*.py")
    ]
    text = "\n".join(p.read_text() for p in sources)
    unread = [name for name in fields if not re.search(rf"\b{name.rpartition('.')[2]}\b", text)]
    assert not unread


def test_json_round_trip(tmp_path):
    config = load("cifar10", "resnet110,goyal")
    (tmp_path / "config.json").write_text(config.to_json_best_effort())
    assert flat(Workdir(tmp_path).read_config()) == flat(config)
    with pytest.raises(UserError, match=r"config\.json"):
        Workdir(tmp_path / "nothing").read_config()
    with pytest.raises(UserError, match="modle"):
        base.from_dict({"modle": {"depth": 20}})


def test_scaled_schedule_keeps_its_shape():
    config = load("cifar10")
    recipes.scale_schedule(config, 0.01)
    assert (config.num_steps, config.optim.boundaries) == (640, (320, 480))
