"""Prediction: the network's own preprocessing, batches, names, overlays, unreadable files."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import export
import predict
import weights
from configs import command_line
from data import small_sets, transforms
from data.normalization import normalize
from errors import UserError
from models.activation_map import class_activation_map
from run.workdir import Workdir
from testing import opened_run
from tests.support.untrained import make_workdir

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir):
    """A workdir and a folder of digits as files of two formats."""
    from configs import digits

    config = digits.get_config("resnet8,paper")
    config.data_dir = data_dir
    config.model.width = 4
    workdir = make_workdir(config, tmp_path_factory.mktemp("predict") / "run")
    images = small_sets.load("digits", config.data.test_split, data_dir).images[:7]
    folder = workdir.parent / "images"
    (folder / "below").mkdir(parents=True)
    for i, image in enumerate(images):
        name = ["a.png", "b.webp", "below/c.png"][i % 3].replace(".", f"{i}.")
        Image.fromarray(image[..., 0]).save(folder / name, lossless=True)
    return workdir, folder, images


def logits_of(network, images):
    normalized = normalize(images, *network.facts.normalization)
    return network.model.apply(network.variables, normalized, train=False)


@pytest.mark.slow
def test_files_give_the_probabilities_of_their_pixels(run):
    workdir, folder, images = run
    network = opened_run.load(workdir)
    paths = predict.find_images([folder])
    order = [int(path.stem[-1]) for path in paths]
    found = list(predict.predict(network, paths, top_k=3, batch_size=4, with_maps=True))
    logits, endpoints = logits_of(network, images[order])
    probabilities, labels = jax.lax.top_k(jax.nn.softmax(logits), 3)
    np.testing.assert_array_equal([p.labels for p in found], labels)
    np.testing.assert_allclose([p.probabilities for p in found], probabilities, rtol=1e-5)
    # The mean of a class's map and its bias are its logit.
    head = network.variables["params"]["head"]
    maps = class_activation_map(endpoints["stage3"], head["kernel"], labels[:, 0])
    np.testing.assert_allclose([p.activation_map for p in found], maps, rtol=1e-4, atol=1e-5)
    first = np.take_along_axis(np.asarray(logits), np.asarray(labels[:, :1]), axis=1)[:, 0]
    np.testing.assert_allclose(
        maps.mean((1, 2)) + head["bias"][np.asarray(labels[:, 0])], first, rtol=1e-4, atol=1e-5
    )


def test_folders_are_searched_and_empty_ones_named(run, tmp_path):
    _, folder, _ = run
    paths = predict.find_images([folder, folder / "a0.png"])
    assert len(paths) == 8 and paths[-1] == folder / "a0.png"
    assert folder / "below" / "c2.png" in paths
    with pytest.raises(UserError, match="no images in this folder"):
        predict.find_images([tmp_path])


def test_nothing_of_a_folder_is_left_out_in_silence(run, tmp_path, caplog, monkeypatch):
    folder = shutil.copytree(run[1], tmp_path / "images")
    (folder / "linked").symlink_to(run[1] / "below")
    (folder / "up").symlink_to(tmp_path)
    (folder / "itself").symlink_to("itself")
    os.mkfifo(folder / "pipe.jpg")
    found = predict.find_images([folder])
    assert len(found) == len(predict.find_images([run[1]])) + len([*(run[1] / "below").iterdir()])
    assert all(name in caplog.text for name in ("up", "itself", "pipe.jpg"))
    listed = os.scandir

    def scandir(path):
        if Path(path).name == "below":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match="below: cannot be listed .Permission denied"):
        predict.find_images([folder])


def test_large_images_get_the_testing_protocol(run):
    """Streamed networks: shorter side to eval.resize, then the central crop."""
    config = opened_run.load(run[0]).config
    config.data.resident = False
    config.eval.resize = 20
    pixels = np.random.RandomState(0).randint(0, 255, (40, 60, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "png")
    image = predict.preprocess(data.getvalue(), config, (16, 16, 3))
    expected = transforms.resize_and_crop(pixels, resize=20, size=16)
    np.testing.assert_array_equal(image, expected)


def test_command_reports_the_unreadable_and_does_the_rest(run, tmp_path, capsys):
    workdir, folder, _ = run
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff not a jpeg")
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)  # nobody writes to it: reading would wait for ever
    paths = [str(path) for path in (broken, tmp_path / "absent.png", pipe, folder)]
    assert predict.main([f"--workdir={workdir}", *paths, "--json", "--top_k=2"]) == 1
    output, errors = capsys.readouterr()
    found = json.loads(output)
    assert [("error" in entry) for entry in found] == [True] * 3 + [False] * 7
    assert str(broken) in errors and "absent.png" in errors and "3 of 10" in errors
    assert "no regular file" in errors
    predictions = found[3]["predictions"]
    assert len(predictions) == 2 and predictions[0]["probability"] >= predictions[1]["probability"]
    assert predictions[0]["label"] in {str(i) for i in range(10)}


def test_an_image_over_the_limit_is_named_and_the_limit_can_be_raised(run, capsys):
    argv = [f"--workdir={run[0]}", str(run[1] / "a0.png")]
    assert predict.main([*argv, "--max_pixels=63"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "a0.png: an image of 8 × 8, 64 pixels, exceeds the limit of 63" in said
    assert "data.max_pixels" in said and "--max_pixels" in said
    assert predict.main([*argv, "--max_pixels=64"]) == 0


def test_table_and_overlays(run, tmp_path, capsys):
    workdir, folder, _ = run
    image = folder / "a0.png"
    argv = [f"--workdir={workdir}", str(image), "--cam", f"--cam_dir={tmp_path}", "--top_k=99"]
    assert predict.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(str(image)) and len(lines) == 11
    assert sum(float(line.split()[0]) for line in lines[1:]) == pytest.approx(100, abs=0.2)
    (written,) = tmp_path.glob("*.cam.png")
    assert Image.open(written).size == (224, 224)


def test_a_weight_file_predicts_as_its_run_does(run, tmp_path, capsys, monkeypatch):
    workdir, folder, _ = run
    path = tmp_path / "m.safetensors"
    export.export(opened_run.load(workdir), "safetensors", path)
    assert predict.main([f"--weights={path}", str(folder), "--json"]) == 0
    alone, said = capsys.readouterr()
    assert "ResNet-8 of export.py" in said and "central crop 8" in said
    assert predict.main([f"--workdir={workdir}", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(alone)
    read, times = weights.read_safetensors, []
    monkeypatch.setattr(weights, "read_safetensors", lambda path: times.append(path) or read(path))
    assert predict.main([f"--weights={path}", str(folder / "a0.png")]) == 0
    assert times == [path]
    assert capsys.readouterr().out.startswith(str(path))


def test_what_only_detectors_do_is_refused(run, tmp_path):
    Workdir(tmp_path).claim(command_line.recipe("configs/detection/scenes.py:fcn"))
    for option in ("--refine_boxes", "--scales=8,16", f"--ensemble={run[0]}"):
        for folder, learned in ((run[0], "classification"), (tmp_path, "segmentation")):
            message = f"--ensemble are of testing a detector .*, not of {learned}"
            with pytest.raises(UserError, match=message):
                predict.main([f"--workdir={folder}", str(run[1] / "a0.png"), option])


def test_control_characters_of_names_are_escaped(run, tmp_path, capsys):
    workdir, folder, _ = run
    for name in ("a\x1b]0;title\x07.png", "b\x1b[31m.png", "c\u202e.png", "d\x9b.png"):
        (tmp_path / name).write_bytes((folder / "a0.png").read_bytes())
    (tmp_path / "e\x1b[2J.png").write_bytes(b"no image")
    for options in ([], ["--json"]):
        assert predict.main([f"--workdir={workdir}", str(tmp_path), *options]) == 1
        output, errors = capsys.readouterr()
        assert all(c.isprintable() or c == "\n" for c in output)
        assert "\x1b" not in errors.replace("\r", "") and "e\\x1b[2J.png" in errors
    assert [Path(entry["image"]).name[0] for entry in json.loads(output)] == list("abcde")
    assert json.loads(output)[1]["image"].endswith("b\x1b[31m.png")


def test_overlay_is_red_where_the_map_is_high():
    heat = np.array([[0.0, 1.0]], np.float32)
    picture = np.asarray(predict.overlay(np.full((300, 600, 3), 128, np.uint8), heat))
    assert picture.shape == (300, 600, 3)
    assert picture[150, 590, 0] > picture[150, 590, 2]
    assert picture[150, 10, 2] > picture[150, 10, 0]
    flat = predict.overlay(np.zeros((8, 8, 1), np.uint8), np.ones((2, 2), np.float32))
    assert flat.size == (224, 224)


@pytest.mark.slow
def test_exit_codes(tmp_path):
    def status(*arguments):
        command = [sys.executable, "predict.py", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    absent = status(f"--workdir={tmp_path}", "image.png")
    assert absent.returncode == 1 and "config.json" in absent.stderr
    assert "Traceback" not in absent.stderr
    neither = status("image.png")
    assert neither.returncode == 2 and "--weights" in neither.stderr
    wrong = status(f"--workdir={tmp_path}", "--top_k=0", "image.png")
    assert wrong.returncode == 2 and "expected a number" in wrong.stderr
