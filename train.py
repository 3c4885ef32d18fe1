"""The training loop: dispatch steps, log, validate, checkpoint; resume where a run stopped."""

import collections
import contextlib
import logging
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data import corrupt
from data.facts import of_run
from errors import UserError
from input_pipeline import open_data
from models.scanned import stack_blocks, unstack_blocks
from run import logs, processes
from run.agreement import agreed
from run.checkpoint import Checkpoints, checksums
from run.curves import plot_curves
from run.mesh import make_mesh, replicate, to_host
from run.processes import Stop, failures_named
from run.progress import Progress, messages_beside_a_bar
from run.signals import Interrupted, Signals
from run.workdir import Workdir
from training import start, task
from training.check import check, warn_of_devices, warn_of_stem
from training.step import TrainState, Window, abstract_state, make_run

LOG = logging.getLogger("residual")
MAX_SKIPS = 20  # steps with a NaN in a row that end a run although it may skip them
IN_FLIGHT = 2  # dispatches that the host may be ahead of the device


class Diverged(UserError):
    """Loss, gradient or update was not finite, and the run has stopped."""


def train(config: ConfigDict, workdir: str, mesh: Mesh | None = None) -> dict[str, Any]:
    """Trains until `config.num_steps`, continuing what the workdir holds, and tests at the end.

    Args:
      config: complete (`configs.base`).
      workdir: folder of the run; created when missing.
      mesh: devices to use; all by default.

    Returns:
      The test result: `{'loss', 'top1_error', 'top5_error', …}`, errors in [0, 1].

    Raises:
      UserError: the config cannot work or differs from the workdir's; `Diverged` for a NaN.
      Interrupted: SIGINT or SIGTERM arrived; the state has been saved.
    """
    mesh, folder = mesh or make_mesh(), Workdir(workdir)
    check(config, mesh.size)
    config = start.adopted(config, processes.on_first(folder.begun_config))

    def finished():
        folder.claim(config, write=False)
        return logs.final_line(workdir)

    if result := processes.on_first(finished):
        LOG.info("%s is finished; nothing to do.", workdir)
    else:
        if not processes.on_first(folder.committed_steps):
            start.check_weights(config)
        result = _train(config, folder, mesh)
    if jax.process_index() == 0 and not folder.curves.exists():
        plot_curves(folder)
    return result


def _train(config, folder, mesh):
    data, facts = agreed(lambda: _opened(config, mesh), lambda opened: opened[1].to_dict())
    warn_of_stem(config.model.stem, facts.image_shape)
    model = task.of(config).create(config, facts)
    first = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(failures_named())
        # The lock comes before anything is written.
        checkpoints = Checkpoints(folder.path, keep=config.keep_checkpoints)
        stack.callback(checkpoints.close)
        processes.on_first(lambda: start.claim(folder, config, facts))
        state, step, validated = _newest_state(config, model, facts, checkpoints, mesh)
        log = logs.RunLog(folder.path, step, tensorboard=config.tensorboard, write=first)
        stack.callback(log.close)
        held_out = data.split_size("validation")
        log.warn_of_gaps(logs.logged_steps(config, step, held_out, validated))
        for line in log.earlier:
            data.corrupt.remember(line)
        warn_of_devices(config, log.devices_before, mesh.size)
        signals = stack.enter_context(Signals(nothing_to_lose=jax.process_count() == 1))
        loop = _Loop(config, model, data, mesh, folder, checkpoints, log, signals)
        return loop.test(loop.run(state, step, validated))


def _opened(config, mesh):
    """The data and all facts of them."""
    data = open_data(config, mesh)
    if not data.split_size("test"):  # now, and not after the last step
        raise UserError(f"data.test_split={config.data.test_split}: there is no image to test on.")
    return data, of_run(data)


def _newest_state(config, model, facts, checkpoints, mesh):
    """The newest good checkpoint or step 0, its step, whether it was validated.

    On disk the blocks are never stacked.
    """
    scanned = config.model.scan_blocks
    template = abstract_state(config, model, facts.image_shape)
    if scanned:
        template = jax.eval_shape(unstack_blocks, template)
    newest = checkpoints.restore(template)
    if newest is None:
        state = agreed(
            lambda: to_host(start.initial_state(config, model, facts)),
            lambda state: {"initial weights": checksums(state)},
        )
        return replicate(state, mesh), 0, True
    step, state, error = newest
    checkpoints.set_aside(newer_than=step)
    LOG.info("Continuing after step %d.", step)
    state = to_host(stack_blocks(state)) if scanned else state
    return replicate(state, mesh), step, error is not None


class _Loop:
    """One run of the loop; holds what every event needs."""

    def __init__(
        self,
        config: ConfigDict,
        model: nn.Module,
        data: Any,
        mesh: Mesh,
        folder: Workdir,
        checkpoints: Checkpoints,
        log: logs.RunLog,
        signals: Signals,
    ):
        self.config, self.model, self.data, self.mesh = config, model, data, mesh
        self.folder, self.checkpoints, self.log = folder, checkpoints, log
        self.signals, self.task = signals, task.of(config)
        self.has_validation = data.split_size("validation") > 0
        self.stop = Stop(signals, mesh)
        self.skipped = 0  # steps with a NaN since the last good one, to the last line of the log

    def run(self, state: TrainState, step: int, validated: bool) -> TrainState:
        """Trains from `step` to the end; `validated`: the checkpoint of `step` has its error."""
        config = self.config
        run = make_run(config, self.model, self.data, self.mesh)
        order = replicate(self.data.initial_order(), self.mesh)
        feed = self.data.feed(step)
        if self._validates(step) and not validated:  # stopped in the middle of it
            self._events(step, state)
        in_flight: collections.deque[Window] = collections.deque()
        progress = Progress(config.num_steps, step, config.batch_size, feed)
        with progress, messages_beside_a_bar():
            while step < config.num_steps:
                count = self._steps_to_next_event(step)
                state, order, window = run(state, order, next(feed), count)
                self.signals.nothing_to_lose = False
                step += count
                progress.advance(count)
                in_flight.append(window)
                if len(in_flight) > IN_FLIGHT:
                    jax.block_until_ready(in_flight.popleft())
                if step % config.log_every == 0 or step == config.num_steps:
                    in_flight.clear()
                    self._log(step, to_host(window), progress)
                self._events(step, state)
                if signum := self.stop():
                    self._interrupt(step, state, signum)
        return state

    def _steps_to_next_event(self, step):
        """At most `steps_per_dispatch`; the same on every run."""
        c = self.config
        events = [n - step % n for n in (c.log_every, c.checkpoint_every)]
        if self.has_validation:
            events.append(c.eval_every - step % c.eval_every)
        return min(c.steps_per_dispatch, c.num_steps - step, *events)

    def _log(self, step, window, progress):
        self.skipped = 0 if window.steps else self.skipped + int(window.bad_steps)
        self._check(window)
        if window.bad_steps:
            number, loss, norm, rate = window.first_bad
            LOG.warning(
                "%d steps before step %d skipped, first step %d: loss %s, gradient norm %s, "
                "learning rate %s",
                *(window.bad_steps, step, number, loss, norm, rate),
            )
        values = window.summary()
        if window.invalid:
            start = (step - 1) // self.config.log_every * self.config.log_every
            values["masked_records"] = self.data.masked_in_training(start, step)
        self._write_line(step, "train", values)
        if window.invalid:
            self.data.corrupt.check_training()
        self.log.timing(step, progress.show(values) | {"devices": self.mesh.size})

    def _write_line(self, step, split, values, **flags):
        self.data.corrupt.remember({"split": split, **values})
        self.log.metrics(step, split, values, **flags)

    def _check(self, window: Window):
        """The policy for steps with a NaN: stop at the first, or skip up to MAX_SKIPS in a row."""
        if not window.bad_steps:
            return
        step, loss, norm, rate = window.first_bad
        what = (
            f"loss, gradient or update was not finite at step {int(step)}: loss {loss}, "
            f"gradient norm {norm}, learning rate {rate}"
        )
        last = processes.on_first(self.checkpoints.last_good)
        advice = (
            f"The last good checkpoint is {'none yet' if last is None else f'step {last}'}. "
            "Lower optim.learning_rate or set optim.clip_norm"
        )
        if self.config.model.frozen_bn:
            what += (
                "; model.frozen_bn=True normalises with the statistics of init_from, which must "
                "belong to its weights"
            )
        if self.config.optim.on_nonfinite == "stop":
            raise Diverged(f"{what}. {advice}, or skip such steps: optim.on_nonfinite=skip.")
        if self.skipped >= MAX_SKIPS:
            raise Diverged(f"{self.skipped} steps in a row were skipped; {what}. {advice}.")

    def _validates(self, step):
        at_end = step == self.config.num_steps
        return self.has_validation and (step % self.config.eval_every == 0 or at_end)

    def _events(self, step, state):
        c = self.config
        error = None
        if self._validates(step):
            result = self._evaluate(state, "validation")
            if result is None:
                self._interrupt(step, state, self.stop.signum)
            self._write_line(step, "validation", result)
            error = logs.error(result)
            LOG.info("step %d: validation %s", step, self.task.said(result))
        if step % c.checkpoint_every == 0 or step == c.num_steps or error is not None:
            self._save(step, state, error)

    def _interrupt(self, step, state, signum):
        self._save(step, state)
        raise Interrupted(step, signum)

    def _save(self, step, state, error=None):
        self._check(to_host(state.window))
        self.log.sync()
        tree = unstack_blocks(state) if self.config.model.scan_blocks else state
        self.checkpoints.save(step, tree, error)

    def _evaluate(self, state, split):
        """The result on a split, or None when a signal came before its end."""
        variables = state.evaluation_variables()
        return self.task.measure(self.model, variables, self.data, split, self.mesh, self.stop)

    def test(self, state: TrainState) -> dict[str, Any]:
        """The final line of metrics.jsonl: the last weights, every test image once.

        Before it, with `eval.training_images`, a line of the training images as they are.
        """
        self.checkpoints.wait()
        self.signals.nothing_to_lose = jax.process_count() == 1
        if self.config.eval.training_images:
            line = self._tested(state, "train")
            self.log.metrics(self.config.num_steps, logs.TRAINING_IMAGES, line)
        result = self._tested(state, "test")
        network = self.model, state.evaluation_variables()
        result |= self.task.conclude(result, *network, self.data, self.mesh, self.folder)
        result |= self.data.corrupt.of_run(result)
        corrupt.warn_of(result)
        self.log.metrics(self.config.num_steps, "test", result, final=True)
        return result

    def _tested(self, state, split):
        result = self._evaluate(state, split)
        if result is None:
            raise Interrupted(self.config.num_steps, self.stop.signum)
        return result
