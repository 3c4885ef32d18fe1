"""Signal and gradient over depths, before training."""

import jax
import jax.numpy as jnp
import pytest

import models
from analysis import depth
from models.scanned import unstack_blocks
from run import command
from tests.support.analysed import CIFAR, outcome, random_images


@pytest.mark.slow
def test_gradients_of_a_loop_are_those_of_its_blocks_one_by_one():
    images, labels = random_images(4), jnp.arange(4)
    looped = models.create(CIFAR | {"depth": 20, "scan_blocks": True}, 10)
    [found] = depth.measure(looped, images, labels, [3])
    assert len(found["gradient"]) == 9 and list(found["signal"])[::3] == ["stem", "stage3"]

    variables = unstack_blocks(looped.init(jax.random.key(3), images[:1], train=False))
    one_by_one = models.create(CIFAR | {"depth": 20}, 10)

    @jax.jit
    def loss(params):
        given = {**variables, "params": params}
        (logits, _), _ = one_by_one.apply(given, images, train=True, mutable=["batch_stats"])
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()

    value, gradients = jax.value_and_grad(loss)(variables["params"])
    assert found["loss"] == pytest.approx(float(value), rel=1e-4)
    layers = gradients["stage2"]["block3"]
    kernels = [layers[name]["kernel"].ravel() for name in ("conv1", "conv2")]
    norm = float(jnp.linalg.norm(jnp.concatenate(kernels)))
    assert found["gradient"]["stage2/block3"] == pytest.approx(norm, rel=1e-3)


@pytest.mark.slow
def test_depths_of_a_run(workdir):
    argv = [f"--workdir={workdir}", "--images=8", "--depths", "8", "--seeds", "0", "1"]
    assert command.run(depth.main, argv) == 0
    plain, residual = outcome(workdir, "depth")["networks"]
    assert outcome(workdir, "depth")["header"]["seeds"] == [0, 1]
    assert (plain["network"], residual["network"]) == ("plain8", "resnet8")
    assert plain["parameters"] == residual["parameters"]  # option A has none
    assert [one["seed"] for one in residual["seeds"]] == [0, 1]
    assert all(norm > 0 for one in plain["seeds"] for norm in one["gradient"].values())
    assert (workdir / "analysis/depth.svg").stat().st_size > 1000
