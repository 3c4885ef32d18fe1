"""torchvision's detectors and segmenters: with the same weights the same boxes, masks and classes.

The stored networks are small (`tests.support.detection_reference`);
`benchmarks.detection_networks` holds the whole ones against torchvision.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import predict
from detection import network
from errors import UserError
from models.ops.norm import BN_EPSILON
from tests.support import detection_reference as reference
from tests.support.reference_weights import write_safetensors

SIZES = reference.SHORTER, reference.LONGER
NAMES = ["background", "cat", "dog", "a\x1b[31mred", "bird", "fish"]


@pytest.fixture(scope="module")
def stored():
    return np.load(reference.FILE)


@pytest.fixture
def written(stored, tmp_path):
    """Writes a stored network's file, with some arrays changed or (None) left out."""

    def write(name, prefix="", rename=str, **changes):
        state = reference.state_dict(stored, name) | changes
        state = {prefix + rename(k): v for k, v in state.items() if v is not None}
        path = tmp_path / f"{name}.safetensors"
        write_safetensors(path, state, {"format": "pt"})
        return str(path)

    return write


@pytest.fixture
def written_with_names(written, tmp_path):
    """The same with names beside, and sizes with which all images lie on one canvas."""

    def write(name):
        said = {"label_names": NAMES, "shorter": SIZES[0], "longer": SIZES[0]}
        (tmp_path / f"{name}.safetensors.json").write_text(json.dumps(said))
        return written(name)

    return write


def opened(path):
    found = network.open_weights(path, *SIZES)
    assert found
    return found[0]


def used(name):
    """The photographs of a stored network, with their numbers."""
    photos = reference.photographs()
    return [(i, photos[i]) for i in reference.NETWORKS[name]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mask_rcnn", "faster_rcnn_v2", "c4"])
def test_detectors_find_what_torchvision_finds(stored, written, name):
    """Boxes, scores, labels and masks; one program for all photographs of a canvas and batch."""
    net, photos = opened(written(name)), used(name)
    before = network.compiled(net.model)._cache_size()
    batch_size = 2 if name == "faster_rcnn_v2" else 1
    results = network.find(net, [photo for _, photo in photos], batch_size)
    for (i, photo), found in zip(photos, results, strict=True):
        boxes = stored[f"{name}/{i}/boxes"]
        assert len(boxes) > 20 and len(set(stored[f"{name}/{i}/labels"])) > 2
        np.testing.assert_array_equal(found.labels, stored[f"{name}/{i}/labels"])
        np.testing.assert_allclose(found.boxes, boxes, atol=1e-3)
        np.testing.assert_allclose(found.scores, stored[f"{name}/{i}/scores"], atol=1e-4)
        if name == "mask_rcnn":
            assert found.masks.shape == (len(boxes), *photo.shape[:2])
            masks = reference.sample(found.masks)
            np.testing.assert_allclose(masks, stored[f"{name}/{i}/masks"], atol=1e-3)
            assert (masks > 0).mean() > 0.05
    assert network.compiled(net.model)._cache_size() - before == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcn", "deeplabv3"])
def test_segmenters_score_as_torchvision(stored, written, name):
    net, photos = opened(written(name)), used(name)
    results = network.segment(net, [photo for _, photo in photos], batch_size=2)
    for (i, _), logits in zip(photos, results, strict=True):
        assert logits.shape[-1] == reference.CLASSES
        expected = stored[f"{name}/{i}/logits"]
        np.testing.assert_allclose(reference.sample(logits), expected, atol=1e-3)


@pytest.mark.slow
def test_the_command_draws_what_it_finds(written_with_names, tmp_path, capsys):
    """With names of a file beside the weights; what a terminal must not have is escaped."""
    path = written_with_names("mask_rcnn")
    photo, absent = tmp_path / "photo.png", tmp_path / "absent.png"
    Image.fromarray(reference.photographs()[0]).save(photo)
    argv = [f"--weights={path}", str(photo), str(absent), f"--picture_dir={tmp_path / 'out'}"]
    assert predict.main([*argv, "--min_score=0.3"]) == 1
    output, errors = capsys.readouterr()
    assert "Mask R-CNN on ResNet-18" in output and "named by the file" in output
    assert "\x1b" not in output and "absent.png" in errors
    (picture,) = (tmp_path / "out").iterdir()
    assert picture.name.endswith("__photo.png.detected.png")
    drawn = np.asarray(Image.open(picture))
    assert drawn.shape == (427, 640, 3)
    assert (drawn != reference.photographs()[0]).any(-1).mean() > 0.01

    assert predict.main([*argv, "--min_score=0.3", "--json"]) == 1
    entry, error = json.loads(capsys.readouterr().out)
    assert "error" in error and entry["picture"] == str(picture)
    scores = [one["score"] for one in entry["detections"]]
    assert scores == sorted(scores, reverse=True) and min(scores) >= 0.3
    assert {one["name"] for one in entry["detections"]} <= set(NAMES[1:])
    assert str(photo) in output and output.count("(") >= len(scores)


@pytest.mark.slow
def test_thin_tiny_grey_transparent_and_16_bit_files_are_images(
    written_with_names, tmp_path, capsys
):
    """Of one picture in several forms the same is found."""
    photo, folder = reference.photographs()[0], tmp_path / "images"
    folder.mkdir()
    grey = np.asarray(Image.fromarray(photo[::4, ::4]).convert("L"))
    forms = {
        "grey": Image.fromarray(grey),
        "grey_16": Image.fromarray(grey.astype(np.uint16) * 256 + 99),
        "grey_rgb": Image.fromarray(np.repeat(grey[..., None], 3, -1)),
        "grey_rgba": Image.fromarray(np.stack([*[grey] * 3, 255 - grey], -1)),
        **{
            f"{width}_{height}": Image.fromarray(photo).resize((width, height))
            for width, height in ((2000, 40), (40, 2000), (3, 3), (1, 1), (1, 2000))
        },
    }
    for name, image in forms.items():
        image.save(folder / f"{name}.png")
    argv = [str(folder), f"--picture_dir={tmp_path / 'out'}", "--json", "--min_score=0.1"]
    assert predict.main([*argv, f"--weights={written_with_names('mask_rcnn')}"]) == 0
    found = {Path(e["image"]).stem: e for e in json.loads(capsys.readouterr().out)}
    assert {*found} == {*forms}
    for name, image in forms.items():
        assert Image.open(found[name]["picture"]).size == image.size
        boxes = np.array([one["box"] for one in found[name]["detections"]])
        assert boxes.size and (boxes >= 0).all() and (boxes <= [*image.size] * 2).all()
        if name.startswith("grey"):
            assert found[name]["detections"] == found["grey"]["detections"]

    thin = str(folder / "1_2000.png")
    assert predict.main([thin, f"--weights={written_with_names('fcn')}"]) == 1
    assert "1_2000.png: an image of 2,000 × 1 is too thin" in capsys.readouterr().err


@pytest.mark.slow
def test_the_stored_numbers_are_torchvisions(stored):
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchvision")
    for name in reference.NETWORKS:
        i, photo = used(name)[0]
        model = reference.network(name).eval()
        state = reference.state_dict(stored, name)
        model.load_state_dict({key: torch.as_tensor(value) for key, value in state.items()})
        with torch.no_grad():
            found = reference.found_by(name, model, photo)
        for key, value in found.items():
            np.testing.assert_allclose(value, stored[f"{name}/{i}/{key}"], atol=1e-3)


# ---- The door


def test_names_of_older_files_and_wrappers_are_read(written):
    older = {
        "rpn.head.conv.0.0.": "rpn.head.conv.",
        **{
            f"roi_heads.mask_head.{i}.0.": f"roi_heads.mask_head.mask_fcn{i + 1}." for i in range(4)
        },
        **{
            f"backbone.fpn.{kind}_blocks.{i}.0.": f"backbone.fpn.{kind}_blocks.{i}."
            for i in range(4)
            for kind in ("inner", "layer")
        },
    }

    def rename(key):
        start = next((old for old in older if key.startswith(old)), "")
        return older.get(start, "") + key.removeprefix(start)

    plain = opened(written("mask_rcnn"))
    for path in (written("mask_rcnn", rename=rename), written("mask_rcnn", "model.module.")):
        jax.tree.map(np.testing.assert_array_equal, opened(path).variables, plain.variables)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "mask_rcnn",
            {"roi_heads.box_predictor.bbox_pred.weight": np.zeros((8, 32), np.float32)},
            "mask_rcnn.safetensors: .*bbox_pred.weight has \\(32, 8\\), expected \\(32, 24\\)",
        ),
        (
            "mask_rcnn",
            {"roi_heads.mask_predictor.conv5_mask.bias": None},
            "1 missing: roi_heads.mask_predictor.conv5_mask.bias",
        ),
        (
            "faster_rcnn_v2",
            {"roi_heads.mask_predictor.mask_fcn_logits.bias": np.zeros(6, np.float32)},
            "1 unknown: roi_heads.mask_predictor.mask_fcn_logits.bias",
        ),
        (
            "faster_rcnn_v2",
            {"roi_heads.keypoint_head.0.weight": np.zeros((2, 2, 3, 3), np.float32)},
            "holds Keypoint R-CNN.*roi_heads.keypoint_head.0.weight",
        ),
        (
            "deeplabv3",
            {"classifier.4.weight": np.zeros((7, 256, 1, 1), np.float32)},
            "deeplabv3.safetensors: .*classifier.4.bias has \\(6,\\), expected \\(7,\\)",
        ),
        ("fcn", {"backbone.layer3.2.bn1.weight": None}, "1 missing: backbone.layer3.2.bn1.weight"),
    ],
)
def test_other_heads_are_named_with_their_arrays(written, name, changes, message):
    with pytest.raises(UserError, match=f"(?s){message}"):
        network.open_weights(written(name, **changes))


def test_a_classifier_is_no_detector(written, stored, tmp_path):
    state = reference.state_dict(stored, "mask_rcnn")
    start = "backbone.body."
    body = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
    body |= {"fc.weight": np.zeros((5, 64), np.float32), "fc.bias": np.zeros(5, np.float32)}
    write_safetensors(tmp_path / "resnet.safetensors", body, {})
    assert network.open_weights(str(tmp_path / "resnet.safetensors")) is None
    with pytest.raises(UserError, match="absent.safetensors: there is no such file"):
        network.open_weights(str(tmp_path / "absent.safetensors"))


def test_frozen_statistics_get_no_epsilon(stored, written):
    """FrozenBatchNorm2d counts no batches; torchvision's published networks have ε = 0 then."""
    state = reference.state_dict(stored, "mask_rcnn")
    counters = {k: None for k in state if k.endswith("num_batches_tracked")}
    found, said = network.open_weights(written("mask_rcnn", **counters), *SIZES)
    assert "ε = 0" in said
    key, ours = "backbone.body.layer2.0.bn2", ("backbone", "stage2", "block1", "bn2")
    scale, var = found.variables["params"], found.variables["batch_stats"]
    for name in ours:
        scale, var = scale[name], var[name]
    np.testing.assert_allclose(
        scale["scale"] / np.sqrt(var["var"] + BN_EPSILON),
        state[f"{key}.weight"] / np.sqrt(state[f"{key}.running_var"]),
        rtol=1e-6,
    )


def test_averaged_weights_are_taken_and_what_is_not_finite_is_named(stored, written):
    state, key = reference.state_dict(stored, "fcn"), "classifier.4.bias"
    averaged = {f"ema.{name}": array for name, array in state.items()}
    found, said = network.open_weights(written("fcn", **averaged | {f"ema.{key}": state[key] + 1}))
    np.testing.assert_array_equal(
        found.variables["params"]["classifier"]["logits"]["bias"], state[key] + 1
    )
    assert "averaged weights 'ema' are taken" in said and "finite" not in said
    _, said = network.open_weights(written("fcn", **{key: state[key] * np.nan}))
    assert f"1 arrays are not finite: {key}" in said


def test_names_that_do_not_fit_are_not_taken(written, tmp_path):
    path = written("mask_rcnn")
    beside = tmp_path / "mask_rcnn.safetensors.json"
    beside.write_text(json.dumps({"label_names": NAMES[:3]}))
    found, said = network.open_weights(path)
    assert found.label_names[5] == "class 5" and "3 names do not fit" in said
    assert (found.shorter, found.longer) == (800, 1333)
    beside.write_text("{")
    with pytest.raises(UserError, match="safetensors.json"):
        network.open_weights(path)


@pytest.mark.parametrize("score", ["1.5", "-0.1", "nan"])
def test_a_least_score_is_from_0_to_1(score, capsys):
    with pytest.raises(SystemExit, match="2"):
        predict.main(["--weights=absent.safetensors", "photo.png", f"--min_score={score}"])
    assert "expected a number from 0 to 1" in capsys.readouterr().err
