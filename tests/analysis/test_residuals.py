"""Blocks dropped, exchanged, made the identity; the sizes of what they add."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis import lesions, residuals, sensitivity, subject
from analysis.identity import identity_block
from errors import UserError
from models.block import BasicBlock
from models.block_spec import BlockSpec
from run import command
from testing import opened_run
from tests.support.analysed import outcome, random_images, random_network


@pytest.mark.slow
def test_norms_are_those_of_branch_and_shortcut(small):
    model, variables = small
    images = random_images()
    found = jax.jit(lambda v, x: residuals.branch_norms(model, v, x))(variables, images)
    assert list(found) == ["stage1/block1", "stage2/block1", "stage3/block1"]
    _, endpoints = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    # The first shortcut is the stem's output itself.
    stem = np.mean([np.linalg.norm(np.ravel(image)) for image in endpoints["stem"]])
    assert float(found["stage1/block1"][1]) == pytest.approx(stem, rel=1e-4)
    parts = jax.jit(lambda v, x: residuals.branches_and_shortcuts(model, v, x))(variables, images)
    branch, shortcut = map(np.asarray, parts["stage2/block1"])
    np.testing.assert_allclose(endpoints["stage2"], np.maximum(branch + shortcut, 0), atol=1e-5)
    branch, shortcut = (np.linalg.norm(x.reshape(len(x), -1), axis=1) for x in (branch, shortcut))
    expected = [branch.mean(), shortcut.mean(), (branch / shortcut).mean()]
    np.testing.assert_allclose(found["stage2/block1"], expected, rtol=1e-4)


def test_a_plain_network_has_no_shortcuts():
    model, variables = random_network(residual=False)
    with pytest.raises(UserError, match="a plain network has no shortcuts"):
        residuals.branch_norms(model, variables, random_images())


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"preactivation": True},
        {"variant": "relu_before_addition"},
        {"variant": "bn_after_addition"},
        {"variant": "relu_only_preactivation"},
    ],
    ids=str,
)
def test_a_lesion_removes_the_branch_and_leaves_the_shortcut(fields):
    model, variables = random_network(**fields)
    noise = jax.tree.map(lambda x: x + 0.3, variables["params"]["stage2"])
    variables["params"]["stage2"] = noise  # no bias is zero by initialisation
    dropped = lesions.lesioned(variables, "stage2", "block1")
    parts = jax.jit(lambda v: residuals.branches_and_shortcuts(model, v, random_images()))
    before, after = parts(variables)["stage2/block1"], parts(dropped)["stage2/block1"]
    assert np.abs(before[0]).max() > 0
    assert np.abs(after[0]).max() == 0
    np.testing.assert_allclose(after[1], before[1], rtol=1e-6)


def test_blocks_are_counted_in_order():
    params = {"stage1": {f"block{i}": {} for i in (10, 2, 1)}}
    names = lesions.block_names({"params": params})
    assert names == [("stage1", "block1"), ("stage1", "block2"), ("stage1", "block10")]


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_identity_blocks_return_their_input(residual, train):
    """Exactly: residual ones always, plain ones when normalised by averages, of any size."""
    _, variables = random_network(depth=14, residual=residual)
    x = np.random.default_rng(0).normal(size=(64, 8, 8, 4)) * [1, 9, 0.01, 0]
    x = jnp.asarray(np.maximum(x, 0), jnp.float32)
    mean, var = np.asarray(x.mean((0, 1, 2))), np.asarray(x.var((0, 1, 2)))
    layers = variables["params"]["stage1"]["block2"]
    params, stats = identity_block(layers, mean, var, residual)
    spec = BlockSpec(4, shortcut="A", residual=residual)
    y, _ = jax.jit(lambda v, x: BasicBlock(spec).apply(v, x, train=train, mutable=["batch_stats"]))(
        {"params": params, "batch_stats": stats}, x
    )
    if residual or not train:
        np.testing.assert_array_equal(y, x)
    else:  # the batch has the statistics that the block undoes
        np.testing.assert_allclose(y, x, atol=1e-4)


@pytest.mark.slow
def test_a_plain_lesion_is_the_identity():
    """With every second block dropped, the deeper network computes what the shallower does."""
    model, variables = random_network(depth=14, residual=False)
    shallow, _ = random_network(residual=False)
    kept = {
        name: {k: {"block1": v["block1"]} if "block1" in v else v for k, v in tree.items()}
        for name, tree in variables.items()
    }
    for stage in ("stage1", "stage2", "stage3"):
        variables = lesions.lesioned(variables, stage, "block2", residual=False)
    logits = [
        m.apply(v, random_images(), False)[0] for m, v in ((model, variables), (shallow, kept))
    ]
    np.testing.assert_array_equal(*logits)


@pytest.mark.slow
def test_blocks_exchange_their_places():
    _, variables = random_network(depth=20)
    equal = lesions.equal_blocks(variables)
    assert equal == [
        *(("stage1", f"block{i}") for i in (1, 2, 3)),
        *((f"stage{s}", f"block{i}") for s in (2, 3) for i in (2, 3)),
    ]
    pair = (("stage2", "block2"), ("stage2", "block3"))
    moved = lesions.reordered(variables, [pair])
    for name in ("params", "batch_stats"):
        before, after = variables[name]["stage2"], moved[name]["stage2"]
        assert after["block2"] is before["block3"] and after["block3"] is before["block2"]
        assert after["block1"] is before["block1"]
    assert moved["params"]["stage1"] is variables["params"]["stage1"]
    back = lesions.reordered(variables, [pair, pair])
    assert back["params"]["stage2"]["block2"] is variables["params"]["stage2"]["block2"]


def test_kendall_tau():
    assert lesions.kendall_tau([0, 1, 2, 3]) == 1
    assert lesions.kendall_tau([3, 2, 1, 0]) == -1
    assert lesions.kendall_tau([1, 0, 2, 3]) == pytest.approx(1 - 2 / 6)


@pytest.mark.slow
def test_residuals_of_runs(workdir, tmp_path):
    argv = [f"--workdir={workdir}", "--images=100"]
    assert command.run(residuals.main, argv) == 0
    [found] = outcome(workdir, "residuals")["measured"]
    assert [b["block"] for b in found["blocks"]] == [f"stage{i}/block1" for i in (1, 2, 3)]
    assert all(0 <= b["error_without"] <= 1 and b["ratio"] > 0 for b in found["blocks"])
    run = opened_run.load(workdir)
    images, labels = subject.load_images(run, "test", 100)
    assert images.shape == (100, 8, 8, 1)
    assert lesions.error_of(run, images, labels)(run.variables) == found["error"]
    assert [row["blocks"] for row in found["lesions"]] == [1]  # one block changes no shape
    picture = workdir / "analysis/residuals.png"
    assert picture.stat().st_size > 1000
    twice = ["--workdir", str(workdir), str(workdir), "--images=20", f"--out={tmp_path}"]
    assert command.run(residuals.main, twice) == 0
    assert len(json.loads((tmp_path / "residuals.json").read_text())["measured"]) == 2


@pytest.mark.slow
def test_sensitivity_is_that_of_the_equation(small):
    model, variables = small
    images, labels = random_images(4), jnp.array([0, 1, 2, 3])
    found = jax.jit(lambda v: sensitivity.parts(model, v, images))(variables)
    _, endpoints = model.apply(variables, images, train=False)
    x, f, h = found["stage1/block1"]
    np.testing.assert_allclose(x, endpoints["stem"], atol=1e-5)
    np.testing.assert_allclose(jax.nn.relu(h), endpoints["stage1"], atol=1e-5)
    np.testing.assert_allclose(h - f, x, atol=1e-5)
    moved = sensitivity.stepped(model, variables, images, labels, 0.1)
    kept = jax.jit(
        lambda v: sensitivity.parts(model, v, images, {k: x for k, (x, _, _) in found.items()})
    )(moved)
    for name, (x, f, h) in kept.items():
        np.testing.assert_array_equal(x, found[name][0])
        np.testing.assert_allclose(h - found[name][2], f - found[name][1], atol=1e-4)
