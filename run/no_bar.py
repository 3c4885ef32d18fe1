"""What stands in for tqdm's progress bar where tqdm is not installed: nothing is shown."""

from collections.abc import Iterable, Iterator
from typing import Any, TextIO


class NoBar:
    """Counts like a disabled `tqdm`."""

    disable = True

    def __init__(
        self, iterable: Iterable[Any] = (), total: int | None = None, initial: int = 0, **_: Any
    ):
        self._iterable, self.total, self.n = iterable, total, initial

    def __iter__(self) -> Iterator[Any]:
        return iter(self._iterable)

    def __enter__(self) -> "NoBar":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, n: int = 1) -> None:
        """Counts, as a bar that is shown does."""
        self.n += n

    def set_postfix_str(self, text: str) -> None:
        """Nothing to write it on."""

    @staticmethod
    def write(text: str, file: TextIO | None = None) -> None:
        """A line of output, which a bar that is shown would stand below."""
        print(text, file=file)

    @staticmethod
    def format_interval(seconds: float) -> str:
        """Minutes and seconds, '12:05'."""
        minutes, rest = divmod(int(seconds), 60)
        return f"{minutes:02d}:{rest:02d}"
