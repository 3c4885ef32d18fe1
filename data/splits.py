"""The syntax of splits, TFDS's: 'train', 'train[:90%]', 'train[45000:]', 'train+validation[:5]'."""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

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


def cut(split: str, whole: Mapping[str, Sequence[np.ndarray]], name: str) -> tuple[np.ndarray, ...]:
    """The arrays of a split, from those of the whole splits.

    Args:
      whole: by split, arrays with a row for each image.
      name: of the data set, for errors.

    Raises:
      UserError: as `pieces`; or there is no such split, or nothing in it.
    """

    def length(part):
        if part not in whole:
            raise UserError(f"{name}: split {split!r}: there are {', '.join(sorted(whole))}.")
        return len(whole[part][0])

    parts = [
        [array[start:stop] for array in whole[part]] for part, start, stop in pieces(split, length)
    ]
    arrays = tuple(map(np.concatenate, zip(*parts, strict=True)))
    if not len(arrays[0]):
        raise UserError(f"{name}: split {split!r} is empty.")
    return arrays


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
