"""The training loop: dispatch steps, log, validate, checkpoint; resume where a run stopped."""

import collections
import contextlib
import logging
import shutil
from math import nan
from pathlib import Path

import jax
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

import evaluate
import input_pipeline
import models
from configs import common
from errors import UserError
from models import scanned as stacking
from run import logs
from run.checkpoint import Checkpoints, to_host
from run.processes import Interrupted, Signals, Stop, failures_named
from run.workdir import claim, saved_config
from training import step as train_step
from weights import door as pretrained

LOG = logging.getLogger("residual")
MAX_SKIPS = 20  # steps with a NaN in a row that end a run although it may skip them
IN_FLIGHT = 2  # dispatches that the host may be ahead of the device


def train(config, workdir, mesh=None):
    """Trains until `config.num_steps`, continuing what the workdir holds, and tests at the end.

    Args:
      config: a complete config (`configs.common.base`).
      workdir: folder of the run; created when missing.
      mesh: devices to use; all by default.

    Returns:
      The test result: `{'loss', 'top1_error', 'top5_error', …}`, errors in [0, 1].

    Raises:
      UserError: the config cannot work, differs from the workdir's, or the loss became NaN.
      Interrupted: SIGINT or SIGTERM arrived; the state has been saved.
    """
    workdir = Path(workdir)
    validate(config)
    mesh = mesh or input_pipeline.make_mesh()
    if config.init_from:
        config = pretrained.adopted(config, saved_config(workdir))
    claim(config, workdir)
    done = logs.final_line(workdir)
    if done:
        LOG.info("%s is finished; nothing to do.", workdir)
        _plot(workdir)
        return done
    data = input_pipeline.open_data(config, mesh)
    if not data.split_size("test"):  # now, and not after the last step
        raise UserError(f"data.test_split={config.data.test_split}: there is no image to test on.")
    model = models.create(config.model, data.facts.num_classes)
    with contextlib.ExitStack() as stack:
        stack.enter_context(failures_named())
        checkpoints = Checkpoints(workdir, keep=config.keep_checkpoints)
        stack.callback(checkpoints.close)
        state, step, validated = _initial_state(config, model, data, checkpoints, mesh)
        first = jax.process_index() == 0
        if first:
            data.facts.save(workdir)
        log = logs.RunLog(workdir, step, tensorboard=config.tensorboard, write=first)
        stack.callback(log.close)
        _warn_of_devices(config, log.devices_before, mesh.size)
        signals = stack.enter_context(Signals(nothing_to_lose=jax.process_count() == 1))
        loop = _Loop(config, model, data, mesh, checkpoints, log, signals)
        result = loop.test(loop.run(state, step, validated))
    _plot(workdir)
    return result


def _warn_of_devices(config, before, now):
    """BN of each device's own images makes the number of devices a part of the training."""
    if before not in (None, now) and not (config.model.sync_bn or config.model.frozen_bn):
        LOG.warning(
            "This run was trained on %d device(s) and goes on with %d: BN now takes its statistics "
            "over %d images instead of %d, and the result will differ. model.sync_bn=True, from "
            "the start of a run, makes it independent of the number of devices.",
            *(before, now, config.batch_size // now, config.batch_size // before),
        )


def _plot(workdir):
    if jax.process_index() == 0 and not (workdir / logs.CURVES).exists():
        try:
            logs.plot_curves(workdir)
        except OSError as error:
            raise UserError(f"{workdir / logs.CURVES}: cannot be written ({error}).") from error


def validate(config):
    """Raises UserError for what cannot run on any data: types, the network, numbers of steps."""
    common.check_types(config)
    models.create(config.model, num_classes=1)  # before the data, which take time to open
    for name in ("num_steps", "steps_per_dispatch", "log_every", "eval_every", "checkpoint_every"):
        if not 1 <= config[name] < 2**31:  # the devices count in 32 bits
            raise UserError(f"{name}={config[name]}: expected a number of steps in 1 … 2³¹ − 1.")
    if not 0 <= config.seed < 2**32:  # JAX would take its lower half
        raise UserError(f"seed={config.seed}: expected 0 … 2³² − 1.")
    if config.keep_checkpoints < 1:
        raise UserError(f"keep_checkpoints={config.keep_checkpoints}: expected at least 1.")
    if config.steps_per_dispatch > 1 and not config.data.resident:
        raise UserError(
            f"steps_per_dispatch={config.steps_per_dispatch}: only device-resident data "
            "(data.resident=True) can run several steps in one dispatch."
        )


def _initial_state(config, model, data, checkpoints, mesh):
    """The newest good checkpoint or step 0, its step, whether it was validated.

    On disk the blocks are never stacked.
    """
    scanned = config.model.scan_blocks

    def start():
        state = train_step.create_state(config, model, data.facts.image_shape)
        if not config.init_from:
            return state
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        variables, notes = pretrained.load_weights(
            config.init_from, config.model, variables, replace_head=config.replace_head
        )
        for note in notes:
            LOG.info(note)
        return train_step.state_from(config, variables)

    template = train_step.abstract_state(config, model, data.facts.image_shape)
    if scanned:
        template = jax.eval_shape(stacking.unstack_blocks, template)
    restored = checkpoints.restore(template)
    if restored is None:
        return input_pipeline.replicate(to_host(start()), mesh), 0, True
    step, state, error = restored
    checkpoints.set_aside(newer_than=step)
    LOG.info("Continuing after step %d.", step)
    state = to_host(stacking.stack_blocks(state)) if scanned else state
    return input_pipeline.replicate(state, mesh), step, error is not None


class _Loop:
    """One run of the loop; holds what every event needs."""

    def __init__(self, config, model, data, mesh, checkpoints, log, signals):
        self.config, self.model, self.data, self.mesh = config, model, data, mesh
        self.checkpoints, self.log, self.signals = checkpoints, log, signals
        self.has_validation = data.split_size("validation") > 0
        self.stop = Stop(signals, mesh)
        self.skipped = 0  # steps with a NaN since the last good one, to the last line of the log

    def run(self, state, step, validated):
        """Trains from `step` to the end; `validated`: the checkpoint of `step` has its error."""
        config = self.config
        run = train_step.make_run(config, self.model, self.data, self.mesh)
        order = input_pipeline.replicate(self.data.initial_order(), self.mesh)
        feed = self.data.feed(step)
        if self._validates(step) and not validated:  # stopped in the middle of it
            self._events(step, state)
        in_flight = collections.deque()
        clock = logs.Clock(config.batch_size, feed)
        # Not tqdm's own way: it shows nothing on a terminal without a size (docker -t, script).
        columns, rows = shutil.get_terminal_size()
        bar = tqdm(
            total=config.num_steps,
            initial=step,
            unit="step",
            disable=None if jax.process_index() == 0 else True,
            ncols=columns,
            nrows=rows,
        )
        with bar, logging_redirect_tqdm():
            while step < config.num_steps:
                count = self._chunk(step)
                state, order, window = run(state, order, next(feed), count)
                self.signals.nothing_to_lose = False
                step += count
                bar.update(count)
                in_flight.append(window)
                if len(in_flight) > IN_FLIGHT:
                    jax.block_until_ready(in_flight.popleft())
                clock.tick(count)
                if step % config.log_every == 0 or step == config.num_steps:
                    in_flight.clear()
                    self._log(step, window, clock, bar)
                self._events(step, state)
                if signum := self.stop():
                    self._interrupt(step, state, signum)
        return state

    def _interrupt(self, step, state, signum):
        self._check(to_host(state.window))
        self._save(step, state)
        raise Interrupted(step, signum)

    def _chunk(self, step):
        """Steps until the next event, at most `steps_per_dispatch`; the same on every run."""
        c = self.config
        events = [n - step % n for n in (c.log_every, c.checkpoint_every)]
        if self.has_validation:
            events.append(c.eval_every - step % c.eval_every)
        return min(c.steps_per_dispatch, c.num_steps - step, *events)

    def _log(self, step, window, clock, bar):
        window = to_host(window)
        self.skipped = 0 if window.steps else self.skipped + int(window.bad_steps)
        self._check(window)
        values = _summary(window)
        if window.bad_steps:
            number, loss, norm, rate = window.first_bad
            LOG.warning(
                "%d steps before step %d skipped, first step %d: loss %s, gradient norm %s, "
                "learning rate %s",
                *(window.bad_steps, step, number, loss, norm, rate),
            )
        if window.invalid:
            start = (step - 1) // self.config.log_every * self.config.log_every
            values["masked_records"] = self.data.masked_in_training(start, step)
        self.log.metrics(step, "train", values)
        if window.invalid:  # over all processes, and since the run's first start
            self.data.check_share("train", self.log.masked("train"))
        speed = clock.read()
        self.log.timing(step, speed | {"devices": self.mesh.size})
        bar.set_postfix_str(
            f"{speed['images_per_second']:.0f} images/s, loss {values.get('loss', nan):.3f}, "
            f"error {100 * values.get('top1_error', nan):.1f} %"
        )
        if bar.disable:
            LOG.info(
                "step %d/%d: loss %.4f, training error %.2f %%, %.0f images/s, %s left",
                step,
                self.config.num_steps,
                values.get("loss", nan),
                100 * values.get("top1_error", nan),
                speed["images_per_second"],
                clock.left(self.config.num_steps - step),
            )

    def _check(self, window):
        """The policy for steps with a NaN: stop at the first, or skip up to MAX_SKIPS in a row."""
        if not window.bad_steps:
            return
        step, loss, norm, rate = window.first_bad
        what = (
            f"loss, gradient or update was not finite at step {int(step)}: loss {loss}, "
            f"gradient norm {norm}, learning rate {rate}"
        )
        last = self.checkpoints.steps()
        advice = (
            f"The last good checkpoint is {f'step {last[-1]}' if last else 'none yet'}. "
            "Lower optim.learning_rate or set optim.clip_norm"
        )
        if self.config.optim.on_nonfinite == "stop":
            raise UserError(f"{what}. {advice}, or skip such steps: optim.on_nonfinite=skip.")
        if self.skipped >= MAX_SKIPS:
            raise UserError(f"{self.skipped} steps in a row were skipped; {what}. {advice}.")

    def _validates(self, step):
        at_end = step == self.config.num_steps
        return self.has_validation and (step % self.config.eval_every == 0 or at_end)

    def _events(self, step, state):
        c = self.config
        error = None
        if self._validates(step):
            try:
                result = self._evaluate(state, "validation")
            except _Stopped as stopped:
                self._interrupt(step, state, stopped.signum)
            self.log.metrics(step, "validation", result)
            error = result["top1_error"]
            LOG.info("step %d: validation error %.2f %%", step, 100 * error)
        if step % c.checkpoint_every == 0 or step == c.num_steps or error is not None:
            self._check(to_host(state.window))
            self._save(step, state, error)

    def _save(self, step, state, error=None):
        self.log.sync()
        tree = stacking.unstack_blocks(state) if self.config.model.scan_blocks else state
        self.checkpoints.save(step, tree, error)

    def _evaluate(self, state, split):
        data = _Stoppable(self.data, self.stop)
        return evaluate.measure(self.model, state.evaluation_variables(), data, split, self.mesh)

    def test(self, state):
        """The final line of metrics.jsonl: the last weights, every test image once."""
        self.checkpoints.wait()
        self.signals.nothing_to_lose = jax.process_count() == 1
        try:
            result = self._evaluate(state, "test")
        except _Stopped as stopped:
            raise Interrupted(self.config.num_steps, stopped.signum) from stopped
        result["accuracy"] = 1 - result["top1_error"]
        masked = {name for split in ("train", "validation") for name in self.log.masked(split)}
        masked = sorted(masked.union(result.get("masked_records", ())))
        if masked:
            result |= {"masked_images": len(masked), "masked_records": masked}
            LOG.warning(evaluate.masked_line(masked))
        self.log.metrics(self.config.num_steps, "test", result, final=True)
        return result


class _Stopped(Exception):
    def __init__(self, signum):
        super().__init__(signum)
        self.signum = signum


class _Stoppable:
    """The data of a run, whose evaluation ends early, as `_Stopped`, when `stop` says so."""

    def __init__(self, data, stop):
        self._data, self._stop = data, stop

    def __getattr__(self, name):
        return getattr(self._data, name)

    def evaluation(self, split):
        for batch in self._data.evaluation(split):
            if signum := self._stop():
                raise _Stopped(signum)
            yield batch


def _summary(window):
    """The values of a training line from the sums of a window; means over the good steps."""
    values = {"learning_rate": float(window.learning_rate)}
    if window.steps:
        values = {
            "loss": float(window.loss) / max(int(window.images), 1),
            "top1_error": int(window.errors) / max(int(window.images), 1),
            **values,
            "gradient_norm": float(window.gradient_norm) / int(window.steps),
        }
    if window.invalid:
        values["masked_images"] = int(window.invalid)
    if window.bad_steps:
        values["skipped_steps"] = int(window.bad_steps)
        values["first_skipped_step"] = int(window.first_bad[0])
    return values
