"""Control-C while a command imports its packages, for seconds: it ends at once, with status 130.

Commands import this first of all, and so do packages of commands. An import would take the usual
KeyboardInterrupt for a module that does not work. `command.run` sees to it from then on.
"""

import _signal  # `signal` itself imports for a while
import os
import sys


def ends_at_once() -> None:
    """From now on Control-C ends this process."""
    _signal.signal(_signal.SIGINT, lambda *_: os._exit(130))


def ends_modules_at_once() -> None:
    """The same, called by a package whose module is being started: `python -m PACKAGE.MODULE`.

    Python imports the package while it looks for the module, and `sys.argv` has no name of it yet.
    """
    if sys.argv[:1] == ["-m"]:
        ends_at_once()
