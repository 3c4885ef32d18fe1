"""The one error type for what a user can put right."""


class UserError(ValueError):
    """Raised when a config, a file or a flag cannot work.

    The message names the wrong value, what was expected and what to do; `main.py` and the other
    commands print it without a traceback and exit with status 1.
    """
