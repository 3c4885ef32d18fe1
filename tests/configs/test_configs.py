"""Every recipe builds, every field is documented and read, and the paper's values are there."""

import ast
import importlib
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import models
from configs import base, recipes
from configs.fields import FIELDS, IMAGENET_STEPS_PER_EPOCH
from errors import UserError
from models import resnet
from models.block import BasicBlock
from run.workdir import Workdir
from tests.support import field_reads
from tests.support.house import tree_of

ROOT = Path(__file__).parents[2]
NETWORKS = [f"resnet{depth}" for depth in (18, 34, 50, 101, 152, 200)] + ["plain18", "plain34"]
CORE = [
    path
    for folder in (".", "data", "detection", "run", "testing", "training", "weights")
    for path in (ROOT / folder).glob("*.py")
    if path != ROOT / "training" / "check.py"
]
SMALL = ["cifar10", "cifar100", "fashion_mnist", "digits", "mnist_5k"]


def load(name, arg=""):
    return importlib.import_module(f"configs.{name}").get_config(arg)


def flat(config):
    return base.flatten(config)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("arg", ["", "goyal", "quick", "rsb_a3", "torchvision_v2", "lars,quick"])
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
    assert config.model.block == ""
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
    groups = {arg: load("resnet50", arg).model.bn_group_size for arg in ("", "goyal", "rsb_a3")}
    assert groups == {"": 32, "goyal": 32, "rsb_a3": 0}
    cifar = load("cifar10", "resnet110")
    assert cifar.model.bn_group_size == 64
    assert (cifar.batch_size, cifar.num_steps, cifar.optim.boundaries) == (
        128,
        64_000,
        (32_000, 48_000),
    )
    assert (cifar.data.validation_size, cifar.augment.pad) == (5_000, 4)
    assert (cifar.optim.warmup_until_error, cifar.optim.warmup_learning_rate) == (0.8, 0.01)
    assert load("cifar10", "resnet56").optim.warmup_until_error == 0


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("options", ["", ",followup", ",goyal", ",quick"])
@pytest.mark.parametrize("depth", [20, 56, 110, 1202])
def test_twins_share_a_recipe(name, options, depth):
    residual, plain = (
        flat(load(name, f"{family}{depth}{options}")) for family in ("resnet", "plain")
    )
    differ = {field for field in residual if residual[field] != plain[field]}
    assert differ - {"model.zero_init_residual"} == {"model.residual"}


@pytest.mark.parametrize(
    ("arg", "block", "shortcut"),
    [
        ("resnet164,bottleneck", "bottleneck", "B"),
        ("plain164,bottleneck", "bottleneck", "B"),
        ("resnet164,basic", "basic", "A"),
        ("resnet1001", "", "B"),
        ("resnet29", "", "B"),
        ("resnet20,bottleneck", "bottleneck", "B"),
        ("resnet20,basic", "basic", "A"),
    ],
)
def test_the_form_of_block_in_a_name(arg, block, shortcut):
    config = load("cifar10", arg)
    models.check(config.model)
    assert (config.model.block, config.model.shortcut) == (block, shortcut)


def test_a_name_that_two_networks_have_asks_which():
    for name in ("resnet38", "resnet164", "plain164"):
        with pytest.raises(UserError, match=r"model\.block"):
            models.check(load("cifar10", name).model)
    with pytest.raises(UserError, match="exclude each other"):
        load("cifar10", "resnet38,basic,bottleneck")


def older(**model):
    """A config.json from before `model.block`."""
    fields = base.to_dict(load("cifar10", "resnet20"))
    fields["model"].pop("block")
    fields["model"].update(model)
    return fields


@pytest.mark.parametrize("depth", [20, 32, 38, 56, 110, 164, 182, 1202])
def test_older_runs_have_basic_blocks(tmp_path, depth):
    (tmp_path / "config.json").write_text(json.dumps(older(depth=depth)))
    config = Workdir(tmp_path).read_config()
    assert resnet.architecture("cifar", depth, config.model.block).block is BasicBlock
    (tmp_path / "metrics.jsonl").write_text("{}\n")  # it has begun
    with_name = load("cifar10", f"resnet{depth}" + (",basic" if depth in (38, 164, 182) else ""))
    with_name.model.update(shortcut="A", scan_blocks=False)
    with_name.optim.warmup_until_error = 0.0
    Workdir(tmp_path).claim(with_name)


@pytest.mark.parametrize("fields", [{"preactivation": True}, {"variant": "dropout_shortcut"}])
def test_older_runs_that_computed_otherwise_are_refused(tmp_path, fields):
    (tmp_path / "config.json").write_text(json.dumps(older(**fields)))
    with pytest.raises(UserError, match=r"config\.json: an older version"):
        Workdir(tmp_path).read_config()


def test_warmup_of_the_followup():
    for depth in (20, 110):
        o = load("cifar10", f"plain{depth},followup").optim
        assert (o.warmup_form, o.warmup_steps, o.warmup_learning_rate) == ("constant", 400, 0.01)
        assert o.warmup_until_error == 0
    with pytest.raises(UserError, match="exclude each other"):
        load("cifar10", "resnet20,goyal,followup")
    with pytest.raises(UserError, match="followup"):
        load("resnet50", "followup")


def test_goyal_values():
    config = load("resnet50", "goyal")
    assert config.model.downsample_in == "3x3"
    assert config.model.zero_init_residual
    assert config.num_steps == round(90 * IMAGENET_STEPS_PER_EPOCH)
    assert config.optim.reference_batch == 256
    assert config.optim.warmup_steps == round(5 * IMAGENET_STEPS_PER_EPOCH)
    assert not load("plain18", "goyal").model.zero_init_residual


def test_values_of_the_modern_recipes():
    """As published: Wightman et al. 2021, table 2; torchvision's IMAGENET1K_V2; MLPerf's LARS."""
    c = load("resnet50", "rsb_a3")
    o, a = c.optim, c.augment
    assert (c.batch_size, c.num_steps, o.warmup_steps) == (2_048, 62_557, 3_128)
    assert (o.name, o.learning_rate, o.weight_decay, o.schedule) == ("lamb", 8e-3, 0.02, "cosine")
    assert (o.loss, o.label_smoothing, o.ema_decay, o.reference_batch) == ("bce", 0, 0, 0)
    assert (a.policy, a.magnitude, a.mixup, a.cutmix) == ("rand_augment", 6, 0.1, 1.0)
    assert (a.erase, a.repeats, a.pca_noise, a.kind) == (0, 1, 0, "random_resized_crop")
    assert (c.data.image_size, c.eval.image_size, c.eval.resize) == (160, 224, 236)
    assert (c.model.downsample_in, c.model.zero_init_residual) == ("3x3", True)
    c = load("resnet50", "torchvision_v2")
    o, a = c.optim, c.augment
    assert (c.batch_size, c.num_steps, o.warmup_steps) == (1_024, 750_684, 6_256)
    assert (o.name, o.learning_rate, o.weight_decay, o.schedule) == ("sgd", 0.5, 2e-5, "cosine")
    assert (o.momentum_form, o.nesterov, o.label_smoothing, o.loss) == (
        "torch",
        False,
        0.1,
        "softmax",
    )
    assert (1 - o.ema_decay**32) == pytest.approx(2e-5 * 1_024 * 32 / 600, rel=0.01)
    assert (a.policy, a.mixup, a.cutmix, a.erase, a.repeats) == (
        "trivial_augment",
        0.2,
        1.0,
        0.1,
        4,
    )
    assert (c.data.image_size, c.eval.image_size, c.eval.resize) == (176, 224, 232)
    assert (c.model.downsample_in, c.model.zero_init_residual) == ("3x3", False)
    o = load("resnet50", "lars").optim
    assert (o.name, o.learning_rate, o.schedule) == ("lars", 31.2, "polynomial")


@pytest.mark.parametrize("arg", ["goyal,rsb_a3", "rsb_a3,torchvision_v2"])
def test_one_recipe_at_a_time(arg):
    with pytest.raises(UserError, match="exclude each other"):
        load("resnet50", arg)
    with pytest.raises(UserError, match="config argument"):
        load("cifar10", arg)


@pytest.mark.parametrize("arg", ["resnet", "resnet-20", "plain20;", "fast"])
def test_unknown_arguments_are_refused(arg):
    with pytest.raises(UserError, match="config argument"):
        load("cifar10", arg)


def test_file_names_the_imagenet_network():
    with pytest.raises(UserError, match="the file names the network"):
        load("resnet50", "resnet18")


def test_every_field_has_help():
    assert set(flat(base.base())) == set(FIELDS)
    assert all(field.help for field in FIELDS.values())


def test_every_field_is_read():
    """By what trains and tests: neither by a recipe, the check, nor a program over them."""
    read = set()
    for path in CORE:
        read |= field_reads.reads(tree_of(path))
    for path in (ROOT / "models").rglob("*.py"):
        read |= {f"model.{name}" for name in field_reads.reads_of_networks(tree_of(path))}
    assert not sorted(set(FIELDS) - read)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def f(config): return config.optim.momentum, config.seed", {"optim.momentum", "seed"}),
        ("class A:\n def f(self): return self._config.data.prefetch", {"data.prefetch"}),
        ("def f(config):\n o = config.optim\n return o.nesterov", {"optim.nesterov"}),
        (
            "def f(c):\n d, e = c.data, c.eval\n return d.prefetch + e.split",
            {"data.prefetch", "eval.split"},
        ),
        ("def f(config):\n def g(): return o.nesterov\n o = config.optim", {"optim.nesterov"}),
        ("def f(optim): return optim.nesterov", {"optim.nesterov"}),
        ("def f(config): return config['eval']['split']", {"eval.split"}),
        ("def f(c):\n for n in ('pad', 'flip'): g(c.augment[n])", {"augment.pad", "augment.flip"}),
        ("def f(c):\n w = ('pad',)\n return [c.augment[n] for n in w]", {"augment.pad"}),
        # The words alone are no reader.
        ("def f(c):\n for n in ('pad',): c.augment[n] = 1", set()),
        ("def f(c):\n for n in ('pad',): g(c.data, n)", set()),
        ("def f(): 'config.optim.nesterov and o.nesterov'", set()),
        ("def f(nesterov): return nesterov, momentum.nesterov", set()),
        ("def f(config):\n config.optim.nesterov = True", set()),
        ("def f(config): config.optim.update(nesterov=True)", set()),
        ("def f(data): return data.optim.nesterov", set()),
        ("def f(config):\n o = config.eval\n return o.nesterov", set()),
    ],
)
def test_what_counts_as_a_read(code, expected):
    assert field_reads.reads(ast.parse(code)) & set(FIELDS) == expected


def test_what_a_network_reads_of_itself():
    code = "class N:\n  num_classes: int\n  depth: int = 1\n  width: int = 2\n"
    code += "  def f(self): return self.depth, self.other, x.width\n"
    assert field_reads.reads_of_networks(ast.parse(code)) == {"depth"}


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
