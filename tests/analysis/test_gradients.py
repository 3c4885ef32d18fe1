"""Gradients at the blocks: correlations, norms, and the product of the shortcuts' scales."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis import gradients, propagation, sensitivity
from run import command
from tests.support.analysed import CIFAR, outcome, random_images


def test_autocorrelation_against_loops():
    series = np.random.default_rng(1).normal(size=50).cumsum()
    mean, found = series.mean(), gradients.autocorrelation(series, lags=4)
    power = sum((x - mean) ** 2 for x in series)
    for lag in range(5):
        total = sum((series[i] - mean) * (series[i + lag] - mean) for i in range(50 - lag))
        assert found[lag] == pytest.approx(total / power)
    assert list(gradients.autocorrelation(np.ones(20), lags=2)) == [1, 0, 0]


def test_the_references_of_the_scalar_networks():
    generator = np.random.default_rng(2)
    white = np.mean(
        [gradients.autocorrelation(gradients.white_noise(generator)) for _ in range(50)], 0
    )
    brown = np.mean(
        [gradients.autocorrelation(gradients.brown_noise(generator)) for _ in range(50)], 0
    )
    assert np.abs(white[1:]).max() < 0.05
    assert brown[1] > 0.9
    assert brown[15] > 0.6


@pytest.mark.slow
def test_depth_shatters_the_gradients_of_plain_networks():
    """The direction of figure 1 of Balduzzi et al., at lag 5, over a few seeds."""
    at_lag = {}
    for name, *shape in gradients.SCALAR_NETWORKS[:2]:
        keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(5)]
        curves = [gradients.autocorrelation(gradients.scalar_gradient(k, *shape)) for k in keys]
        at_lag[name] = np.mean(curves, 0)[5]
    assert at_lag["1 layer"] > at_lag["plain, 24 layers"]


def test_correlation_is_the_mean_cosine_of_pairs():
    gradients_ = np.random.default_rng(3).normal(size=(4, 2, 2, 3))
    flat = gradients_.reshape(4, -1)
    cosines = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b) for i, a in enumerate(flat) for b in flat[:i]
    ]
    assert float(gradients.correlation(gradients_)) == pytest.approx(np.mean(cosines), rel=1e-4)
    assert float(gradients.correlation(np.ones((3, 5)))) == pytest.approx(1)
    assert float(gradients.correlation(np.zeros((3, 5)))) == 0


def test_decay_is_fitted_from_curves_of_known_decay():
    layers = np.arange(2, 40, 2)
    per_layer, _ = gradients.fit(np.stack([layers, 0.5**layers], 1))
    assert per_layer == pytest.approx(0.5)
    _, power = gradients.fit(np.stack([layers, layers**-0.5], 1))
    assert power == pytest.approx(-0.5)
    noisy = [[layers, max(0.5**layers, 0.005)] for layers in range(30, 0, -2)]
    assert gradients.fit(noisy)[0] == pytest.approx(0.5)  # what is left behind it is no decay
    assert gradients.fit([[2, 0.5], [4, -0.1], [6, 0.2]]) == (None, None)


@pytest.mark.slow
def test_gradients_at_the_blocks_obey_the_chain_rule(small):
    """The first block's input is the stem's output: its gradient, pulled back, is the image's."""
    model, variables = small
    images, direction = random_images(2), jnp.arange(10.0)

    @jax.jit
    def both(variables, images):
        found = propagation.inputs_and_gradients(model, variables, images, direction)
        _, pull = jax.vjp(lambda x: model.apply(variables, x, train=False)[1]["stem"], images)
        whole = jax.grad(lambda x: (model.apply(variables, x, train=False)[0] @ direction).sum())
        return found, pull(found["stage1/block1"][1])[0], whole(images)

    found, chained, direct = both(variables, images)
    assert propagation.in_order(found) == ["stage1/block1", "stage2/block1", "stage3/block1"]
    np.testing.assert_allclose(chained, direct, atol=1e-4 * float(jnp.abs(direct).max()))


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_shortcuts_multiply_the_gradient_by_their_scale(scale):
    """Pre-activated, no ReLU stands on the way: λ per block, exactly."""
    fields = {"depth": 20, "preactivation": True, "shortcut_scale": scale}
    model, variables = propagation.initialised(CIFAR | fields, 10, random_images(), 0)
    found = propagation.norms(model, variables, random_images(), 0)
    assert propagation.factor(found, "through shortcuts") == pytest.approx(scale, rel=1e-5)
    assert propagation.factor(found, "gradient") != pytest.approx(scale, rel=1e-2)


def test_factors_go_over_blocks_with_an_identity_shortcut():
    values = {"stage1/block1": 1, "stage1/block2": 2, "stage2/block1": 4, "stage2/block2": 100}
    blocks = {name: {"signal": value, "gradient": value} for name, value in values.items()}
    assert propagation.factor(blocks, "signal") == pytest.approx(2)
    assert propagation.factor(blocks, "gradient") == pytest.approx(0.5)
    blocks["stage1/block1"] = {"signal": 0, "gradient": 0}  # the gradient does not come that far
    assert propagation.factor(blocks, "gradient") == 0
    assert propagation.factor(blocks, "signal") is None


@pytest.mark.slow
def test_initialised_networks_are_normalised_by_the_images():
    model, variables = propagation.initialised(CIFAR, 10, random_images(8), 0)
    _, endpoints = model.apply(variables, random_images(8), train=False)
    (trained, _), _ = model.apply(variables, random_images(8), train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(
        model.apply(variables, random_images(8), False)[0], trained, atol=1e-4
    )
    assert np.isfinite(endpoints["stage3"]).all()


@pytest.mark.slow
def test_gradients_of_a_run(workdir, tmp_path):
    assert command.run(gradients.main, [f"--workdir={workdir}", "--images=4", "--runs=2"]) == 0
    found = outcome(workdir, "gradients")
    assert [row["state"] for row in found["image_networks"]] == ["initialised", "trained"]
    assert [layers for layers, _ in found["image_networks"][0]["curve"]] == [6, 4, 2]
    assert set(found["scalar_networks"]) >= {"white noise", "brown noise", "1 layer"}
    assert (workdir / "analysis/gradients.png").stat().st_size > 1000
    assert command.run(gradients.main, ["--runs=1", f"--out={tmp_path}"]) == 0  # needs no run
    assert json.loads((tmp_path / "gradients.json").read_text())["image_networks"] == []


@pytest.mark.slow
def test_propagation_and_sensitivity_of_a_run(workdir):
    argv = ["--workdir", str(workdir), str(workdir), "--images=8"]
    assert command.run(propagation.main, argv) == 0
    made = json.loads((workdir / "analysis/propagation.json").read_text())
    found, [table] = made["networks"], made["tables"]
    assert [row["network"] for row in found if row["state"] == "trained"] == ["resnet8"] * 2
    names = [row["network"] for row in found if row["state"] == "initialised"]
    assert "resnet8, pre-activated, shortcut × 0.5, branch × 0.5" in names and len(names) == 6
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    product = rows[names.index("resnet8, pre-activated, shortcut × 0.5") + 1]
    assert (product["blocks L"], product["over all L"], product["λ^L"]) == (1, "0.5", "0.5")
    assert command.run(sensitivity.main, [f"--workdir={workdir}", "--images=8"]) == 0
    [one] = outcome(workdir, "sensitivity")["measured"]
    for block in one["blocks"].values():
        assert block["example: change of F"] * block["|F| / |H|"] == pytest.approx(0.1 / 5.1)
        assert block["step: |ΔF| / |F|"] > 0
