"""Analysis of networks: identities that must hold, and every command on a tiny run."""

import json
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import models
import train
from analysis import cam, gradients, invariance, residuals, subject
from configs import digits
from errors import UserError
from run import command
from run.workdir import Workdir
from testing import opened_run

CIFAR = {"depth": 8, "stem": "cifar", "width": 4, "shortcut": "A"}


def random_network(seed=0, side=8, **fields):
    model = models.create(CIFAR | fields, 10)
    shape = (1, side, side, 3)
    variables = jax.jit(lambda: model.init(jax.random.key(seed), jnp.zeros(shape), False))()
    head = variables["params"]["head"]
    head["kernel"] = jax.random.normal(jax.random.key(1), head["kernel"].shape)
    head["bias"] = jax.random.normal(jax.random.key(2), head["bias"].shape)
    return model, variables


def random_images(number=3, side=8):
    return jax.random.normal(jax.random.key(3), (number, side, side, 3))


@pytest.fixture(scope="module")
def small():
    return random_network()


def test_the_map_adds_up_to_the_logit(small):
    model, variables = small
    classes = jnp.array([1, 7, 7])

    @jax.jit
    def both(variables, images):
        maps = cam.cam(model, variables, images, classes)
        return maps, model.apply(variables, images, train=False)[0]

    maps, logits = both(variables, random_images())
    bias = variables["params"]["head"]["bias"][classes]
    np.testing.assert_allclose(maps.mean((1, 2)) + bias, logits[np.arange(3), classes], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("endpoint", "fields", "side"),
    [
        ("stem", {}, 8),
        ("stage1", {}, 8),
        ("stage3", {}, 8),
        ("stem", {"stem": "imagenet", "depth": 18, "shortcut": "B"}, 32),
        ("stage2", {"preactivation": True}, 8),
    ],
)
def test_endpoint_gradients_obey_the_chain_rule(endpoint, fields, side):
    model, variables = random_network(side=side, **fields)
    images, classes = random_images(2, side), jnp.array([4, 0])

    @jax.jit
    def compare(variables, images):
        features, gradient = cam.endpoint_gradients(model, variables, images, classes, endpoint)
        activations, pull = jax.vjp(
            lambda x: model.apply(variables, x, train=False)[1][endpoint], images
        )
        direct = jax.grad(
            lambda x: model.apply(variables, x, train=False)[0][jnp.arange(2), classes].sum()
        )(images)
        return features, activations, pull(gradient)[0], direct

    features, activations, chained, direct = compare(variables, images)
    np.testing.assert_array_equal(features, activations)
    np.testing.assert_allclose(chained, direct, atol=1e-4 * float(jnp.abs(direct).max()))


def test_grad_cam_at_the_last_stage_is_the_positive_part_of_cam(small):
    model, variables = small
    classes = jnp.array([2, 3, 4])
    maps = cam.cam(model, variables, random_images(), classes)
    found = cam.grad_cam(model, variables, random_images(), classes, "stage3")
    positions = maps.shape[1] * maps.shape[2]
    np.testing.assert_allclose(found, np.maximum(maps, 0) / positions, rtol=1e-4, atol=1e-6)


def test_unknown_endpoint(small):
    with pytest.raises(UserError, match="--endpoint=stage9: expected one of stem, stage1"):
        cam.grad_cam(*small, random_images(), jnp.array([0, 0, 0]), "stage9")


def test_the_box_is_around_the_largest_region():
    activation_map = np.zeros((8, 8))
    activation_map[1:3, 2:6] = 1.0
    activation_map[6, 7] = 0.9  # a smaller region
    activation_map[4, :2] = 0.15  # below 20 %
    assert cam.box(activation_map, 8, 8) == (2, 1, 6, 3)
    assert cam.box(np.ones((4, 4)), 6, 9) == (0, 0, 9, 6)


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
    dropped = residuals.lesioned(variables, "stage2", "block1")
    parts = jax.jit(lambda v: residuals.branches_and_shortcuts(model, v, random_images()))
    before, after = parts(variables)["stage2/block1"], parts(dropped)["stage2/block1"]
    assert np.abs(before[0]).max() > 0
    assert np.abs(after[0]).max() == 0
    np.testing.assert_allclose(after[1], before[1], rtol=1e-6)


def test_blocks_are_counted_in_order():
    params = {"stage1": {f"block{i}": {} for i in (10, 2, 1)}}
    names = residuals.block_names({"params": params})
    assert names == [("stage1", "block1"), ("stage1", "block2"), ("stage1", "block10")]


def test_images_move_over_black():
    images = np.arange(1, 13, dtype=np.uint8).reshape(1, 3, 4, 1)
    right = invariance.shift(images, 1, axis=2)[0, :, :, 0]
    np.testing.assert_array_equal(right, [[0, 1, 2, 3], [0, 5, 6, 7], [0, 9, 10, 11]])
    down = invariance.shift(images, 2, axis=1)[0, :, :, 0]
    np.testing.assert_array_equal(down, [[0] * 4, [0] * 4, [1, 2, 3, 4]])


def test_a_map_that_moves_with_its_image_is_equivariant():
    reference = np.random.default_rng(0).normal(size=(2, 8, 8, 3))
    moved = np.roll(reference, 2, axis=1)  # stride 2: an image shift of 4 pixels of 16
    assert invariance.equivariance_error(moved, reference, 4, 1, 16) == 0
    assert invariance.equivariance_error(reference, reference, 4, 1, 16) > 0.5
    assert invariance.equivariance_error(moved, reference, 3, 1, 16) is None
    assert invariance.equivariance_error(moved, reference, 16, 1, 16) is None


def test_relative_change():
    reference = np.array([[3.0, 4.0], [6.0, 8.0]])
    moved = np.array([[3.0, 4.0], [6.0, 13.0]])
    assert invariance.change(moved, reference) == pytest.approx((0 + 0.5) / 2)


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


def test_neighbouring_gradients():
    generator = np.random.default_rng(3)
    noise = generator.normal(size=(4, 16, 16, 1))
    assert abs(gradients.neighbour_correlation(noise)) < 0.1
    ramp = np.broadcast_to(np.arange(16.0)[None, :, None, None], (4, 16, 16, 1))
    ramp = ramp + np.arange(16.0)[None, None, :, None]
    assert gradients.neighbour_correlation(ramp) > 0.99


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, data_dir):
    folder = tmp_path_factory.mktemp("run") / "a"
    config = digits.get_config("resnet8,paper")
    config.update(data_dir=data_dir, batch_size=32, num_steps=2, log_every=2, tensorboard=False)
    config.model.width = 4
    config.optim.boundaries = (1,)
    train.train(config, folder)
    return folder


def outcome(workdir, name):
    content = json.loads((workdir / "analysis" / f"{name}.json").read_text())
    words = shlex.split(content["header"]["command"])
    assert words[:4] == ["python", "-m", f"analysis.{name}", f"--workdir={workdir}"]
    return content


@pytest.mark.slow
def test_cam_of_files(workdir, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    argv = [f"--workdir={workdir}", str(tmp_path / "photo.png"), "--top_k=2"]
    assert command.run(cam.main, argv) == 0
    found = outcome(workdir, "cam")
    assert len(found["maps"]) == 2
    for one in found["maps"]:
        left, top, right, bottom = one["box"]
        assert 0 <= left < right <= 8 and 0 <= top < bottom <= 8
        with Image.open(one["overlay"]) as picture:
            assert picture.size == (224, 224)
    assert found["maps"][0]["probability"] >= found["maps"][1]["probability"]
    assert "box" in capsys.readouterr().out
    assert command.run(cam.main, [*argv, "--endpoint=stage2"]) == 0
    assert outcome(workdir, "cam")["endpoint"] == "stage2"


def test_residuals_of_a_run(workdir):
    assert command.run(residuals.main, [f"--workdir={workdir}", "--images=100"]) == 0
    found = outcome(workdir, "residuals")
    assert [b["block"] for b in found["blocks"]] == [f"stage{i}/block1" for i in (1, 2, 3)]
    assert all(0 <= b["error_without"] <= 1 and b["ratio"] > 0 for b in found["blocks"])
    run = opened_run.load(workdir)
    images, labels = subject.load_images(run, "test", 100)
    assert images.shape == (100, 8, 8, 1)
    assert residuals.lesion_errors(run, images, labels)[0] == found["error"]
    assert (workdir / "analysis/residuals.png").stat().st_size > 1000


def test_invariance_of_a_run(workdir):
    assert command.run(invariance.main, [f"--workdir={workdir}", "--images=20"]) == 0
    rows = outcome(workdir, "invariance")["shifts"]
    assert [row["pixels"] for row in rows] == list(range(8))  # digits are 8 pixels wide
    assert rows[0]["logits"] == 0 and rows[0]["same_answer"] == 1
    assert rows[3]["logits"] > 0
    assert rows[2]["stage2"]["equivariance"] is not None  # stride 2
    assert rows[3]["stage2"]["equivariance"] is None
    assert (workdir / "analysis/invariance.png").stat().st_size > 1000


@pytest.mark.slow
def test_gradients_of_a_run(workdir):
    argv = [f"--workdir={workdir}", "--images=4", "--runs=2", "--seeds=1", "--depths", "8"]
    assert command.run(gradients.main, argv) == 0
    found = outcome(workdir, "gradients")
    assert {row["family"] for row in found["image_networks"]} == {"plain", "resnet"}
    assert set(found["scalar_networks"]) >= {"white noise", "brown noise", "1 layer"}
    assert -1 <= found["trained"] <= 1
    assert (workdir / "analysis/gradients.png").stat().st_size > 1000


def test_errors_name_file_and_expectation(workdir, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for name in ("config.json", "data.json"):
        (tmp_path / "empty" / name).write_text((workdir / name).read_text())
    assert command.run(residuals.main, [f"--workdir={tmp_path / 'empty'}"]) == 1
    assert "holds no finished checkpoint; expected" in capsys.readouterr().err

    (tmp_path / "note.png").write_text("not an image")
    assert command.run(cam.main, [f"--workdir={workdir}", str(tmp_path / "note.png")]) == 1
    error = capsys.readouterr().err
    assert "note.png: not a readable image" in error and "expected" in error

    empty = Workdir(tmp_path / "empty")
    empty.write_facts(empty.read_facts() | {"label_names": list("abcdefghij")})
    (tmp_path / "empty" / "checkpoints").symlink_to(workdir / "checkpoints")
    assert command.run(invariance.main, [f"--workdir={tmp_path / 'empty'}"]) == 1
    assert "was trained on 10 classes" in capsys.readouterr().err
