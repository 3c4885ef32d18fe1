"""Pretrained weights on a folder of one's own: the sweep, unequal classes, what is confused."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import models
from analysis import class_folders, confusion, transfer
from errors import UserError
from testing import opened_run
from tests.support.reference_weights import write_safetensors
from weights.torchvision import to_torch

NETWORK = ("model.depth=18", "model.width=2", "data.image_size=32", "eval.resize=32")
FIELDS = (*NETWORK, "eval.batch_size=4", "log_every=1")
COUNTS = {"a$b$": 9, "cat": 3, "dog": 2}  # the first would be a formula to matplotlib


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Unequal classes, told apart by their grey, and weights of another number of classes."""
    root = tmp_path_factory.mktemp("transfer")
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for label, (name, count) in enumerate(COUNTS.items()):
            (root / "data" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(80 * label, 80 * label + 60, (40, 48, 3), np.uint8)
                Image.fromarray(pixels).save(root / "data" / split / name / f"{i}.png")
    variables = models.init(models.create({"depth": 18, "width": 2}, 7))
    arrays = to_torch(jax.tree.map(np.asarray, variables))
    write_safetensors(root / "w.safetensors", arrays, {"format": "pt"})
    return root


def command(folder, tmp_path, *more):
    options = [f"--data={folder / 'data'}", f"--init_from={folder / 'w.safetensors'}"]
    options += [f"--runs={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}", "--steps=2"]
    options += ["--batch_size=4", "--held_out=0.2", *(f"--field={field}" for field in FIELDS)]
    return [*options, *more]


def test_the_grid_is_published_rates_for_both_methods():
    assert transfer.RATES == (0.0001, 0.00032, 0.001, 0.0032, 0.01, 0.032, 0.1)


def test_two_folders_from_a_small_set(tmp_path):
    words = ["--dataset=digits", f"--out={tmp_path}", "--source_images=3", "--tested=2"]
    class_folders.main([*words, "--counts", "4", "1"])
    found = {str(p.relative_to(tmp_path)): len(list(p.iterdir())) for p in tmp_path.glob("*/*/*")}
    assert len(found) == 20 and found["source/train/0"] == 3 and found["source/val/7"] == 2
    assert [found[f"target/{where}"] for where in ("train/8", "train/9", "val/9")] == [4, 1, 2]
    assert Image.open(tmp_path / "target/train/9/00000.png").size == (8, 8)
    with pytest.raises(UserError, match="choose another --out"):  # not among those of before
        class_folders.main([*words, "--counts", "3", "1"])
    with pytest.raises(UserError, match="expected at most 8 numbers"):
        class_folders.main([*words, "--counts", *"123456789"])


@pytest.mark.slow
def test_rates_are_tried_the_best_is_chosen_and_shown(folder, tmp_path, capsys):
    words = command(folder, tmp_path, "--rates", "0.001", "1e30", "--methods", "full")
    transfer.main(words)
    content = json.loads((tmp_path / "out" / "transfer.json").read_text())
    runs, classes = content["tables"]
    assert [row[:2] for row in runs["rows"]] == [["full", "0.001"], ["full", "1e+30"]]
    assert [row[-1] for row in runs["rows"]] == ["chosen", "diverged: NaN"]
    assert 0 <= runs["rows"][0][2] <= 100 and runs["rows"][1][2] is None
    assert [row[:3] for row in classes["rows"]] == [["a$b$", 9, 9], ["cat", 3, 3], ["dog", 2, 2]]
    found = content["confusion"]
    assert np.sum(found["matrix"], 1).tolist() == [9, 3, 2]
    assert "largest class has 9 images and the smallest 2" in found["summary"]
    assert f"errs in {100 * 5 / 14:.2f} %" in found["summary"]
    assert {one["name"].rsplit("/", 2)[-2] for one in found["worst"]} <= set(COUNTS)
    picture = Image.open(tmp_path / "out" / "confusion.png")
    assert picture.width > 1000
    printed = capsys.readouterr().out
    assert "chosen by 3 others" in printed and "diverged: NaN" in printed
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("metrics.jsonl")}
    chosen = runs["rows"][0]
    transfer.main(words)  # finished runs are read
    again = json.loads((tmp_path / "out" / "transfer.json").read_text())["tables"][0]["rows"]
    assert again[0] == chosen
    (kept,) = [path for path in before if "0.001" in str(path)]
    assert kept.stat().st_mtime_ns == before[kept]

    workdir = kept.parent
    run = opened_run.load(str(workdir))
    matrix, worst = confusion.measure(run, "test")
    assert matrix.tolist() == found["matrix"] and worst == sorted(worst, key=lambda one: one.own)
    errors = matrix.sum() - np.trace(matrix)
    final = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert errors / matrix.sum() == pytest.approx(final["top1_error"])
    confusion.main([f"--workdir={workdir}", "--split=validation"])
    assert "a$b$: " in capsys.readouterr().out
    held_out = json.loads((workdir / "analysis" / "confusion.json").read_text())
    assert np.sum(held_out["matrix"]) == 3 and held_out["header"]["command"]
    spoilt = run._replace(variables=jax.tree.map(lambda a: a * np.nan, run.variables))
    with pytest.raises(UserError, match="probabilities are not finite"):
        confusion.measure(spoilt, "test")


@pytest.mark.slow
def test_without_weights_it_stops(folder, tmp_path):
    words = command(folder, tmp_path, "--init_from=", "--methods", "probe", "--rates", "0.1")
    with pytest.raises(UserError, match="init_from=''"):
        transfer.main(words)
    assert not list((tmp_path / "runs").glob("*"))
