"""Hostile configs, command lines and image sizes: they work or end in a UserError.

Hypothesis draws the same cases every time; pytest prints their number at its end.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume
from hypothesis import strategies as st

import main
import models
from configs import base, recipes
from errors import UserError
from tests.support.fuzzing import CASES, counted_cases, fuzz  # noqa: F401 — a fixture
from training import optim
from training.check import check

pytestmark = pytest.mark.usefixtures("counted_cases")


def test_there_are_at_least_2000_cases():
    assert sum(CASES.values()) >= 2000


# ---- Configs


def fields(config, prefix=""):
    """Every field of a config with its value, by dotted name."""
    flat = {}
    for name, value in config.items():
        nested = hasattr(value, "items")
        flat |= fields(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat


FIELDS = fields(recipes.digits("resnet8"))
WORDS = sorted(
    {"A", "B", "C", "none", "cifar", "imagenet", "1x1", "3x3", "bfloat16", "float32", "block"}
    | {"segments", "paper", "torch", "step", "cosine", "constant", "head", "all", "skip", "stop"}
    | {*models.CHOICES["variant"]}
)
INTEGERS = st.one_of(
    st.sampled_from([0, 1, 2, 3, 8, 14, 16, 18, 20, 32, 34, 50]), st.integers(-(2**70), 2**70)
)
SCALARS = st.one_of(
    st.booleans(), INTEGERS, st.floats(), st.sampled_from(WORDS), st.text(max_size=8), st.none()
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3))


def same_type(value):
    """Values of the type that a field has."""
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, int):
        return INTEGERS
    if isinstance(value, float):
        return st.one_of(st.floats(), st.floats(0, 1))
    if isinstance(value, str):
        return st.one_of(st.sampled_from(WORDS), st.sampled_from([value]), st.text(max_size=8))
    return st.lists(st.one_of(INTEGERS, st.floats()), max_size=4)


@st.composite
def overrides(draw):
    """One to four fields with values mostly of their type."""
    names = draw(st.lists(st.sampled_from(sorted(FIELDS)), min_size=1, max_size=4, unique=True))
    typed = draw(st.booleans())
    return {n: draw(same_type(FIELDS[n]) if typed else VALUES) for n in names}


def nested(flat):
    tree = {}
    for dotted, value in flat.items():
        *above, name = dotted.split(".")
        functools.reduce(lambda t, key: t.setdefault(key, {}), above, tree)[name] = value
    return tree


@functools.cache
def shapes(model):
    """Shapes of a network's variables; the forward pass is traced with them."""
    images = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    logits, _ = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, images)
    assert logits.shape == (2, 10)
    return variables


def build(flat):
    """The network, the schedule and the optimiser of a config, traced but not computed."""
    recipe = recipes.digits("resnet8")
    recipe.model.width = 4
    config = base.from_dict(nested(fields(recipe) | flat))
    check(config, 1)
    rate = optim.learning_rate(
        config.optim, num_steps=config.num_steps, batch_size=config.batch_size
    )
    assert jax.eval_shape(rate, jnp.int32(0)).shape == ()
    params = shapes(models.create(config.model, 10))["params"]
    jax.eval_shape(optim.optimizer(config.optim).init, params)


@pytest.mark.slow
@fuzz("configs", overrides())
def test_a_config_builds_a_network_or_is_refused(flat):
    try:
        build(flat)
    except UserError as error:
        assert str(error)


# ---- Networks


NETWORKS = st.sampled_from([("cifar", 8), ("imagenet", 18), ("imagenet", 50)])
SIDES = st.one_of(st.integers(1, 40), st.integers(1, 2000))


@functools.cache
def network(stem, depth):
    fields = {"stem": stem, "depth": depth, "width": 4}
    model = models.create(fields, 3)
    image = jnp.zeros((1, 32, 32, 3))
    return model, jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))


@pytest.mark.slow
@fuzz("networks on odd image sizes", NETWORKS, SIDES, SIDES)
def test_networks_take_images_of_any_size(which, height, width):
    model, variables = network(*which)
    images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    logits, _ = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, images)
    assert logits.shape == (1, 3)


@pytest.mark.slow
@fuzz("forward passes", st.sampled_from([(1, 1), (2000, 3), (3, 2000), (1, 7), (33, 2)]))
def test_forward_passes_on_odd_image_sizes_are_finite(size):
    model, shapes = network("cifar", 8)
    variables = jax.tree.map(lambda s: jnp.full(s.shape, 0.01, s.dtype), shapes)
    logits, _ = model.apply(variables, jnp.ones((1, *size, 3)), train=False)
    assert np.isfinite(logits).all()


# ---- Command lines


ARGUMENTS = st.one_of(
    st.text(max_size=12),
    st.builds("--config={}".format, st.text(max_size=12)),
    st.builds("--config=configs/digits.py:{}".format, st.text(max_size=8)),
    st.builds(
        "--config.{}={}".format,
        st.one_of(st.sampled_from(sorted(FIELDS)), st.text(max_size=8)),
        st.one_of(st.text(max_size=6), st.integers().map(str), st.sampled_from(WORDS)),
    ),
    st.builds("--{}={}".format, st.sampled_from(["mode", "num_processes"]), st.text(max_size=6)),
)


@pytest.mark.slow
@fuzz("command lines", st.lists(ARGUMENTS, max_size=3))
def test_a_command_line_is_understood_or_refused(arguments):
    assume(not any("help" in word or word == "-h" for word in arguments))
    argv = ["main.py", "--config=configs/digits.py:resnet8", *arguments]
    try:
        main.parse(argv)
    except UserError as error:
        assert str(error)
