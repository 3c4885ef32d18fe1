"""R-CNN on a per-class RPN's proposals: its parts by hand, and runs in ILSVRC's genuine layout."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

import evaluate
import train
from benchmarks.runs import differences, group
from configs import base
from data.facts import Facts
from data.normalization import CONSTANTS
from detection import boxes, localization_task, losses
from detection.localizers import Localizers, central
from detection.rcnn import proposals_of
from detection.rpn import Level, Limits, proposals
from detection.sampling import REGIONS, at_random
from errors import UserError
from models import resnet, scanned
from models.block import BasicBlock
from paper import appendix_c, table13
from testing import opened_run
from tests.support.published import published
from tests.support.tiny_recipes import tiny_recipe
from tests.support.untrained import make_workdir
from training import task
from training.check import check

pytestmark = pytest.mark.usefixtures("tiny_backbone")
LIMITS = Limits(before=40, after=6)


def test_regions_are_taken_as_they_come():
    objects = jnp.arange(10) < 3
    background = (jnp.arange(10) >= 3) & (jnp.arange(10) < 8)
    keys = jax.random.split(jax.random.key(0), 2000)
    sampling = REGIONS._replace(number=2)
    taken = jax.vmap(at_random, (0, None, None, None))(keys, objects, background, sampling)
    assert taken.valid.all() and (taken.indices[:, 0] != taken.indices[:, 1]).all()
    np.testing.assert_array_equal(taken.is_object, taken.indices < 3)
    share = np.bincount(np.ravel(taken.indices), minlength=10) / 4000
    np.testing.assert_allclose(share, [1 / 8] * 8 + [0] * 2, atol=0.03)
    few = at_random(keys[0], objects, objects & False, REGIONS)
    assert few.valid.sum() == 3 and set(few.indices[:3].tolist()) == {0, 1, 2}


def test_the_loss_of_each_class_of_a_region_by_hand():
    truth = np.float32([[[0, 0, 10, 20]]])
    objects = losses.Truth(truth, np.int32([[3]]), np.ones((1, 1), bool))
    places = np.float32([[[1, 0, 11, 20], [30, 30, 40, 40], [0, 0, 0, 0]]])
    valid = np.array([[True, True, False]])
    regions = losses.Regions(places, np.int32([[3, 0, 0]]), np.zeros((1, 3), np.int32), valid)
    logits = np.float32([[[0, 1, 2], [2, 0, -1], [9, -9, 9]]])
    deltas = np.arange(36, dtype=np.float32).reshape(1, 3, 3, 4) / 50
    weights = (10.0, 10.0, 5.0, 5.0)
    found = jax.jit(losses.region_losses, static_argnums=(4, 5))(
        logits, deltas, regions, objects, weights, True
    )
    right = np.zeros((2, 3), bool)
    right[0, 2] = True
    entropy = optax.sigmoid_binary_cross_entropy(logits[0, :2], right).sum()
    np.testing.assert_allclose(found["loss_classifier"], (entropy, 2), rtol=1e-6)
    wrong = jnp.abs(deltas[0, 0, 2] - boxes.encode(truth[0, 0], places[0, 0], weights))
    smooth = jnp.where(wrong < 1 / 9, 4.5 * wrong**2, wrong - 1 / 18).sum()
    np.testing.assert_allclose(found["loss_box_reg"], (smooth, 2), rtol=1e-5)


def test_a_crop_is_the_middle():
    batch = np.random.default_rng(0).normal(size=(3, 96, 64, 3)).astype(np.float32)
    sizes = np.array([[90, 60], [41, 64], [0, 0]], np.int32)
    crop, own, start = map(np.array, jax.jit(central, static_argnums=2)(batch, sizes, 48))
    np.testing.assert_array_equal(own, [[48, 48], [41, 48], [0, 0]])
    np.testing.assert_array_equal(start, [[21, 6], [0, 8], [0, 0]])
    for image, small, (h, w), (y, x) in zip(batch, crop, own, start, strict=True):
        np.testing.assert_array_equal(small[:h, :w], image[y : y + h, x : x + w])
        assert (small[h:] == 0).all() and (small[:, w:] == 0).all()


def drawn(shapes):
    """Random variables of these shapes."""
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: np.float32(
            random.normal(0, np.prod(x.shape[:-1]) ** -0.5, x.shape)
            if x.ndim > 1
            else random.uniform(0.5, 1, x.shape)
        ),
        shapes,
    )


@pytest.fixture(scope="module")
def network(tiny_backbone):
    """An R-CNN of seven classes with random weights, and two images of 64 × 64 and 40 × 64."""
    config = tiny_recipe("localization", detection__network="rcnn", data__image_size=32)
    config.detection.update(candidates=(40, 40), proposals=(6, 6))
    facts = Facts("", tuple("0abcdefg"), (0, 0, 3), CONSTANTS["imagenet"], 0)
    model = localization_task.create(config, facts)
    key = jax.random.key(0)
    variables = drawn(jax.eval_shape(lambda: localization_task.init(model, key, (0, 0, 3))))
    sizes, images = np.array([[64, 64], [40, 64]], np.int32), np.zeros((2, 64, 64, 3), np.float32)
    for image, (h, w) in zip(images, sizes, strict=True):
        image[:h, :w] = np.random.default_rng(h).normal(size=(h, w, 3))
    return model, variables, (images, sizes, np.array([[64, 64], [64, 64]], np.int32))


@pytest.mark.slow
def test_the_best_region_of_each_class(network):
    """As plain loops over classes, by a network twice and a crop that is the image."""
    model, variables, batch = network
    own = np.array([2, 5])

    @jax.jit
    def every(variables, own):
        bound = model.bind(variables)
        level = bound.anchored(batch[0], batch[2])
        of_all = proposals_of(level, jnp.tile(jnp.arange(7), (2, 1)), batch[1], LIMITS)
        single = Level(level.logits[..., 3], level.deltas[..., 3, :], level.anchors)
        flat = of_all[0].reshape(2, -1, 4)
        judged = bound.judged(batch[0], flat, jnp.tile(jnp.arange(7).repeat(6), (2, 1)))
        twice = Localizers((model, model), crop=64)
        return {
            "level": level,
            "proposed": (of_all, proposals([single], batch[1], LIMITS), judged),
            "twice": twice.apply(((variables, variables), ()), *batch, own),
        }

    found = jax.tree.map(np.array, every(variables, own))
    (regions, valid), single, (scores, places) = found["proposed"]
    np.testing.assert_array_equal(regions[:, 3], single[0])
    np.testing.assert_array_equal(valid[:, 3], single[1])
    assert valid.any(2).all()
    alone = found["twice"]
    named = np.argsort(-found["level"].logits.max(1), 1)[:, :5]
    np.testing.assert_array_equal(alone.labels, 1 + np.concatenate([named, own[:, None]], 1))
    for i in range(2):
        for k, label in enumerate(alone.labels[i]):
            of_class = np.where(valid[i, label - 1], scores[i].reshape(7, 6)[label - 1], -1)
            best = places[i].reshape(7, 6, 4)[label - 1][of_class.argmax()]
            borders = np.tile(batch[1][i][::-1], 2)
            np.testing.assert_allclose(alone.boxes[i, k], best.clip(0, borders), atol=1e-3)
            np.testing.assert_allclose(alone.scores[i, k], of_class.max(), atol=1e-5)


@pytest.mark.slow
def test_bfloat16_with_blocks_in_a_loop_is_close(monkeypatch):
    """What proposes and what classifies regions, with two equal blocks in a stage."""
    monkeypatch.setitem(resnet.IMAGENET, 10, resnet.Architecture((1, 2, 1, 1), BasicBlock))
    monkeypatch.setattr(scanned, "MIN_SCANNED_STAGE", 2)
    facts = Facts("", tuple("0abc"), (0, 0, 3), CONSTANTS["imagenet"], 0)
    key, random = jax.random.key(0), np.random.default_rng(0)
    images = random.normal(size=(2, 64, 64, 3)).astype(np.float32)
    sizes = np.array([[64, 64], [40, 64]], np.int32)
    truth = np.float32([[[8, 8, 40, 40]], [[0, 0, 30, 30]]]), np.int32([[1], [3]])
    batch = images, sizes, np.full((2, 2), 64, np.int32), *truth, None, jax.random.split(key, 2)

    def made(network, **fields):
        config = tiny_recipe("localization", optim__boundaries=(), **fields)
        config.detection.update(network=network, proposals_from="rpn" * (network == "rcnn"))
        config.detection.update(candidates=(8, 8), proposals=(4, 4))
        config.model.sync_bn, config.data.image_size = False, 64
        check(config, devices=2)
        model = localization_task.create(config, facts)
        shapes = jax.eval_shape(lambda: localization_task.init(model, key, (0, 0, 3)))

        def losses(variables):
            return model.apply(variables, *batch, method="losses", mutable=["batch_stats"])[0]

        return config, shapes, losses

    config, shapes, losses = made("rpn")
    variables = drawn(shapes)
    expected = jax.jit(losses)(variables)
    fast = {"model__dtype": "bfloat16", "model__scan_blocks": True}
    found = jax.jit(made("rpn", **fast)[2])(scanned.stack_blocks(variables))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0.05), found, expected)

    base = opened_run.OpenedRun("rpn", config, facts, None, variables, 1)
    config, shapes, losses = made("rcnn", **fast)
    with pytest.raises(UserError, match="model.dtype: 'float32' in rpn, 'bfloat16' here"):
        localization_task.load(config, facts, shapes, base)
    base.config.model.dtype = "bfloat16"
    loaded = localization_task.load(config, facts, shapes, base)
    assert jax.tree.structure(loaded) == jax.tree.structure(shapes)
    found = jax.tree.leaves(jax.eval_shape(losses, loaded))
    assert {x.dtype for x in found} == {np.dtype(np.float32)}


@pytest.fixture(scope="module")
def runs(photographs, tiny_backbone, compilation_cache, tmp_path_factory):
    """Workdirs of a per-class RPN and of an R-CNN on its proposals, and their results."""
    root = tmp_path_factory.mktemp("runs")
    results = {"rpn": train.train(photographs, root / "rpn")}
    config = photographs.copy_and_resolve_references()
    config.update(checkpoint_every=1)
    config.data.image_size = 32
    config.detection.update(network="rcnn", proposals_from=str(root / "rpn"), region_samples=2)
    config.detection.update(proposals=(4, 4))
    return root, config, results | {"rcnn": train.train(config, root / "rcnn")}


def arrays(folder):
    variables = opened_run.load(str(folder), task=localization_task).variables
    return {".".join(path): x for path, x in traverse_util.flatten_dict(variables).items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rpn", "rcnn"])
def test_a_run_in_the_genuine_layout(kind, runs, photographs, tmp_path, capsys):
    root, config, results = runs
    result = results[kind]
    assert result["images"] == 10
    assert result["top5_class_error"] == 0  # of three classes
    assert result["localization_error"] == result["top5_localization_error"]
    assert result["error"] == result["localization_error"] / 100
    assert (root / kind / "detections.png").is_file()
    tested = evaluate.run(photographs if kind == "rpn" else config, root / kind)
    assert tested["localization_error"] == result["localization_error"]
    assert "(true class)" in capsys.readouterr().out
    table13.main([f"--workdirs={root / kind}", f"--out={tmp_path}"])
    said = capsys.readouterr().out
    assert f"{tested['localization_error']:.2f}" in said
    assert {"rpn": "resnet10, RPN, dense on", "rcnn": "RPN and R-CNN, dense on"}[kind] in said


@pytest.mark.slow
def test_what_proposes_stays_and_a_run_goes_on_to_the_same_bits(runs, tmp_path):
    root, config, result = runs
    before, after = arrays(root / "rpn"), arrays(root / "rcnn")
    proposer = {n.replace("proposer.", ""): x for n, x in after.items() if "proposer" in n}
    assert proposer.keys() == before.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(proposer[name], array, err_msg=name)
    lines = [json.loads(x) for x in (root / "rcnn/metrics.jsonl").read_text().splitlines()]
    assert {"loss_classifier", "loss_box_reg"} <= set(lines[0])
    folder = shutil.copytree(root / "rcnn", tmp_path / "run")
    shutil.rmtree(folder / "checkpoints" / "2")
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(text.splitlines(True)[0])
    first = arrays(folder)
    moved_away = config.copy_and_resolve_references()
    assert (
        train.train(moved_away, folder)["localization_error"]
        == (result["rcnn"]["localization_error"])
    )
    assert (folder / "metrics.jsonl").read_text() == text
    again = arrays(folder)
    for name, array in after.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)
    assert not np.array_equal(
        first["params.siblings.deltas.kernel"], again["params.siblings.deltas.kernel"]
    )


RECIPE = """
from models import resnet
from models.block import BasicBlock
from run.workdir import Workdir


def get_config():
    resnet.IMAGENET[10] = resnet.Architecture((1, 1, 1, 1), BasicBlock)
    return Workdir({!r}).read_config()
"""


@pytest.mark.slow
def test_two_processes_learn_and_are_tested_as_two_devices(runs, tmp_path):
    """Each reads the images and boxes of its own half of a batch."""
    alone, together, recipe = runs[0] / "rpn", tmp_path / "two", tmp_path / "recipe.py"
    recipe.write_text(RECIPE.format(str(alone)))
    both = group(together, {}, 2, f"--config={recipe}")
    assert [run.wait() for run in both] == [0, 0], both[0].said()
    assert differences(together, alone) == []


@pytest.mark.slow
def test_runs_are_tested_together(runs, photographs, tmp_path, monkeypatch):
    root, _, results = runs
    asked = photographs.copy_and_resolve_references()
    asked.eval.update(protocol="multiscale", scales=(80,), ensemble=(str(root / "rpn"),))
    classes = base.base()
    classes.update(dataset=photographs.dataset, batch_size=8)
    classes.data.update(image_size=32, test_split="val", num_threads=1)
    classes.augment.update(resize_min=32, resize_max=40)
    classes.eval.update(batch_size=8, resize=36)
    classes.model.update(depth=10, width=4)
    classifier = str(make_workdir(classes, tmp_path / "classes"))
    asked.eval.classes_from = (classifier,)
    tested = evaluate.run(asked, root / "rpn")
    assert tested["images"] == 10 and tested["classes_from"] == [classifier]
    assert [one["workdir"] for one in tested["networks"]] == 2 * [str(root / "rpn")]
    with pytest.raises(UserError, match="expected an ensemble of one kind"):
        evaluate.run(asked, root / "rcnn")
    for name, kept in (("RPN", 2), ("RCNN", 1)):
        options = dict(list(getattr(appendix_c, name).items())[:kept])
        monkeypatch.setattr(appendix_c, name, options)
    argv = [f"--rpn={root / 'rpn'}", f"--rcnn={root / 'rcnn'}", "--crop=48", "--scales=64"]
    rows = published(appendix_c, [*argv, f"--out={tmp_path}"])["tables"][0]["rows"]
    assert [row[0] for row in rows] == [*appendix_c.RPN, *appendix_c.RCNN]
    assert [row[2] for row in rows] == [13.3, None, None]  # a column without numbers is left out
    assert [row[3] for row in rows[1:]] == [
        results[kind]["localization_error"] for kind in ("rpn", "rcnn")
    ]
    with pytest.raises(UserError, match="has another detection.network"):
        appendix_c.main([*argv[1:], f"--rpn={root / 'rcnn'}"])


@pytest.mark.slow
def test_another_network_cannot_propose(runs):
    root, config, _ = runs
    run = task.opened(str(root / "rpn"), "localization")
    other = config.copy_and_resolve_references()
    other.model.width, other.detection.anchors = 8, (16,)
    with pytest.raises(UserError, match=r"model.width: 4 in .*, 8 here; detection.anchors"):
        localization_task.load(other, run.facts, {}, run)
