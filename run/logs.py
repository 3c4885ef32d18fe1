"""What a run writes while it trains: metrics, timings, TensorBoard events.

`metrics.jsonl` holds only what is a function of config and seed, so that an interrupted and an
uninterrupted run leave the same bytes; how long things took stands in `timing.jsonl`. Every line
ends with its checksum, `crc32`. A bucket, which cannot be appended to, gets copies of the files.
"""

import contextlib
import importlib.util
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from errors import UserError
from run import files
from run.workdir import Workdir

LOG = logging.getLogger("residual")
UPLOAD_EVERY_S = 30  # into a bucket; besides, before every checkpoint and at the end
# Where a line break is damaged, so that two lines stand on one.
LOST_BREAK = re.compile(r'(?<=\}).(?=\{"step")', re.DOTALL)


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a log, objects with a step; damaged ones are named and left out.

    A line without an end, as a kill leaves it, is no line yet.

    Raises:
      UserError: the file is there but cannot be read.
    """
    lines, damaged = whole_and_damaged(path)
    for number, _ in damaged:
        LOG.warning("%s: line %d is damaged and left out.", path, number)
    return lines


def whole_and_damaged(path: str | Path) -> tuple[list[dict[str, Any]], list[tuple[int, str]]]:
    """The whole lines of a log, and `(number, text)` of the damaged ones.

    Raises:
      UserError: the file is there but cannot be read.
    """
    try:
        text = files.at(path).read_bytes().decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return [], []
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}); use another --workdir.") from error
    *whole, rest = text.split("\n")
    if _parsed(rest[:-1])[1]:  # only the break at its end is damaged
        whole.append(rest[:-1])
    found = [
        (number, part, *_parsed(part))
        for number, line in enumerate(whole, start=1)
        for part in LOST_BREAK.split(line)
    ]
    # Older code wrote no checksums; a file has them on every line or on none.
    needed = any(had_checksum for *_, had_checksum in found)
    lines, damaged = [], []
    for number, part, fields, had_checksum in found:
        if fields and had_checksum == needed:
            lines.append(fields)
        else:
            damaged.append((number, part))
    return lines, damaged


def _parsed(text):
    """A line's fields, or None when it is damaged, and whether it had a checksum."""
    try:
        fields, had_checksum = files.unsealed(text)
    except ValueError:
        return None, False
    return (fields if _is_line(fields) else None), had_checksum


def _is_line(fields):
    """Whether what the readers of a log use is of its type."""
    names = fields.get("masked_records", [])
    texts = [fields.get("split", ""), *(names if isinstance(names, list) else [names])]
    numbers = [fields.get(name, 0) for name in ("loss", "error", "top1_error", "top5_error")]
    return (
        type(fields.get("step")) is int
        and isinstance(names, list)
        and all(isinstance(text, str) for text in texts)
        and all(isinstance(number, int | float) for number in numbers)
    )


TRAINING_IMAGES = "training images"  # the split of `eval.training_images` in metrics.jsonl


def final_line(workdir: str | Path) -> dict[str, Any] | None:
    """The test result of a finished run, or None."""
    finals = [line for line in read_lines(Workdir(workdir).metrics) if line.get("final")]
    return finals[-1] if finals else None


def error(line: Mapping[str, Any]) -> Any:
    """The error of an evaluation's line: classification's has its own name. None where none is."""
    return line.get("error", line.get("top1_error"))


def logged_steps(
    fields: Mapping[str, Any], step: int, held_out: int = 0, validated: bool = False
) -> dict[str, range]:
    """The steps up to `step` of which metrics.jsonl has a line, by split.

    Args:
      fields: of the run's config.
      step: of the checkpoint from which the run goes on.
      held_out: validation images.
      validated: whether that step itself was.
    """
    every = fields["log_every"]
    steps = {"train": range(every, step + 1, every)}
    if held_out:
        every = fields["eval_every"]
        steps["validation"] = range(every, step + validated, every)
    return steps


def gaps(lines: Sequence[Mapping[str, Any]], expected: Mapping[str, range]) -> list[str]:
    """What is said of lines that metrics.jsonl should have and has not.

    Args:
      lines: what it has.
      expected: the steps that each split's lines must have.
    """
    found = {(line["step"], line.get("split")) for line in lines}
    said = []
    for split, steps in expected.items():
        if missing := [step for step in steps if (step, split) not in found]:
            said.append(
                f"{len(missing)} {split} line(s) are missing, the first of step {missing[0]}"
            )
    return said


class RunLog:
    """The open logs of a run that continues after `step`; later lines are dropped.

    Damaged lines are moved to `<file>.damaged`. Only the process with `write=True` changes files.

    Attributes:
      earlier: the lines of metrics.jsonl up to `step`.
      devices_before: number of devices of the run so far; None when no line says it.

    Raises:
      UserError: here and in every method, when a file cannot be written.
    """

    def __init__(self, workdir: str | Path, step: int, *, tensorboard: bool, write: bool = True):
        self._workdir = Workdir(workdir)
        self._write = write
        self._files: dict[Path, TextIO] = {}
        self._events = None
        self._local = self._workdir
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        if files.is_remote(self._workdir.path) and write:
            self._copy = tempfile.TemporaryDirectory()
            self._local = Workdir(self._copy.name)
        self._uploaded: dict[Path, int] = {}  # by file: its bytes
        self._upload_at = 0.0
        metrics, timing = self._workdir.metrics, self._workdir.timing
        with self._storage_errors():
            found = {path: whole_and_damaged(path) for path in (metrics, timing)}
            kept = {
                path: [line for line in lines if line["step"] <= step]
                for path, (lines, _) in found.items()
            }
            self.earlier = kept[metrics]
            self.devices_before = kept[timing][-1].get("devices") if kept[timing] else None
            if not write:
                return
            self._written = {(line["step"], line.get("split")) for line in self.earlier}
            for path, (_, damaged) in found.items():
                _keep_aside(path, damaged)
            self._files = {
                path: _reopened(self._local.path / path.name, lines) for path, lines in kept.items()
            }
            if tensorboard and not importlib.util.find_spec("tensorboardX"):
                LOG.warning("tensorboardX is not installed: there are no TensorBoard events")
            elif tensorboard:
                self._events = _Events(self._local.events, step)

    def metrics(self, step: int, split: str, values: Mapping[str, Any], **flags: Any) -> None:
        """Appends one line to metrics.jsonl, e.g. `{"step": 100, "split": "train", "loss": …}`.

        A line that the file already has (an interrupted run wrote it) is not written again.
        """
        if self._write and (step, split) not in self._written:
            fields = {"step": step, "split": split, **values, **flags}
            self._line(self._workdir.metrics, fields)
            self._written.add((step, split))
            self._scalars(split, step, values)

    def warn_of_gaps(self, expected: Mapping[str, range]) -> None:
        """Names the lines of metrics.jsonl up to `step` that are not there (`gaps`)."""
        for gap in gaps(self.earlier, expected) if self._write else ():
            LOG.warning("%s: %s; the run goes on without them.", self._workdir.metrics, gap)

    def timing(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one line to timing.jsonl."""
        if self._write:
            self._line(self._workdir.timing, {"step": step, **values})
            self._scalars("timing", step, values)
            if self._copy and time.monotonic() > self._upload_at:
                self.sync()

    def _line(self, path, fields):
        with self._storage_errors():
            self._files[path].write(files.sealed(fields) + "\n")
            self._files[path].flush()

    def _scalars(self, group, step, values):
        if self._events:
            with self._storage_errors():
                numbers = {name: v for name, v in values.items() if not isinstance(v, list)}
                self._events.add({f"{group}/{name}": v for name, v in numbers.items()}, step)

    def sync(self) -> None:
        """Makes the lines so far survive a crash of the machine."""
        with self._storage_errors():
            for handle in self._files.values():
                os.fsync(handle.fileno())
            if self._copy:
                self._upload()

    def _upload(self):
        for path in sorted(self._local.path.iterdir()):
            if self._uploaded.get(path) != (size := path.stat().st_size):
                with files.whole(self._workdir.path / path.name) as temporary:
                    shutil.copyfile(path, temporary)
                self._uploaded[path] = size
        self._upload_at = time.monotonic() + UPLOAD_EVERY_S

    def close(self) -> None:
        """Closes every file."""
        try:
            self.sync()
        finally:
            for handle in self._files.values():
                with contextlib.suppress(OSError):  # what could not be written has been reported
                    handle.close()
            if self._events:
                with contextlib.suppress(OSError):
                    self._events.close()
            if self._copy:
                self._copy.cleanup()

    @contextlib.contextmanager
    def _storage_errors(self):
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._workdir}: the log of the run could not be written ({error}). Free space "
                "or make the folder writable, then run the same command again."
            ) from error


def _keep_aside(path, damaged):
    if not damaged:
        return
    aside = path.with_name(f"{path.name}.damaged")
    before = aside.read_text(encoding="utf-8") if aside.exists() else ""
    with files.whole(aside) as temporary:
        text = before + "".join(f"{text}\n" for _, text in damaged)
        temporary.write_text(text, encoding="utf-8")
    numbers = ", ".join(str(number) for number, _ in damaged)
    LOG.warning("%s: damaged lines, moved to %s: %s.", path, aside, numbers)


def _reopened(path: Path, lines: list[dict[str, Any]]) -> TextIO:
    """A log that holds these lines, open for more."""
    with files.whole(path) as temporary, open(temporary, "w") as handle:
        handle.writelines(files.sealed(line) + "\n" for line in lines)
        handle.flush()
        os.fsync(handle.fileno())
    return open(path, "a")


class _Events:
    """TensorBoard events, written at once by the caller.

    tensorboardX's own SummaryWriter hands them to a thread, which a full disk ends; ten events
    later the run would wait for that thread for ever.
    """

    def __init__(self, prefix, step):
        from tensorboardX.event_file_writer import EventsWriter  # slow to import
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar

        self._event, self._scalar = event_pb2.Event, scalar
        self._writer = EventsWriter(str(prefix))
        # Later steps that an interrupted run wrote are not shown.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.write_event(
            event_pb2.Event(wall_time=time.time(), step=step + 1, session_log=start)
        )

    def add(self, values, step):
        """Writes scalars by tag."""
        for tag, value in values.items():
            self._writer.write_event(
                self._event(wall_time=time.time(), step=step, summary=self._scalar(tag, value))
            )
        self._writer.flush()

    def close(self):
        self._writer.close()
