"""What a run writes besides checkpoints: metrics, timings, TensorBoard events, the curve plot.

`metrics.jsonl` holds only what is a function of config and seed, so that an interrupted and an
uninterrupted run leave the same bytes; how long things took stands in `timing.jsonl`.
"""

import contextlib
import json
import os
import time
from pathlib import Path

from tqdm import tqdm

from errors import UserError

METRICS, TIMING, CURVES = "metrics.jsonl", "timing.jsonl", "curves.png"


def read_lines(path):
    """The lines of a log, objects with a step, up to the first that is half-written or damaged.

    Raises:
      UserError: the file is there but cannot be read.
    """
    try:
        text = Path(path).read_text(errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}); use another --workdir.") from error
    lines = []
    for line in text.splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        try:
            fields = json.loads(line)
        except ValueError:
            break
        if not isinstance(fields, dict) or not isinstance(fields.get("step"), int):
            break
        lines.append(fields)
    return lines


def final_line(workdir):
    """The test result of a finished run, or None."""
    finals = [line for line in read_lines(Path(workdir) / METRICS) if line.get("final")]
    return finals[-1] if finals else None


class RunLog:
    """The open logs of a run that continues after `step`; later lines are dropped.

    Only the process with `write=True` changes files. `devices_before` is the number of devices of
    the run so far, None when no line says it.

    Raises:
      UserError: here and in every method, when a file cannot be written.
    """

    def __init__(self, workdir, step, *, tensorboard, write=True):
        self._workdir = Path(workdir)
        self._write = write
        self._files = {}
        self._events = None
        self._masked = {}
        with self._storage_errors():
            kept = {name: self._kept(name, step) for name in (METRICS, TIMING)}
            for line in kept[METRICS]:
                self._remember(line.get("split"), line)
            self.devices_before = kept[TIMING][-1].get("devices") if kept[TIMING] else None
            if not write:
                return
            self._written = {(line["step"], line.get("split")) for line in kept[METRICS]}
            self._files = {name: self._reopen(name, lines) for name, lines in kept.items()}
            if tensorboard:
                self._events = _Events(workdir, step)

    def _kept(self, name, step):
        return [line for line in read_lines(self._workdir / name) if line["step"] <= step]

    def _reopen(self, name, kept):
        path = self._workdir / name
        temporary = path.with_suffix(".tmp")
        with open(temporary, "w") as handle:
            handle.write("".join(json.dumps(line) + "\n" for line in kept))
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
        return open(path, "a")

    def metrics(self, step, split, values, **flags):
        """Appends one line to metrics.jsonl, e.g. `{"step": 100, "split": "train", "loss": …}`.

        A line that the file already has (an interrupted run wrote it) is not written again.
        """
        self._remember(split, values)
        if self._write and (step, split) not in self._written:
            self._line(METRICS, {"step": step, "split": split, **values, **flags})
            self._written.add((step, split))
            self._scalars(split, step, values)

    def _remember(self, split, values):
        self._masked.setdefault(split, set()).update(values.get("masked_records", ()))

    def masked(self, split):
        """Names of the corrupt records in all lines of a split, sorted."""
        return sorted(self._masked.get(split, ()))

    def timing(self, step, values):
        """Appends one line to timing.jsonl."""
        if self._write:
            self._line(TIMING, {"step": step, **values})
            self._scalars("timing", step, values)

    def _line(self, name, fields):
        with self._storage_errors():
            self._files[name].write(json.dumps(fields) + "\n")
            self._files[name].flush()

    def _scalars(self, group, step, values):
        if self._events:
            with self._storage_errors():
                numbers = {name: v for name, v in values.items() if not isinstance(v, list)}
                self._events.add({f"{group}/{name}": v for name, v in numbers.items()}, step)

    def sync(self):
        """Makes the lines so far survive a crash of the machine."""
        with self._storage_errors():
            for handle in self._files.values():
                os.fsync(handle.fileno())

    def close(self):
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

    @contextlib.contextmanager
    def _storage_errors(self):
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._workdir}: the log of the run could not be written ({error}). Free space "
                "or make the folder writable, then run the same command again."
            ) from error


class Clock:
    """Images per second and the share of time spent waiting for data, since the last reading.

    Args:
      batch_size: of the global batch.
      feed: what counts its `wait_seconds`.
    """

    def __init__(self, batch_size, feed):
        self._batch_size, self._feed = batch_size, feed
        self._start, self._steps, self._waited = time.perf_counter(), 0, 0.0
        self._seconds_per_step = 0.0

    def tick(self, steps):
        """Counts steps."""
        self._steps += steps

    def read(self):
        """`{'images_per_second', 'data_wait_fraction'}`; starts anew."""
        now = time.perf_counter()
        seconds = max(now - self._start, 1e-9)
        waited = self._feed.wait_seconds - self._waited
        self._seconds_per_step = seconds / max(self._steps, 1)
        values = {
            "images_per_second": self._steps * self._batch_size / seconds,
            "data_wait_fraction": waited / seconds,
        }
        self._start, self._steps, self._waited = now, 0, self._feed.wait_seconds
        return values

    def left(self, steps):
        """How long so many steps take at the last reading's speed, as 'mm:ss'."""
        return tqdm.format_interval(round(steps * self._seconds_per_step))


class _Events:
    """TensorBoard events, written at once by the caller.

    tensorboardX's own SummaryWriter hands them to a thread, which a full disk ends; ten events
    later the run would wait for that thread for ever.
    """

    def __init__(self, workdir, step):
        from tensorboardX.event_file_writer import EventsWriter  # slow to import
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar

        self._event, self._scalar = event_pb2.Event, scalar
        self._writer = EventsWriter(str(Path(workdir) / "events"))
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


def plot_curves(workdir):
    """Draws top-1 error and loss over steps from metrics.jsonl into `curves.png`.

    As in the paper's figures, thin lines are training and bold lines are held-out images.
    """
    import matplotlib  # slow to import, so only when used

    matplotlib.use("agg")
    from matplotlib import pyplot

    lines = read_lines(Path(workdir) / METRICS)
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    panels = (("top1_error", "top-1 error (%)", 100), ("loss", "cross-entropy", 1))
    styles = {"train": ("C0", 1), "validation": ("C1", 2.5), "test": ("C3", 2.5)}
    for axis, (name, title, unit) in zip(axes, panels, strict=True):
        for split, (colour, width) in styles.items():
            points = [
                (line["step"], unit * line[name])
                for line in lines
                if line.get("split") == split and name in line
            ]
            if points:
                marker = "o" if len(points) == 1 else None
                axis.plot(*zip(*points, strict=True), colour, lw=width, marker=marker, label=split)
        axis.set(xlabel="step", ylabel=title)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend()
    temporary = Path(workdir, CURVES + ".tmp")
    figure.savefig(temporary, dpi=120, format="png")
    temporary.replace(Path(workdir, CURVES))
    pyplot.close(figure)
