"""Class activation maps: what they add up to, and where they are drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from analysis import cam
from errors import UserError
from run import command
from tests.support.analysed import outcome, random_images, random_network


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_mosaics_are_made_of_four_classes():
    images = np.arange(6, dtype=np.float32).reshape(6, 1, 1, 1) * np.ones((1, 2, 2, 1))
    made, classes = cam.mosaics_of_four(images, np.arange(6), 3)
    assert made.shape == (3, 4, 4, 1)
    np.testing.assert_array_equal(made[:, ::2, ::2, 0].reshape(3, 4), classes)
    assert all(len(set(four)) == 4 for four in classes.tolist())
    with pytest.raises(UserError, match="at least four classes"):
        cam.mosaics_of_four(images, np.arange(6) % 3, 1)


@pytest.mark.slow
def test_something_to_look_at_is_needed(workdir):
    for argv in ([f"--workdir={workdir}"], ["photo.jpg"], ["--weights=a.pth", "--mosaics=2"]):
        with pytest.raises(UserError, match="--workdir"):
            cam.main(argv)


@pytest.mark.slow
def test_maps_of_mosaics(workdir):
    assert command.run(cam.main, [f"--workdir={workdir}", "--mosaics=5"]) == 0
    found = outcome(workdir, "cam")["pointing"]
    assert found["mosaics"] == 5 and 0 <= found["hits"] <= 1 and found["positions"] == "4×4"


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
