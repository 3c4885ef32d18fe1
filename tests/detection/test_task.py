"""Detection as a task of main.py: whole runs of a tiny detector on a few scenes."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import PartitionSpec as P
from PIL import Image

import evaluate
import input_pipeline
import predict
import train
from benchmarks.runs import as_killed_after, differences
from configs import command_line
from data.facts import Facts
from data.normalization import CONSTANTS
from detection import network, scenes
from detection import task as detection
from detection.classes import COCO, VOC
from errors import UserError
from paper import appendix_b
from run.checkpoint import Checkpoints, flatten
from run.mesh import make_mesh
from run.workdir import Workdir
from testing import opened_run
from tests.support import detection_reference
from tests.support.published import published
from tests.support.reference_weights import write_safetensors
from tests.support.tiny_recipes import tiny_recipe
from training import step as train_step
from training import task
from training.check import check
from weights.torchvision import to_torch

pytestmark = pytest.mark.usefixtures("tiny_backbone")


def make_config(**fields):
    """Four steps on eight of the scenes; the stem stays as it is."""
    config = tiny_recipe("scenes", num_steps=4)
    config.optim.update(learning_rate=0.01, weight_decay=0.1)
    config.data.update(train_split="train[:12]", validation_size=4, test_split="test[:4]")
    config.detection.update(width=8, hidden=8, candidates=(16, 16), proposals=(8, 8))
    config.detection.update(anchor_samples=16, region_samples=8, frozen_stages=1)
    config.update_from_flattened_dict({name.replace("__", "."): v for name, v in fields.items()})
    return config


@pytest.fixture(scope="module")
def finished(tiny_backbone, compilation_cache, tmp_path_factory):
    """The workdir of a finished run on two devices, and its result."""
    folder = tmp_path_factory.mktemp("detection") / "run"
    return folder, train.train(make_config(), folder)


def opened(folder):
    return opened_run.load(folder, task=detection)


def arrays(folder):
    return Checkpoints(folder, read_only=True).read()[0]


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_says_what_it_has_learned(finished):
    folder, result = finished
    found = lines(folder)
    assert [(line["step"], line["split"]) for line in found] == [
        *((1, "train"), (2, "train"), (2, "validation"), (3, "train"), (4, "train")),
        *((4, "validation"), (4, "test")),
    ]
    parts = {name: value for name, value in found[0].items() if name.startswith("loss_")}
    assert set(parts) == set(detection.LOSSES)
    assert found[0]["loss"] == pytest.approx(sum(parts.values()), rel=1e-5)
    assert result["images"] == 4 and result["error"] == 1 - result["AP"] / 100
    assert {"AP", "AP50", "AP75"} <= set(found[-1])
    assert Image.open(Workdir(folder).detections).size == (4 * 320, 320)
    assert (folder / "curves.png").exists()


@pytest.mark.slow
def test_two_devices_learn_as_one(finished):
    """The first losses: samples, BN statistics and counts are those of the whole batch."""
    config, mesh = make_config(), make_mesh(jax.devices()[:1])
    data = input_pipeline.open_data(config, mesh)
    model = detection.create(config, data.facts)
    state = train_step.create_state(config, model, data.facts.image_shape)

    def losses(variables, order, feed):
        _, batch = data.draw(order, 0, feed)
        part = detection.prepare(config, model, data.facts.normalization, 0, batch)
        return detection.loss(config, model, variables, part, None)[1][1]

    alone = jax.shard_map(
        losses, mesh=mesh, in_specs=(P(), P(), data.feed_spec), out_specs=P(), check_vma=False
    )
    sums = jax.jit(alone)(state.evaluation_variables(), data.initial_order(), next(data.feed(0)))
    line = lines(finished[0])[0]
    for name in detection.LOSSES:
        assert line[name] == pytest.approx(sums[name].item() / config.batch_size, rel=1e-4)
    # What is frozen stays, also from weight decay.
    before, after = flatten({"params": state.params}), arrays(finished[0])
    for name, stays in (("stem_conv.kernel", True), ("stage1.block1.conv1.kernel", False)):
        name = f"params.backbone.{name}"
        assert np.array_equal(before[name], after[name]) == stays


@pytest.mark.slow
def test_a_workdir_is_tested_and_predicts(finished, tmp_path, capsys):
    folder, result = finished
    config = opened(folder).config
    tested = evaluate.run(config, str(folder))
    assert {name: tested[name] for name in ("AP", "AP50", "images")} == {
        name: result[name] for name in ("AP", "AP50", "images")
    }
    assert f"scenes test, center: AP {result['AP']:.1f}" in capsys.readouterr().out
    photo = tmp_path / "photo.png"
    Image.fromarray(scenes.load("test").images[0]).save(photo)
    words = [f"--workdir={folder}", str(photo), f"--picture_dir={tmp_path / 'out'}"]
    assert predict.main([*words, "--min_score=0", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert "detections" in entry and len(list((tmp_path / "out").iterdir())) == 1
    with pytest.raises(UserError, match="this run has learned detection"):
        opened_run.load(folder)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(finished, tmp_path):
    again = as_killed_after(2, finished[0], tmp_path / "again")
    train.train(make_config(), again)
    assert differences(again, finished[0]) == []


@pytest.mark.slow
def test_a_workdir_is_tested_as_appendix_b_does(finished, tmp_path, monkeypatch):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    config = opened(folder).config
    config.eval.update(refine_boxes=True, protocol="multiscale", scales=(96,))
    config.eval.ensemble = (str(folder),)
    tested = evaluate.run(config, str(folder))
    assert tested["images"] == 4 and tested["refine_boxes"] and tested["scales"] == [96]
    assert [one["workdir"] for one in tested["networks"]] == 2 * [str(folder)]
    monkeypatch.setattr(appendix_b, "OPTIONS", {appendix_b.PLAIN: {}})
    argv = ["--workdirs", str(folder), "--context", str(folder), f"--out={tmp_path}"]
    content = published(appendix_b, [*argv, "--scales", "96"])
    plain, context = content["tables"][0]["rows"]
    assert plain[0] == "tested plainly" and plain[3] == context[3] == finished[1]["AP"]
    assert context[0] == "context" and context[-4:] == ["+0.00", "+0.00", "+1.2", "+0.1"]


@pytest.mark.slow
def test_a_classifiers_backbone_is_taken(finished, tmp_path):
    run = opened(finished[0])
    backbone = {kind: dict(tree["backbone"]) for kind, tree in run.variables.items()}
    ones = jax.tree.map(np.ones_like, backbone)
    ones["params"]["head"] = {"kernel": np.ones((32, 7)), "bias": np.ones(7)}
    path = tmp_path / "classifier.safetensors"
    state = {name: np.asarray(array, np.float32) for name, array in to_torch(ones).items()}
    write_safetensors(path, state, {"format": "pt"})
    config = make_config(init_from=str(path), model__frozen_bn=True)
    variables = detection.load(config, run.facts, run.variables)
    assert jax.tree.structure(variables) == jax.tree.structure(run.variables)
    loaded = variables["params"]
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(loaded["backbone"]))
    np.testing.assert_array_equal(
        loaded["fpn"]["inner1"]["conv"]["bias"],
        run.variables["params"]["fpn"]["inner1"]["conv"]["bias"],
    )
    narrow = {name: array[:1] if array.ndim else array for name, array in state.items()}
    write_safetensors(path, narrow, {"format": "pt"})
    with pytest.raises(UserError, match=r"classifier\.safetensors"):
        detection.load(config, run.facts, run.variables)


DEEPLAB = {"task": "segmentation", "detection__network": "deeplabv3", "model__output_stride": 8}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "classes", "fields", "said"),
    [
        ("mask_rcnn", 11, {}, "its heads are of 6 classes with the background; scenes has 11"),
        ("mask_rcnn", 6, {}, "holds Mask R-CNN .*network=fpn.*masks=False.* unknown: "),
        ("faster_rcnn_v2", 6, {"detection__masks": True}, "holds Faster R-CNN .*masks=True.* miss"),
        ("fcn", 6, {}, "holds FCN .*network=fpn.* missing: roi_heads"),
        ("fcn", 6, DEEPLAB, "holds FCN .*network=deeplabv3.* missing: classifier.0.convs"),
        ("mask_rcnn", 6, DEEPLAB, "holds Mask R-CNN .*network=deeplabv3.* missing: aux"),
        ("fcn", 6, {"data__normalization": "caffe"}, "normalised with caffe's constants"),
        ("classifier", 6, {}, "holds no detector or segmenter that could be tested"),
    ],
)
def test_weights_of_another_head(tmp_path, file, classes, fields, said):
    path = str(tmp_path / "weights.safetensors")
    stored, start = np.load(detection_reference.FILE), "backbone.body."
    state = detection_reference.state_dict(stored, "mask_rcnn" if file == "classifier" else file)
    if file == "classifier":
        state = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
        state |= {"fc.weight": np.zeros((5, 64), np.float32), "fc.bias": np.zeros(5, np.float32)}
    write_safetensors(path, state, {"format": "pt"})
    config = make_config(init_from=path, **fields)
    names = ("background", *map(str, range(1, classes)))
    facts = Facts("scenes", names, (64, 64, 3), CONSTANTS["imagenet"], 0)
    with pytest.raises(UserError, match=f"weights.safetensors: .*{said}"):
        task.from_weight_file(config, facts)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"detection__network": "yolo"}, "detection.network='yolo': expected one of 'fpn', 'c4'"),
        ({"task": "captions"}, "task='captions': expected one of"),
        ({"data__resident": False}, "data.resident=False: expected True with dataset=scenes"),
        ({"task": "segmentation"}, "detection.network='fpn': expected one of fcn, deeplabv3"),
        ({"augment__mixup": 0.2}, "augment.mixup=0.2: expected 0.0 with task=detection"),
        ({"optim__label_smoothing": 0.1}, "optim.label_smoothing=0.1: expected 0.0"),
        ({"model__stem": "cifar", "model__depth": 20}, "expected stem imagenet or deep"),
        ({"model__output_stride": 16}, "model.output_stride=16"),
        ({"detection__anchors": (8, 16)}, "expected 5 sides"),
        ({"detection__anchors": (8, 16, 12, 64, 128)}, "no smaller than"),
        ({"detection__proposals": (8,)}, "detection.proposals=(8,): expected two whole numbers"),
        ({"detection__sides": (256,)}, "expected whole numbers from 1 to detection.longer=128"),
        ({"detection__network": "c4"}, "with detection.network=c4 expected the last of"),
        (
            {"detection__network": "c4", "detection__anchors": (256, 512)},
            "model.frozen_bn=False: expected no masks, and frozen_bn=True",
        ),
        (
            {"detection__ratios": (1.0, 0.0)},
            "detection.ratios=(1.0, 0.0): expected numbers above 0",
        ),
        ({"detection__max_objects": 0}, "detection.max_objects=0: expected a number"),
        ({"detection__frozen_stages": 6}, "detection.frozen_stages=6"),
        ({"eval__protocol": "10crop"}, "eval.protocol='10crop': expected 'center'"),
        ({"eval__protocol": "multiscale", "eval__scales": (96, 0)}, "eval.scales=(96, 0)"),
        (
            {"task": "classification", "eval__refine_boxes": True},
            "eval.refine_boxes=True: expected False with task=classification",
        ),
    ],
)
def test_what_cannot_work_is_refused_by_name(fields, message):
    with pytest.raises(UserError) as error:
        check(make_config(**fields), devices=2)
    assert message in str(error.value)
    check(make_config(), devices=2)


@pytest.mark.slow
def test_anchors_are_what_the_config_says():
    config = make_config(detection__ratios=(1.0, 3.0), detection__anchors=(8, 9, 16, 32, 64))
    model = detection.create(config, Facts("", VOC, (64, 64, 3), CONSTANTS["imagenet"], 0))
    assert model.anchor_sizes == ((8,), (9,), (16,), (32,), (64,)) and model.ratios == (1, 3)
    rpn = network.variable_shapes(model)["params"]["rpn"]
    assert rpn["scores"]["kernel"].shape == (1, 1, 8, 2) and rpn["deltas"]["bias"].shape == (8,)


PUBLISHED = {  # torchvision's numbers of parameters, without frozen normalisation's
    "coco_r50_fpn": 41_755_286,
    "coco_mask_r50_fpn": 44_401_393,
}


RECIPES = [
    path
    for path in sorted(Path("configs/detection").glob("*.py"))
    if command_line.recipe(str(path)).task != "classification"
]


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_build(path):
    check(command_line.recipe(f"{path}:quick"), devices=2)
    check(config := command_line.recipe(str(path)), devices=1)
    names = VOC if path.stem.startswith("voc") else COCO
    facts = Facts("", names, (64, 64, 3), CONSTANTS["imagenet"], 0)
    learned = task.of(config)
    model, key = learned.create(config, facts), jax.random.key(0)
    params = jax.eval_shape(lambda: learned.init(model, key, facts.image_shape))["params"]
    changes = learned.learned(config)(params)
    assert jax.tree.structure(changes) == jax.tree.structure(params)
    assert all(jax.tree.leaves(changes)) != config.model.frozen_bn
    if path.stem in PUBLISHED:
        flat = traverse_util.flatten_dict(params)
        frozen = {p[:-1] for p in flat if p[-1] == "scale"}
        count = sum(leaf.size for p, leaf in flat.items() if p[:-1] not in frozen)
        assert count == PUBLISHED[path.stem]
