"""The front door as a user meets it: commands, messages, exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def command(tmp_path_factory, data_dir):
    """Runs `python main.py …` in the repository; returns (status, stdout, stderr)."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("xla")),
    }

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "main.py", *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.mark.slow
def test_train_again_change_evaluate(command, data_dir, tmp_path):
    workdir = tmp_path / "run"
    arguments = (
        "--config=configs/digits.py:resnet8,quick",
        f"--config.data_dir={data_dir}",
        f"--workdir={workdir}",
    )
    status, out, err = command(*arguments)
    assert status == 0, err
    assert "Test accuracy" in out and str(workdir) in out
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert all({"step", "split", "loss", "top1_error"} <= set(line) for line in lines)
    assert [line["step"] for line in lines] == [5, 10, 15, 20, 20]
    assert lines[-1]["split"] == "test" and lines[-1]["final"] is True
    assert lines[-1]["images"] == 899
    assert (workdir / "curves.png").stat().st_size > 5_000
    assert list(workdir.glob("events.out.tfevents.*"))
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()) == [
        "10",
        "20",
    ]

    status, out, err = command(*arguments)
    assert status == 0 and "is finished" in err

    status, _, err = command(*arguments, "--config.optim.learning_rate=0.5")
    assert status == 1
    assert "optim.learning_rate: 0.1 there, 0.5 now" in err

    status, out, err = command("--mode=evaluate", f"--workdir={workdir}")
    assert status == 0, err
    assert "899 images" in out
    evaluated = json.loads((workdir / "evaluation.json").read_text())
    assert evaluated["top1_error"] == pytest.approx(lines[-1]["top1_error"])
    assert evaluated["loss"] == pytest.approx(lines[-1]["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--config=configs/digits.py:resnet21"], "6n+2"),
        (["--config=configs/digits.py", "--config.model.shortcut=E"], "'A', 'B', 'C', 'D'"),
        (["--config=configs/digits.py", "--config.model.depht=20"], "depth"),
        (["--config=configs/nothing.py"], "configs/digits.py"),
        (["--config=configs/digits.py:fast"], "'fast'"),
        (["--mode=evaluate", "--workdir=/nonexistent/run"], "config.json"),
        (["--config=configs/digits.py", "--config.batch_size=2.5"], "batch_size"),
    ],
    ids=lambda value: str(value)[-30:],
)
def test_errors_are_messages(command, arguments, named, tmp_path):
    if not any(word.startswith("--workdir") for word in arguments):
        arguments = [*arguments, f"--workdir={tmp_path / 'run'}"]
    status, _, err = command(*arguments)
    assert status == 1
    assert err.startswith("error: ")
    assert named in err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--mode=test"], "train|evaluate|summary"),
        (["--fast"], "'fast'"),
        (["--num_processes=two"], "num_processes"),
        (["more"], "'more'"),
        (["--config"], "config"),
        ([], "--config is missing"),
    ],
    ids=str,
)
def test_wrong_usage_is_status_2(command, arguments, named):
    recipe = [] if named.endswith(("missing", "config")) else ["--config=configs/digits.py"]
    status, _, err = command(*recipe, *arguments)
    assert status == 2, err
    assert err.startswith("error: ")
    assert named in err


@pytest.mark.slow
def test_unprepared_imagenet_says_how_in_two_lines(command, tmp_path):
    status, _, err = command(
        "--config=configs/resnet50.py",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data_dir={tmp_path}",
    )
    assert status == 1
    message = err[err.index("error: ") :].strip().splitlines()
    assert len(message) == 2
    assert "python prepare_data.py imagenet2012" in message[1]


def test_help_lists_modes_and_fields(command):
    status, out, _ = command("--help")
    assert status == 0
    for word in ("--workdir", "evaluate", "--config.model.shortcut", "zero-pad", "130"):
        assert word in out


@pytest.mark.slow
def test_summary_needs_no_data(command, tmp_path):
    status, out, _ = command(
        "--config=configs/resnet50.py", "--mode=summary", f"--config.data_dir={tmp_path}"
    )
    assert status == 0
    assert "25,557,032" in out
