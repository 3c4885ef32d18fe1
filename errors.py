"""The errors that a user can put right, and how much of another error a message quotes."""


class UserError(Exception):
    """Raised when a config, a file or a flag cannot work.

    The message names the wrong value, what was expected and what to do; every command prints it
    without a traceback and ends with status 1 (`run.command`).
    """


class UsageError(UserError):
    """A wrong flag, or a wrong value of one: status 2."""


def first_line(error: BaseException) -> str:
    """An error's type and the first line of what it says, for a message in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
