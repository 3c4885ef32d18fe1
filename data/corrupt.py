"""Records that cannot be decoded: which ones a run has left out, and when there are too many.

This file is the one owner of what `data.on_corrupt=mask` means for a run: `watch` sees every batch
that the host loads, the loop asks for the names of a window of steps or of a whole split, and what
is said of them in a line of metrics.jsonl is decided here.
"""

import itertools
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from errors import UserError
from run.processes import gathered

if TYPE_CHECKING:
    from data.stream import HostBatch  # which imports grain, for a second or more

LOG = logging.getLogger("residual")
SHOWN = 20  # names in one message; the files list all


class CorruptRecords:
    """The corrupt records of a run, over all its processes and restarts.

    Args:
      fraction: of a split's records that may be corrupt (`data.max_corrupt_fraction`).
      split_size: number of records of 'train', 'validation' or 'test'.
    """

    def __init__(self, fraction: float, split_size: Callable[[str], int]):
        self._fraction, self._split_size = fraction, split_size
        self._met: dict[str, set[str]] = {}  # split → names, on this process
        self._by_step: dict[int, Collection[str]] = {}  # training step → names, on this process
        self._in_log: dict[str, set[str]] = {}  # split → names, on any process, since the start

    def watch(self, split: str, batches: Iterable["HostBatch"]) -> Iterator[dict]:
        """Yields the batches' arrays; remembers and logs what is corrupt in them.

        Raises:
          UserError: this process alone has met more corrupt records than the split may have.
        """
        known = self._met.setdefault(split, set())
        for batch in batches:
            for name in sorted(set(batch.corrupt) - known):
                LOG.warning("Corrupt record, masked: %s", name)
            known.update(batch.corrupt)
            check_share(known, self._split_size(split), self._fraction)
            if batch.corrupt and split == "train":
                self._by_step[batch.step] = batch.corrupt
            yield batch.arrays

    def remember(self, line: Mapping[str, Any]) -> None:
        """Takes note of a line of metrics.jsonl, of this start of the run or an earlier one."""
        names = line.get("masked_records", ())
        self._in_log.setdefault(line.get("split"), set()).update(names)

    def of_steps(self, first: int, last: int, missed: Iterable["HostBatch"]) -> list[str]:
        """Names in the training batches `first` … `last` − 1, on any process.

        Every process makes the same calls, with increasing steps.

        Args:
          missed: those of the batches that were trained on before a restart.
        """
        for batch in missed:
            self._by_step[batch.step] = batch.corrupt
        names = [name for step in range(first, last) for name in self._by_step.pop(step, ())]
        return gathered(names)

    def of_split(self, split: str) -> dict[str, Any]:
        """What the result of testing on `split` says; nothing where all was well.

        Raises:
          UserError: more of the split is corrupt than may be.
        """
        names = gathered(self._met.get(split, ()))
        check_share(names, self._split_size(split), self._fraction)
        return described(names)

    def beside(self, result: dict[str, Any], split: str) -> dict[str, Any]:
        """A result of testing on `split`, with what `of_split` says when `images` are missing.

        Raises:
          UserError: see `of_split`.
        """
        complete = result["images"] == self._split_size(split)
        return result if complete else result | self.of_split(split)

    def check_training(self) -> None:
        """Raises UserError when more of the training split is corrupt than may be.

        Counted are the names of all lines so far, of every process and start of the run.
        """
        check_share(self._in_log.get("train", ()), self._split_size("train"), self._fraction)

    def of_run(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """What the last line of a run says: all that was left out since its first start.

        Args:
          result: of testing, with what `of_split` says of it.
        """
        names = {*itertools.chain(*self._in_log.values()), *result.get("masked_records", ())}
        return described(names)


def described(names: Collection[str]) -> dict[str, Any]:
    """Fields of a line of metrics.jsonl; none when there are no names."""
    return {"masked_images": len(names), "masked_records": sorted(names)} if names else {}


def warn_of(result: Mapping[str, Any]) -> None:
    """Logs what a result says of corrupt records, if anything."""
    if names := result.get("masked_records"):
        listed = ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
        LOG.warning(f"{len(names):,} corrupt records were left out: {listed}")


def check_share(names: Collection[str], records: int, fraction: float) -> None:
    """Raises UserError when more than this share of `records` records is corrupt: `names`."""
    if len(names) > fraction * records:
        raise UserError(
            f"{len(names):,} of {records:,} records are corrupt, more than "
            f"config.data.max_corrupt_fraction={fraction} allows: "
            f"{', '.join(sorted(names)[:10])}; repair or remove them"
        )
