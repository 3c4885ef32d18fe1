"""The per-class proposal network: its losses by hand, and runs on scenes and in ILSVRC's layout."""

import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data.facts import Facts
from data.normalization import CONSTANTS
from detection import boxes, localization_task
from detection.data import open_data
from detection.losses import anchor_losses, annotated
from detection.per_class import best_of_each_class, named
from detection.rpn import Level
from detection.sampling import Sampling
from errors import UserError
from run.mesh import make_mesh
from tests.support.drawn import draw
from tests.support.ilsvrc import write_localization
from tests.support.reference_weights import write_safetensors
from tests.support.tiny_recipes import tiny_recipe
from training import start
from training.check import check
from weights.torchvision import to_torch

pytestmark = pytest.mark.usefixtures("tiny_backbone")


def make_config(**fields):
    return tiny_recipe("localization", optim__boundaries=(), **fields)


def test_the_loss_of_each_class_by_hand():
    anchors = jnp.array([[0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]], jnp.float32)
    logits = jnp.arange(9, dtype=jnp.float32).reshape(3, 3) / 4 - 1
    deltas = jnp.arange(36, dtype=jnp.float32).reshape(3, 3, 4) / 50
    level = Level(logits[None], deltas[None], anchors[None])
    truth = jnp.array([[[1, 1, 10, 10], [0, 0, 0, 0]]], jnp.float32)
    objects = annotated(truth, jnp.array([[3, 0]]), jnp.array([[64, 64]]))
    keys = jax.random.split(jax.random.key(0), 1)
    found = jax.jit(anchor_losses, static_argnums=4)(
        keys, [level], objects, jnp.array([[64, 64]]), Sampling(3, 0.5, 0.7, 0.3)
    )
    right = np.zeros((3, 3), bool)
    right[0, 2] = True  # class 3 on the first anchor, nothing anywhere else
    entropy = optax.sigmoid_binary_cross_entropy(logits, right).sum()
    np.testing.assert_allclose(found["loss_objectness"], (entropy, 3), rtol=1e-6)
    wrong = jnp.abs(deltas[0, 2] - boxes.encode(truth[0, :1], anchors[:1])[0])
    smooth = jnp.where(wrong < 1 / 9, 4.5 * wrong**2, wrong - 1 / 18).sum()
    np.testing.assert_allclose(found["loss_rpn_box_reg"], (smooth, 3), rtol=1e-5)


def test_a_score_and_a_box_of_each_class_and_anchor():
    config = make_config()
    facts = Facts("", tuple(map(str, range(1001))), (0, 0, 3), CONSTANTS["imagenet"], 0)
    model = localization_task.create(config, facts)
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda: localization_task.init(model, key, facts.image_shape))["params"]
    assert shapes["scores"]["kernel"].shape[-1] == 2 * 1000
    assert shapes["deltas"]["kernel"].shape[-1] == 2 * 4000


@pytest.mark.slow
def test_a_run_begins_with_a_classifiers_backbone(tmp_path):
    config = make_config(init_from=str(tmp_path / "classifier.safetensors"))
    facts = Facts("", tuple("0abc"), (0, 0, 3), CONSTANTS["imagenet"], 0)
    model, key = localization_task.create(config, facts), jax.random.key(0)
    shapes = jax.eval_shape(lambda: localization_task.init(model, key, facts.image_shape))
    ones = {
        kind: jax.tree.map(lambda x: np.ones(x.shape, np.float32), dict(tree["backbone"]))
        for kind, tree in shapes.items()
    }
    ones["params"]["head"] = {"kernel": np.ones((32, 7)), "bias": np.ones(7)}
    state = {name: np.asarray(array, np.float32) for name, array in to_torch(ones).items()}
    write_safetensors(config.init_from, state, {"format": "pt"})
    found = start.initial_state(config, model, facts).params
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(found["backbone"]))
    assert not (found["scores"]["kernel"] == 1).any()


def test_the_best_box_of_each_class():
    random = np.random.default_rng(0)
    logits = random.normal(size=(50, 7)).astype(np.float32)
    logits[40:] = -np.inf  # beyond the image
    deltas = random.normal(size=(50, 7, 4)).astype(np.float32) / 5
    anchors = np.array([[10, 10, 30, 30]] * 50, np.float32) + random.integers(0, 40, (50, 1))
    level = Level(logits, deltas, anchors.astype(np.float32))
    scores = named([jax.tree.map(lambda x: x[None], level)])
    found = jax.jit(best_of_each_class)(level, scores[0], jnp.array([48, 56]))
    best = logits.max(0)
    labels = np.argsort(-best)
    np.testing.assert_array_equal(found.labels, 1 + labels)
    np.testing.assert_allclose(found.scores, 1 / (1 + np.exp(-best[labels])), rtol=1e-5)
    place = logits.argmax(0)[labels]
    own = boxes.clip(boxes.decode(deltas[place, labels], level.anchors[place]), 48, 56)
    np.testing.assert_allclose(found.boxes, own, atol=1e-4)


def test_scenes_are_cropped_with_their_boxes():
    config = make_config()
    data, truth = open_data(config, make_mesh()), None
    for batch in draw(config, make_mesh(), [0, 7], data):
        truth = data.annotated("train")
        assert batch["image"].shape == (4, 112, 112, 3) and (batch["size"] == 112).all()
        for image, box, index in zip(batch["image"], batch["boxes"], batch["index"], strict=True):
            whole, own = truth[index].image, truth[index].boxes[0]
            top, left = next(
                (y, x)
                for y in range(17)
                for x in range(17)
                if (whole[y : y + 112, x : x + 112] == image).all()
            )
            np.testing.assert_array_equal(box[0], np.clip(own - [left, top] * 2, 0, 112))


def test_photographs_are_cropped_with_their_boxes(photographs, tmp_path, caplog):
    photographs = photographs.copy_and_resolve_references()
    photographs.dataset = f"folder:{write_localization(tmp_path)}"
    boxed = photographs.dataset.removeprefix("folder:").replace("Data", "Annotations")
    missing = [f"{boxed}/train/n01440764/n01440764_{i}.xml" for i in (1, 3)]
    for path in map(Path, missing):
        path.unlink()
    with caplog.at_level(logging.WARNING):
        data = open_data(photographs, make_mesh())
    assert "2 of 18 images have no boxes" in caplog.text
    assert (data.split_size("train"), data.split_size("test")) == (16, 10)
    assert data.facts.label_names == ("background", "n01440764", "n02105855", "n03018349")
    source = data.source("train")
    batch = next(iter(data.train_batches(3))).arrays
    again = next(iter(open_data(photographs, make_mesh()).train_batches(3))).arrays
    jax.tree.map(np.testing.assert_array_equal, batch, again)
    assert batch["image"].shape == (4, 64, 64, 3)
    real = batch["labels"] > 0
    assert real.any() and (batch["boxes"][real][:, 2:] > batch["boxes"][real][:, :2]).all()
    assert batch["boxes"].min() >= 0 and batch["boxes"].max() <= 64
    for index, labels in zip(batch["index"], batch["labels"], strict=True):
        assert set(labels) <= {0, *source[index].labels}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"data__image_size": 129}, "data.image_size=129.*of scenes ≤ 128"),
        ({"detection__network": "fpn"}, "detection.network='fpn': expected one of rpn, rcnn"),
        ({"detection__network": "rcnn"}, "proposals_from='': expected the workdir"),
        ({"detection__proposals_from": "x"}, "proposals_from='x': .* none with rpn"),
        ({"dataset": "scenes"}, "dataset=scenes: expected single_scenes"),
        ({"eval__image_size": 129}, "eval.image_size=129: expected at most 128"),
        ({"eval__protocol": "10crop"}, "10crop.*with task=localization"),
        ({"eval__refine_boxes": True}, "refine_boxes=True: expected False"),
        ({"detection__masks": True}, "no masks"),
        ({"detection__anchors": ()}, "sides from 1 pixel on"),
        ({"data__resident": False}, "data.resident=False: expected True"),
    ],
)
def test_what_cannot_work_is_refused(fields, said):
    with pytest.raises(UserError, match=said):
        check(make_config(**fields), 1)
