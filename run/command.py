"""How every command starts and ends.

Exit status: 0 done; 1 an error that the message explains; 2 wrong usage; 128 + signal number when a
signal ended it (SIGINT 130, SIGTERM 143, SIGHUP 129).
"""

import argparse
import contextlib
import html
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from errors import UsageError, UserError
from run import files
from run.signals import HANDLED, Interrupted, set_handlers

LOG = logging.getLogger("residual")
NO_EXCEPTION_IN = ("<frozen importlib", f"{os.sep}jax{os.sep}")  # in the name of a file of code


class Parser(argparse.ArgumentParser):
    """The arguments of one command; keeps the words by which a reader repeats it.

    Args:
      prog: what is typed, e.g. 'python predict.py'.
      description: the module's docstring.
    """

    def __init__(self, prog: str, description: str):
        super().__init__(
            prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> argparse.Namespace:
        """The options, with `command`: the whole command line."""
        words = sys.argv[1:] if args is None else args
        options = super().parse_args(words, namespace)
        options.command = f"{self.prog} {shlex.join(words)}".strip()
        return options

    def _print_message(self, message: str, file: Any = None) -> None:
        """What is wrong with the arguments quotes them, and a shell made some from file names."""
        super()._print_message(printable(message, kept="\n"), file)


def positive(text: str) -> int:
    """An argument that is a whole number ≥ 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: expected a number ≥ 1")
    return value


def share(text: str) -> float:
    """An argument that is a number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{value}: expected a number from 0 to 1")
    return value


def printable(text: str, kept: str = "") -> str:
    """Text from outside (the name of a file, say) as a terminal may have it.

    Control characters, which could move the cursor or set the title, are written as escapes; so is
    what turns the direction of writing. Characters of `kept` stay.
    """
    escaped = (c if c.isprintable() or c in kept else c.encode("unicode_escape") for c in text)
    return "".join(c if isinstance(c, str) else c.decode() for c in escaped)


def in_html(text: Any) -> str:
    """Text from outside as a page may have it, in an attribute as well."""
    return html.escape(printable(str(text)))


class _Output:
    """Standard output in which nothing can reach the terminal but text (`printable`)."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(printable(text, kept="\n\t"))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Printable(logging.Formatter):
    """What is logged may quote names of files and of arrays in them."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), kept="\n\t")


def run(
    main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None
) -> int:
    """Calls a command's `main(argv)`; turns how it ends into a message and an exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # the name of a file can be any bytes
            stream.reconfigure(errors="backslashreplace")
    # `force`: an import may have set a format already.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Printable("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    LOG.setLevel(logging.INFO)
    # While it trains, a run has its own way with signals; elsewhere there is nothing to save.
    before = set_handlers(dict.fromkeys(HANDLED, _end))
    output: Any = _Output(sys.stdout)
    try:
        with contextlib.redirect_stdout(output):
            return main(argv) or 0
    except Interrupted as stopped:
        _say(f"{stopped}; run the same command to continue.")
        return 128 + stopped.signum
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # who reads the output (head, less) has seen enough
        _forget_stdout()
        return 128 + signal.SIGPIPE
    except Exception as error:
        if (said := _explained(error)) is None:
            raise
        print(printable(f"error: {said}", kept="\n"), file=sys.stderr, flush=True)
        if _has_joined():
            from run import agreement

            agreement.part()
            os._exit(1)  # an orderly exit would wait for the others, and they for this one
        return 2 if isinstance(error, UsageError) else 1
    finally:
        set_handlers(before)


def _explained(error):
    """What is said of an error that a user can put right; None for others."""
    if isinstance(error, UserError):
        return str(error)
    of_device = isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    if isinstance(error, MemoryError) or of_device:
        reason = str(error).partition("\n")[0]
        return f"out of memory ({reason}); use a smaller batch_size, eval.batch_size or image"
    return None


def _end(number, frame):
    """Ends the command by an exception, but at once inside an import and inside JAX.

    An import takes it for a module that does not work, and NumPy then ends with SIGSEGV; so does
    JAX's compiler, and its callbacks swallow it.
    """
    while frame:
        if any(part in frame.f_code.co_filename for part in NO_EXCEPTION_IN):
            files.remove_unfinished()
            os._exit(128 + number)
        frame = frame.f_back
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def _say(text):
    """Prints, where there still is a terminal: after a SIGHUP there may be none."""
    try:
        print(text, flush=True)
    except OSError:
        _forget_stdout()


def _forget_stdout():
    """What is still to be printed goes nowhere, so that the end of Python cannot fail on it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _has_joined() -> bool:
    """Whether this process is one of several (`run.processes.join`)."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()
