"""Schedules and momentum against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models
from configs import base
from models.scanned import stack_blocks, unstack_blocks
from training import optim


def config(**fields):
    c = base.base().optim
    c.update(boundaries=(10, 20), learning_rate=0.1)
    c.update(fields)
    return c


def rates(steps, num_steps=30, batch_size=256, **fields):
    schedule = optim.learning_rate(config(**fields), num_steps=num_steps, batch_size=batch_size)
    return np.array([schedule(step) for step in steps])


def test_step_schedule_drops_at_the_boundary():
    np.testing.assert_allclose(
        rates([0, 9, 10, 19, 20, 29]), [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-5
    )


def test_cosine_with_linear_warmup():
    found = rates(range(31), schedule="cosine", warmup_steps=5)
    np.testing.assert_allclose(found[:5], 0.1 * np.arange(1, 6) / 5, rtol=1e-5)
    expected = 0.05 * (1 + np.cos(np.pi * np.arange(26) / 25))
    np.testing.assert_allclose(found[5:], expected, atol=1e-7)


def test_constant_warmup():
    """Identity Mappings' 400 iterations at 0.01, then the schedule as if they had not been."""
    found = rates([0, 399, 400, 401], warmup_steps=400, warmup_form="constant", boundaries=(401,))
    np.testing.assert_allclose(found, [0.01, 0.01, 0.1, 0.01], rtol=1e-5)
    low = rates([0, 4, 5], warmup_steps=5, warmup_form="constant", learning_rate=0.001)
    np.testing.assert_allclose(low, 0.001, rtol=1e-5)  # never above the rate that follows


def test_polynomial_falls_with_the_square_of_what_is_left():
    found = rates(range(31), schedule="polynomial", warmup_steps=5)
    np.testing.assert_allclose(found[5:], 0.1 * (1 - np.arange(26) / 25) ** 2, atol=1e-7)


def test_linear_scaling_rule():
    np.testing.assert_allclose(rates([0], batch_size=1024, reference_batch=256), [0.4], rtol=1e-6)


def test_warmup_until_the_error_falls():
    """0.01 while the averaged error is at least 0.8, then the scheduled rate for good."""
    c = config(warmup_until_error=0.8)
    error, warm, used = jnp.float32(1), jnp.bool_(False), []
    for step_error in [0.9] * 10 + [0.3] * 30 + [1.0] * 10:
        rate, error, warm = optim.error_warmup(c, jnp.float32(0.1), error, warm, step_error)
        used.append(float(rate))
    assert used[0] == pytest.approx(0.01)
    first = used.index(max(used))
    averages = [1.0]
    for step_error in [0.9] * 10 + [0.3] * 30:
        averages.append(0.95 * averages[-1] + 0.05 * step_error)
    assert first == next(i for i, average in enumerate(averages) if average < 0.8)
    assert used[first:] == pytest.approx([0.1] * (50 - first))


def reference(form, nesterov, gradients, learning_rates, decay):
    weight, velocity = 1.0, 0.0
    for gradient, rate in zip(gradients, learning_rates, strict=True):
        g = gradient + decay * weight
        scaled = rate * g if form == "paper" else g
        velocity = 0.9 * velocity + scaled
        step = scaled + 0.9 * velocity if nesterov else velocity
        weight -= step if form == "paper" else rate * step
    return weight


@pytest.mark.parametrize("form", ["paper", "torch"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_forms(form, nesterov):
    """The two agree while the rate is constant and differ where it drops."""
    optimizer = optim.optimizer(config(momentum_form=form, nesterov=nesterov, weight_decay=1e-2))
    params = {"head": {"kernel": jnp.ones((1, 1))}}
    state = optimizer.init(params)
    gradients, rate = [0.5, -0.2, 0.3, 0.1], [0.1, 0.1, 0.01, 0.01]
    for g, r in zip(gradients, rate, strict=True):
        grads = {"head": {"kernel": jnp.full((1, 1), g)}}
        updates, state = optimizer.update(grads, state, params, learning_rate=jnp.float32(r))
        params = {"head": {"kernel": params["head"]["kernel"] + updates["head"]["kernel"]}}
    expected = reference(form, nesterov, gradients, rate, 1e-2)
    np.testing.assert_allclose(params["head"]["kernel"], [[expected]], rtol=1e-5)
    other = reference("torch" if form == "paper" else "paper", nesterov, gradients, rate, 1e-2)
    assert abs(expected - other) > 1e-4


def test_only_weights_decay():
    params = {
        "conv": {"kernel": jnp.ones((3, 3, 1, 1))},
        "bn": {"scale": jnp.ones(1), "bias": jnp.ones(1)},
        "head": {"kernel": jnp.ones((1, 1)), "bias": jnp.ones(1)},
    }
    mask = optim.decay_mask(params)
    assert mask == {
        "conv": {"kernel": True},
        "bn": {"scale": False, "bias": False},
        "head": {"kernel": True, "bias": False},
    }


def test_clipping():
    optimizer = optim.optimizer(config(clip_norm=1.0, weight_decay=0.0))
    params = {"head": {"kernel": jnp.zeros((1, 2))}}
    grads = {"head": {"kernel": jnp.array([[3.0, 4.0]])}}
    updates, _ = optimizer.update(
        grads, optimizer.init(params), params, learning_rate=jnp.float32(1)
    )
    np.testing.assert_allclose(updates["head"]["kernel"], [[-0.6, -0.8]], rtol=1e-5)


# ---- LARS, LAMB, AdamW

RATE = jnp.float32(0.02)
MODERN = {"weight_decay": 0.1, "epsilon": 1e-6, "beta2": 0.99, "trust_coefficient": 0.01}


@pytest.fixture(scope="module")
def params():
    """Of ResNet-8 with projections, biases and BN off their start too."""
    model = models.create({"depth": 8, "stem": "cifar", "width": 4, "shortcut": "B"}, 3)
    image = jnp.zeros((1, 8, 8, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))
    return random_like(shapes["params"], 0)


def random_like(tree, seed):
    leaves, structure = jax.tree.flatten(tree)
    generator = np.random.default_rng(seed)
    drawn = [jnp.asarray(generator.normal(size=leaf.shape), jnp.float32) for leaf in leaves]
    return jax.tree.unflatten(structure, drawn)


def after_steps(optimizer, params, change=lambda tree: tree, **extra):
    """The parameters after three steps with gradients that are drawn once and for all."""
    params = change(params)
    state = optimizer.init(params)
    for seed in range(1, 4):
        grads = change(random_like(unstack_blocks(params), seed))
        updates, state = optimizer.update(grads, state, params, **extra)
        params = optax.apply_updates(params, updates)
    return params


def ours(params, change=lambda tree: tree, **fields):
    made = optim.optimizer(config(**(MODERN | fields)))
    return after_steps(made, params, change, learning_rate=RATE)


def assert_equal(found, expected, which=lambda path: True):
    number = 0
    for (path, a), b in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        if which(path):
            np.testing.assert_allclose(
                a, b, rtol=2e-6, atol=1e-7, err_msg=jax.tree_util.keystr(path)
            )
            number += 1
    return number


def is_kernel(path):
    return path[-1].key == "kernel"


@pytest.mark.slow
@pytest.mark.parametrize("nesterov", [False, True])
def test_lars_is_that_of_optax(params, nesterov):
    theirs = optax.lars(
        RATE,
        weight_decay=0.1,
        weight_decay_mask=optim.decay_mask,
        trust_coefficient=0.01,
        trust_ratio_mask=optim.decay_mask,
        momentum=0.9,
        nesterov=nesterov,
    )
    assert_equal(ours(params, name="lars", nesterov=nesterov), after_steps(theirs, params))


@pytest.mark.slow
def test_adamw_is_that_of_optax(params):
    theirs = optax.adamw(RATE, 0.9, 0.99, 1e-6, weight_decay=0.1, mask=optim.decay_mask)
    assert_equal(ours(params, name="adamw"), after_steps(theirs, params))


def test_lamb_is_that_of_optax_on_weights_and_adam_elsewhere(params):
    """optax's gives biases and BN a trust ratio, too."""
    found = ours(params, name="lamb")
    lamb = optax.lamb(RATE, 0.9, 0.99, 1e-6, weight_decay=0.1, mask=optim.decay_mask)
    kernels = assert_equal(found, after_steps(lamb, params), is_kernel)
    adam = after_steps(optax.adam(RATE, 0.9, 0.99, 1e-6), params)
    others = assert_equal(found, adam, lambda path: not is_kernel(path))
    assert (kernels, others) == (10, 19)


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_stacked_blocks_have_a_trust_ratio_each(params, name):
    params = {"stage1": {f"block{i}": params["stage1"]["block1"] for i in (1, 2, 3)}}
    params = random_like(params, 7)
    found = unstack_blocks(ours(params, stack_blocks, name=name))
    assert_equal(found, ours(params, name=name))


def test_a_checkpoint_of_sgd_has_the_names_it_always_had(params):
    for form, place in (("paper", 3), ("torch", 2)):
        state = optim.optimizer(config(momentum_form=form)).init(params)
        paths = {jax.tree_util.keystr(p, simple=True, separator=".")
                 for p, _ in jax.tree.leaves_with_path(state)}  # fmt: skip
        names = {jax.tree_util.keystr(p, simple=True, separator=".")
                 for p, _ in jax.tree.leaves_with_path(params)}  # fmt: skip
        assert paths == {f"{place}.trace.{name}" for name in names}


@pytest.mark.parametrize("name", ["lars", "lamb", "adamw"])
def test_a_probe_moves_the_head_only(params, name):
    found = ours(params, name=name, train_only="head")
    assert_equal(found, params, lambda path: path[0].key != "head")
    assert not np.allclose(found["head"]["kernel"], params["head"]["kernel"])
