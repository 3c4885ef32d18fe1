"""How a command ends: its status and what it says."""

import contextlib
import importlib
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import pytest

from errors import UsageError, UserError
from run import command, files
from run.signals import Interrupted

ROOT = Path(__file__).parent.parent.parent


def ends_with(error):
    def main(argv):
        raise error

    return command.run(main, [])


@pytest.fixture(autouse=True)
def logging_as_before():
    """Starting a command sets how lines are logged."""
    root, ours = logging.getLogger(), logging.getLogger("residual")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:], root.level, ours.level = *before[:2], before[2]


def test_what_main_returns_is_the_status():
    seen = []
    assert command.run(seen.append, ["a"]) == 0
    assert seen == [["a"]]
    assert command.run(lambda argv: 1, []) == 1


def test_what_is_printed_cannot_reach_the_terminal(capsys):
    """Names of files and classes come from outside, whichever command prints them."""
    assert command.run(lambda argv: print("cat\x1b]0;title\x07\t\x9bé", flush=True), []) == 0
    assert capsys.readouterr().out == "cat\\x1b]0;title\\x07\t\\x9bé\n"


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("depth=21: expected 20"), 1, "error: depth=21: expected 20\n"),
        (UsageError("no such flag"), 2, "error: no such flag\n"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory, 8 bytes\n\nA table"),
            1,
            "error: out of memory (RESOURCE_EXHAUSTED: Out of memory, 8 bytes); use a smaller "
            "batch_size, eval.batch_size or image\n",
        ),
    ],
)
def test_an_error_of_the_user_is_a_message(capsys, error, status, said):
    assert ends_with(error) == status
    assert capsys.readouterr().err == said


def test_any_other_error_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        ends_with(ZeroDivisionError())


SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.mark.parametrize(("signum", "status"), SIGNALS)
def test_a_run_that_a_signal_stopped_says_how_to_continue(capsys, signum, status):
    assert ends_with(Interrupted(7, signum)) == status
    said = capsys.readouterr().out
    assert "step 7" in said and "run the same command" in said


def test_control_c_is_130_without_a_word(capsys):
    assert ends_with(KeyboardInterrupt()) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("signum", "status"), SIGNALS[1:])
def test_a_signal_ends_a_command_that_has_nothing_to_save_and_the_handler_is_put_back(
    signum, status
):
    before = signal.getsignal(signum)

    def main(argv):
        os.kill(os.getpid(), signum)
        threading.Event().wait(60)

    with pytest.raises(SystemExit) as stopped:
        command.run(main, [])
    assert stopped.value.code == status
    assert signal.getsignal(signum) is before


INTERRUPTED = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"


@pytest.mark.parametrize(
    "words",
    [
        *(["main.py"], ["predict.py"], ["export.py"], ["prepare_data.py"]),
        *(["-m", "paper.report"], ["-m", "analysis.cam"], ["-m", "benchmarks.step_time"]),
    ],
    ids=" ".join,
)
def test_control_c_during_the_imports_of_a_command_is_130_without_a_word(words, tmp_path):
    """Whatever is imported first: at the top of the file, or when the command has begun."""
    for package in ("absl", "flax", "numpy", "safetensors"):
        (tmp_path / f"{package}.py").write_text(INTERRUPTED)
    done = subprocess.run(
        [sys.executable, *words, "x"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_an_importer_keeps_its_own_control_c():
    before = signal.getsignal(signal.SIGINT)
    for package in ("analysis", "benchmarks", "paper"):
        importlib.reload(importlib.import_module(package))
    assert signal.getsignal(signal.SIGINT) is before


def test_wrong_arguments_are_quoted_without_codes(capsys):
    with pytest.raises(SystemExit):
        command.Parser("x", "A test.").parse_args(["--\x1b]0;title\x07", "\x9b2J"])
    assert "\x1b" not in (said := capsys.readouterr().err) and "\\x1b]0;title" in said


def test_control_c_during_an_import_of_a_running_command_ends_it_at_once(tmp_path, monkeypatch):
    """A KeyboardInterrupt there would be taken for a module that does not work."""
    (tmp_path / "interrupted.py").write_text(f"try:\n    {'    '.join(INTERRUPTED.splitlines(1))}"
                                             "except BaseException:\n    pass\n")  # fmt: skip
    monkeypatch.syspath_prepend(tmp_path)

    def main(argv):
        with files.whole(tmp_path / "result") as temporary:
            temporary.write_text("half")
            importlib.import_module("interrupted")

    child = os.fork()
    if child == 0:
        command.run(main, [])
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    assert not list(tmp_path.glob("result*"))


@pytest.mark.parametrize(("signum", "status"), SIGNALS)
def test_a_signal_inside_jax_ends_a_command_at_once(signum, status):
    """Its compiler would end with SIGSEGV, and its callbacks swallow an exception."""

    def main(argv):
        for _ in range(2):  # JAX's tracing calls this code
            with contextlib.suppress(BaseException):
                jax.eval_shape(lambda: os.kill(os.getpid(), signum))

    child = os.fork()
    if child == 0:
        command.run(main, [])
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == status


def test_a_command_that_a_hangup_stopped_ends_well_without_a_terminal(tmp_path):
    """Closing the terminal takes standard output away."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from run import command; "
        "from run.signals import Interrupted\n"
        "def main(argv): raise Interrupted(7, 1)\n"
        "sys.exit(command.run(main))"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program, ROOT],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (129, b"")


def test_a_command_runs_in_a_thread_too():
    status = []
    thread = threading.Thread(target=lambda: status.append(command.run(lambda argv: 3, [])))
    thread.start()
    thread.join()
    assert status == [3]


def test_a_parser_keeps_the_words_that_repeat_it():
    parser = command.Parser("python x.py", "What it does.")
    parser.add_argument("--number", type=command.positive)
    args = parser.parse_args(["--number", "3"])
    assert (args.number, args.command) == (3, "python x.py --number 3")
    for wrong in ("0", "-1", "two"):
        with pytest.raises(SystemExit) as stopped:
            parser.parse_args(["--number", wrong])
        assert stopped.value.code == 2


def test_control_characters_reach_no_terminal(capsys):
    def main(_):
        command.LOG.info("array \x1b[31m of \x9b\ntwo lines")
        raise UserError("file \x1b]0;title\x07, \u202e, café")

    assert command.run(main) == 1
    errors = capsys.readouterr().err
    assert errors == (
        "array \\x1b[31m of \\x9b\ntwo lines\nerror: file \\x1b]0;title\\x07, \\u202e, café\n"
    )


def test_too_little_memory_is_a_message(capsys):
    def main(argv):
        raise MemoryError("Unable to allocate 186. GiB")

    assert command.run(main, []) == 1
    assert "out of memory (Unable to allocate 186. GiB)" in capsys.readouterr().err
