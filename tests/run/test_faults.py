"""Whole runs under faults: killed, stopped, without space, with NaNs; nothing is lost."""

import os
import shutil
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import input_pipeline
import models
import train
from benchmarks import faults
from configs import digits
from data.resident import Resident
from errors import UserError
from run import logs
from run.checkpoint import Checkpoints, flatten
from run.mesh import make_mesh, replicate, to_host
from run.signals import HANDLED, Interrupted, Signals
from tests.support.waiting import wait_until
from training import step as train_step

# Runs of one program share its compilation, as the runs of main.py do.
pytestmark = pytest.mark.usefixtures("compilation_cache")


# With everything that a checkpoint can hold; also for `faults.Run`, as flags.
OPTIONS = {
    "model.width": 4,
    "batch_size": 32,
    "num_steps": 16,
    "log_every": 2,
    "eval_every": 6,
    "checkpoint_every": 4,
    "tensorboard": False,
    "data.validation_size": 98,
    "optim.ema_decay": 0.9,
    "eval.batch_size": 300,
}


def make_config(data_dir):
    """The digits run of `OPTIONS`."""
    config = digits.get_config("resnet8,paper")
    config.update_from_flattened_dict(OPTIONS | {"data_dir": data_dir})
    return config


@pytest.fixture
def config(data_dir):
    """The digits run of `OPTIONS`."""
    return make_config(data_dir)


@pytest.fixture(scope="module")
def reference(data_dir, compilation_cache, tmp_path_factory):
    """That run without any fault."""
    workdir = tmp_path_factory.mktemp("reference")
    train.train(make_config(data_dir), workdir)
    return workdir


def lines(workdir):
    return logs.read_lines(workdir / "metrics.jsonl")


def send_when(condition, signum):
    """Sends this process a signal as soon as `condition()`."""

    def wait():
        wait_until(condition)
        os.kill(os.getpid(), signum)

    threading.Thread(target=wait, daemon=True).start()


# ---- Kills and signals


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_happened(config, reference, tmp_path):
    """The short form of `python benchmarks/faults.py --kills=50`."""
    workdir = tmp_path / "killed"
    env = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    options = OPTIONS | {"data_dir": config.data_dir}
    run = faults.Run(workdir, options, devices=2, env=env)
    assert run.wait_until(lambda: faults.last_step(workdir) >= 6), run.said()
    run.kill()
    assert run.wait() == -signal.SIGKILL
    assert logs.final_line(workdir) is None
    train.train(config, workdir)
    assert faults.differences(workdir, reference) == []


@pytest.mark.slow
def test_a_signal_stops_after_the_step_and_the_run_continues(config, reference, tmp_path):
    send_when(lambda: len(lines(tmp_path)) >= 1, signal.SIGTERM)
    with pytest.raises(Interrupted, match="SIGTERM") as stopped:
        train.train(config, tmp_path)
    assert stopped.value.signum == signal.SIGTERM
    assert Checkpoints(tmp_path, read_only=True).steps()[-1] == stopped.value.step
    train.train(config, tmp_path)
    assert faults.differences(tmp_path, reference) == []


@pytest.mark.slow
def test_a_signal_during_validation_stops_it_and_it_is_done_again(
    config, reference, tmp_path, monkeypatch
):
    evaluation, of_this_run = Resident.evaluation, []

    class Watched(Signals):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            of_this_run.append(self)

    def interrupted(self, split):
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: of_this_run[0].received)
        yield from evaluation(self, split)

    with monkeypatch.context() as patch:
        patch.setattr(Resident, "evaluation", interrupted)
        patch.setattr(train, "Signals", Watched)
        with pytest.raises(Interrupted) as stopped:
            train.train(config, tmp_path)
    assert stopped.value.step == 6
    assert "validation" not in {line["split"] for line in lines(tmp_path)}
    train.train(config, tmp_path)
    assert faults.differences(tmp_path, reference) == []
    best = [Checkpoints(w, read_only=True).read("best")[1] for w in (tmp_path, reference)]
    assert best[0] == best[1]


@pytest.mark.parametrize(
    ("nothing_to_lose", "signals", "status"),
    [
        (True, ("SIGTERM",), 143),
        (True, ("SIGINT",), 130),
        (True, ("SIGHUP",), 129),
        (False, ("SIGINT", "SIGINT"), 130),
        (False, ("SIGTERM", "SIGINT"), 130),
    ],
)
def test_signals_that_end_the_process_at_once(nothing_to_lose, signals, status):
    child = os.fork()
    if child == 0:  # which the signals end while its main thread is deep in C
        with Signals(nothing_to_lose) as watched:
            for name in signals[:-1]:
                os.kill(os.getpid(), getattr(signal, name))
                wait_until(lambda: watched.received)
            os.kill(os.getpid(), getattr(signal, signals[-1]))
            lock = threading.Lock()
            lock.acquire()
            lock.acquire(timeout=30)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == status


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_only_asks_and_handlers_are_put_back(signum):
    before = [signal.getsignal(n) for n in HANDLED]
    with Signals() as signals:
        os.kill(os.getpid(), signum)
        wait_until(lambda: signals.received)
        assert signals.received == signum
    assert [signal.getsignal(n) for n in HANDLED] == before


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals(nothing_to_lose=True) as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert not signals.received
    finally:
        signal.signal(signal.SIGHUP, before)


# ---- Determinism


@pytest.mark.slow
def test_two_runs_of_200_steps_have_the_same_bits(tiny, tmp_path):
    tiny.update(num_steps=200, log_every=50, checkpoint_every=200, steps_per_dispatch=25)
    for name in ("first", "second"):
        train.train(tiny, tmp_path / name)
        jax.clear_caches()
    assert faults.differences(tmp_path / "first", tmp_path / "second") == []
    assert faults.last_state(tmp_path / "first")[0] == 200


# ---- Storage


@pytest.mark.slow
def test_no_space_left_ends_with_a_message_and_the_run_continues(config, reference, small_disk):
    folder, set_space = small_disk
    config.tensorboard = True
    set_space(400)  # two checkpoints, not three
    with pytest.raises(UserError, match="checkpoint could not be written"):
        train.train(config, folder)
    set_space(2**22)
    train.train(config, folder)
    assert faults.differences(folder, reference) == []


@pytest.mark.slow
@pytest.mark.parametrize("space", [8, 12, 16, 20, 40])
def test_a_disk_that_is_full_from_the_start_ends_with_a_message(config, small_disk, space):
    """Whichever file is the first that does not fit."""
    folder, set_space = small_disk
    set_space(space)
    with pytest.raises(UserError, match=r"be written|cannot be used"):
        train.train(config, folder)


def test_an_unwritable_workdir_is_refused(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written.*choose another --workdir"):
        train.train(config, tmp_path / "file" / "run")


@pytest.mark.slow
def test_a_damaged_last_checkpoint_costs_only_its_steps(config, reference, tmp_path, caplog):
    workdir = shutil.copytree(reference, tmp_path / "damaged")
    for path in (workdir / "checkpoints" / "16").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-1])
    unfinished = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)[:-1]
    (workdir / "metrics.jsonl").write_text("".join(unfinished))
    train.train(config, workdir)
    assert "Using the checkpoint of step 12" in caplog.text
    assert faults.differences(workdir, reference) == []
    assert (workdir / "checkpoints" / "damaged-16").is_dir()


def test_a_finished_run_is_left_alone(config, reference, tmp_path):
    workdir = shutil.copytree(reference, tmp_path / "finished")
    (workdir / "curves.png").unlink()  # as after a kill between the last line and the plot
    result = train.train(config, workdir)
    assert result["images"] == 899
    assert (workdir / "metrics.jsonl").read_bytes() == (reference / "metrics.jsonl").read_bytes()
    assert (workdir / "curves.png").exists()


# ---- Numbers


@pytest.mark.slow
def test_a_nan_stops_the_run_and_names_step_rate_and_norm(tiny, tmp_path):
    tiny.optim.learning_rate = 1e30
    with pytest.raises(
        UserError, match=r"at step 1: loss 2\..*gradient norm 0\..*rate 1\.0.*e\+30"
    ):
        train.train(tiny, tmp_path)
    assert Checkpoints(tmp_path, read_only=True).steps() == []


@pytest.mark.slow
def test_skipping_every_step_stops_too(tiny, tmp_path):
    tiny.optim.update(learning_rate=1e30, on_nonfinite="skip")
    tiny.update(num_steps=60, checkpoint_every=60)
    with pytest.raises(UserError, match="20 steps in a row were skipped"):
        train.train(tiny, tmp_path)
    assert [line["skipped_steps"] for line in lines(tmp_path)] == [4] * 4


class Poisoned:
    """Data whose images are NaN at one step."""

    def __init__(self, data, step):
        self._data, self._step = data, step

    def __getattr__(self, name):
        return getattr(self._data, name)

    def draw(self, order, step, feed):
        order, batch = self._data.draw(order, step, feed)
        poison = jnp.where(step == self._step, jnp.nan, 0.0)
        return order, batch | {"image": batch["image"].astype(jnp.float32) + poison}


@pytest.mark.slow
def test_one_skipped_step_is_named_and_counted_and_the_run_goes_on(
    tiny, tmp_path, monkeypatch, caplog
):
    tiny.optim.on_nonfinite = "skip"
    opened = input_pipeline.open_data
    monkeypatch.setattr(train, "open_data", lambda c, mesh: Poisoned(opened(c, mesh), 5))
    result = train.train(tiny, tmp_path)
    assert np.isfinite(result["loss"]) and result["images"] == 899
    counts = [(line["step"], line.get("skipped_steps")) for line in lines(tmp_path)]
    assert counts == [(4, None), (8, 1), (12, None), (12, None), (12, None)]
    assert lines(tmp_path)[1]["first_skipped_step"] == 6
    assert "first step 6: loss nan, gradient norm nan, learning rate 0.1\n" in caplog.text


@pytest.mark.slow
def test_a_skipped_step_leaves_no_trace(tiny):
    tiny.optim.update(ema_decay=0.9, warmup_until_error=0.5, on_nonfinite="skip")
    mesh = make_mesh()
    data = Poisoned(input_pipeline.open_data(tiny, mesh), 3)
    model = models.create(tiny.model, data.facts.num_classes)
    run = train_step.make_run(tiny, model, data, mesh)
    state = train_step.create_state(tiny, model, data.facts.image_shape)
    state = replicate(to_host(state), mesh)
    order = replicate(data.initial_order(), mesh)
    feed = data.feed(0)
    states = []
    for _ in range(5):
        state, order, _ = run(state, order, next(feed), 1)
        states.append(to_host(state))
    before, bad, after = states[2:]
    changing = {"step", "window"}
    for name, array in flatten(bad).items():
        if name.split(".")[0] not in changing:
            assert np.array_equal(array, flatten(before)[name]), name
    assert bad.window.bad_steps == 1
    step, loss, norm, rate = bad.window.first_bad
    assert step == 4 and np.isnan(loss) and np.isnan(norm) and rate == np.float32(0.01)
    assert not np.array_equal(after.params["head"]["kernel"], bad.params["head"]["kernel"])
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(after.params))
