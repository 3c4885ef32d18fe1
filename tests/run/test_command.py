"""How a command ends: its status and what it says."""

import logging
import os
import signal
import threading

import pytest

from errors import UsageError, UserError
from run import command
from run.signals import Interrupted


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


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("depth=21: expected 20"), 1, "error: depth=21: expected 20\n"),
        (UsageError("no such flag"), 2, "error: no such flag\n"),
    ],
)
def test_an_error_of_the_user_is_a_message(capsys, error, status, said):
    assert ends_with(error) == status
    assert capsys.readouterr().err == said


def test_any_other_error_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        ends_with(ZeroDivisionError())


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_a_signal_stopped_says_how_to_continue(capsys, signum, status):
    assert ends_with(Interrupted(7, signum)) == status
    said = capsys.readouterr().out
    assert "step 7" in said and "run the same command" in said


def test_control_c_is_130_without_a_word(capsys):
    assert ends_with(KeyboardInterrupt()) == 130
    assert capsys.readouterr() == ("", "")


def test_sigterm_ends_a_command_that_has_nothing_to_save_and_the_handler_is_put_back():
    before = signal.getsignal(signal.SIGTERM)

    def main(argv):
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(60)

    with pytest.raises(SystemExit) as stopped:
        command.run(main, [])
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before


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
