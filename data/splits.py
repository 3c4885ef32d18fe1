"""The syntax of splits, TFDS's: 'train', 'train[:90%]', 'train[45000:]', 'train+validation[:5]'."""

import re
from collections.abc import Callable

from errors import UserError

_PART = re.compile(r"([\w-]+)(?:\[(-?[\d_.]+)?(%?):(-?[\d_.]+)?(%?)\])?")


def pieces(split: str, length: Callable[[str], int]) -> list[tuple[str, int, int]]:
    """The parts of a split as (name of the whole split, start, stop).

    Percentages are rounded to the nearest image; negative bounds count from the end.

    Args:
      length: images in a whole split, by its name; raises UserError for one that does not exist.

    Raises:
      UserError: another syntax, or a bound beyond the end.
    """
    return [_piece(part.strip(), split, length) for part in split.split("+")]


def _piece(part, split, length):
    match = _PART.fullmatch(part)
    if not match or part.endswith("[:]"):
        raise UserError(
            f"split {split!r}: expected names with slices in images or percent, joined by '+', "
            "e.g. 'train' or 'train[:90%]'"
        )
    name, start, start_unit, stop, stop_unit = match.groups()
    number = length(name)
    percent = bool(start_unit or stop_unit)
    bounds = []
    for text, default in ((start, 0), (stop, number)):
        try:
            value = default if text is None else float(text) if percent else int(text)
        except ValueError as error:
            raise UserError(f"split {split!r}: {text} is no bound of a slice") from error
        if percent and text is not None:
            value = round(value * number / 100)
        if abs(value) > number:
            raise UserError(f"split {split!r}: {text} is beyond the {number} images of {name!r}")
        bounds.append(value + number if value < 0 else value)
    return name, *bounds
