"""Small data on a machine that has only what computing needs: no TFDS, no decoders, no tqdm."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import small_sets
from run import logs
from tests.data.test_small_sets import make_set

ROOT = Path(__file__).parents[1]
BARE = Path(__file__).parent / "support" / "bare"


def run(*words):
    """What a command prints on such a machine."""
    path = os.pathsep.join([str(BARE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_packages_are_absent_there():
    code = "import importlib.util as u; print(*map(u.find_spec, ('cv2', 'tqdm', 'grain')))"
    assert run("-c", code).split() == ["None"] * 3


@pytest.mark.slow
def test_digits_train_resume_and_evaluate(tmp_path):
    words = ["main.py", "--config=configs/digits.py:resnet8,quick", f"--workdir={tmp_path}/run"]
    said = run(*words)
    assert "Test accuracy" in said and "step 20/20" in said
    assert "tensorboardX is not installed" in said and "matplotlib is not installed" in said
    assert "nothing to do" in run(*words)
    assert (tmp_path / "run" / "metrics.jsonl").is_file()
    run("main.py", "--mode=evaluate", f"--workdir={tmp_path}/run")
    picture = tmp_path / "grey.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(picture)
    assert "grey.png" in run("predict.py", f"--workdir={tmp_path}/run", picture)


@pytest.mark.slow
def test_a_prepared_set_travels_as_one_file(tmp_path):
    whole = make_set("cifar10", tmp_path / "usb")
    said = run(
        "prepare_data.py", "cifar10", "--from", tmp_path / "usb", "--data_dir", tmp_path / "data"
    )
    assert f"{len(whole['train'].images)} records" in said
    words = ["--config=configs/cifar10.py:resnet8,quick", "--config.batch_size=8"]
    words += ["--config.data.validation_size=2", "--config.eval.batch_size=8"]
    words += [f"--config.data_dir={tmp_path}/data", "--config.model.width=4"]
    assert "Test accuracy" in run("main.py", *words, f"--workdir={tmp_path}/run")
    assert logs.final_line(tmp_path / "run")["images"] == len(whole["test"].images)
    assert small_sets.file_of("cifar10", str(tmp_path / "data")).is_file()
