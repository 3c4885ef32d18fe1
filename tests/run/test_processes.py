"""Several processes: real ones, joined by gloo, as on several machines."""

import json
import shutil
import signal

import jax
import numpy as np
import PIL
import pytest

import train
from benchmarks import faults
from benchmarks.runs import group as runs_of
from configs import digits
from errors import UserError
from run import logs, processes, provenance, result
from run.checkpoint import Checkpoints
from run.mesh import make_mesh
from run.workdir import Workdir
from tests.run.test_meeting import free_port
from tests.support import ilsvrc

OPTIONS = {
    "model.width": 4,
    "batch_size": 32,
    "num_steps": 160,
    "log_every": 10,
    "eval_every": 40,
    "checkpoint_every": 40,
    "tensorboard": False,
    "data.validation_size": 98,
    "optim.ema_decay": 0.9,
}


@pytest.fixture
def options(data_dir):
    """The run of this file, as flags."""
    return OPTIONS | {"data_dir": data_dir}


def config_of(options):
    config = digits.get_config("resnet8,paper")
    config.update_from_flattened_dict(options)
    return config


@pytest.mark.slow
def test_two_processes_stop_at_the_same_step_go_on_and_equal_one_process(options, tmp_path):
    together, alone = tmp_path / "two", tmp_path / "one"
    runs = faults.pair(together, options)
    assert runs[0].wait_until(lambda: faults.last_step(together) >= 10), runs[0].said()
    runs[1].kill(signal.SIGTERM)
    assert [run.wait() for run in runs] == [143, 143], runs[0].said()
    assert Checkpoints(together, read_only=True).steps()[-1] < 160
    runs = faults.pair(together, options)
    assert [run.wait() for run in runs] == [0, 0], runs[0].said()
    assert "Continuing after step" in runs[0].said()
    train.train(config_of(options), alone)  # one process, two devices
    assert faults.differences(together, alone) == []


@pytest.mark.slow
def test_processes_that_disagree_end_before_the_first_step_and_name_the_fields(options, tmp_path):
    flags = (f"--coordinator_address=localhost:{free_port()}", "--num_processes=2")
    runs = [
        faults.Run(tmp_path / "two", options | {"seed": i}, *flags, f"--process_id={i}")
        for i in range(2)
    ]
    assert [run.wait() for run in runs] == [1, 1], runs[0].said()
    said = runs[0].said()  # both write into one file
    assert "disagree (config.seed: 0 on process 0, 1 on process 1)" in said
    assert "disagree (config.seed: 1 on process 1, 0 on process 0)" in said
    assert not (tmp_path / "two").exists()


@pytest.fixture
def images(tmp_path):
    """An image folder: 26 images to train on, 13 to test on, and one of each that is none."""
    for split, number in (("train", 26), ("val", 13)):
        folder = tmp_path / "images" / split / "thing"
        folder.mkdir(parents=True)
        for i in range(number):
            ilsvrc.photograph(i, side=40).save(folder / f"{i}.jpg")
        (folder / "damaged.jpg").write_bytes(b"damaged")
    return tmp_path / "images"


@pytest.mark.slow
def test_streamed_images_on_two_processes_equal_one(images, data_dir, tmp_path):
    """Worker threads, a masked record, a stop and a last batch that leaves process 1 nothing."""
    options = OPTIONS | {
        "data_dir": data_dir,
        "dataset": f"folder:{images}",
        "augment.kind": "random_resized_crop",
        "batch_size": 8,
        "num_steps": 120,
        "log_every": 5,
        "eval_every": 60,
        "data.resident": False,
        "data.image_size": 16,
        "data.normalization": "per_channel",
        "data.test_split": "val",
        "data.validation_size": 2,
        "data.num_threads": 2,
        "data.on_corrupt": "mask",
        "data.max_corrupt_fraction": 0.5,
        "eval.resize": 18,
        "eval.batch_size": 12,
    }
    together, alone = tmp_path / "two", tmp_path / "one"
    env = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla")}
    runs = faults.pair(together, options, env=env)
    assert runs[0].wait_until(lambda: faults.last_step(together) >= 5), runs[0].said()
    runs[0].kill(signal.SIGTERM)
    assert [run.wait() for run in runs] == [143, 143], runs[0].said()
    assert 5 < Checkpoints(together, read_only=True).steps()[-1] < 120
    runs = faults.pair(together, options, env=env)
    assert [run.wait() for run in runs] == [0, 0], runs[0].said()
    final = train.train(config_of(options), alone)
    assert faults.differences(together, alone) == []
    assert final["images"] == 13
    assert final["masked_records"] == ["train/thing/damaged.jpg", "val/thing/damaged.jpg"]


@pytest.mark.slow
def test_the_peer_of_a_dead_process_ends_with_a_message(options, tmp_path):
    """One peer is killed, one hangs, in two runs at once: both are waited for as long."""
    options |= {"num_steps": 100_000}
    pairs = {s: faults.pair(tmp_path / s.name, options) for s in (signal.SIGKILL, signal.SIGSTOP)}
    for signum, (first, other) in pairs.items():
        assert first.wait_until(lambda run=first: faults.last_step(run.workdir) >= 10), first.said()
        other.kill(signum)
    for first, other in pairs.values():
        status = first.wait(processes.HEARTBEAT_TIMEOUT_S + 60)
        other.kill()
        assert status == 1, first.said()
        assert "another process of this run has ended" in first.said()


@pytest.mark.slow
def test_four_processes_of_two_devices_stop_go_on_and_are_evaluated(options, tmp_path):
    """Against one process of eight: the same images, keys and BN groups, sums in another order."""
    options |= {"num_steps": 20, "log_every": 1, "checkpoint_every": 10, "eval_every": 10}
    options |= {"optim.ema_decay": 0.0}
    together, alone = tmp_path / "four", tmp_path / "one"
    env = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla")}
    one = faults.Run(alone, options, devices=8, env=env)
    runs = runs_of(together, options, 4, devices=2, env=env)
    assert runs[0].wait_until(lambda: faults.last_step(together) >= 2), runs[0].said()
    runs[3].kill(signal.SIGTERM)
    assert [run.wait() for run in runs] == [143] * 4, runs[0].said()
    assert Checkpoints(together, read_only=True).steps()[-1] < 20
    runs = runs_of(together, options, 4, devices=2, env=env)
    assert [run.wait() for run in runs] == [0] * 4, runs[0].said()
    assert "Continuing after step" in runs[0].said()
    one.finish()
    ours, theirs = (logs.read_lines(folder / "metrics.jsonl") for folder in (together, alone))
    assert [(a["step"], a["split"]) for a in ours] == [(b["step"], b["split"]) for b in theirs]
    assert ours[0]["top1_error"] == theirs[0]["top1_error"]
    for name in ("loss", "gradient_norm"):
        assert ours[0][name] == pytest.approx(theirs[0][name], rel=1e-6)
    assert ours[4]["loss"] == pytest.approx(theirs[4]["loss"], rel=1e-3)
    assert ours[-1]["images"] == theirs[-1]["images"] == 899
    runs = runs_of(together, options, 2, "--mode=evaluate", devices=4, env=env)
    assert [run.wait() for run in runs] == [0] * 2, runs[0].said()
    found = json.loads((together / "evaluation.json").read_text())
    assert found["top1_error"] == ours[-1]["top1_error"]


def test_processes_compare_flags_of_the_compiler_and_versions_of_decoders(monkeypatch):
    jax.devices()  # reads the flags, once
    of_a_host = "--xla_dump_to=x --xla_force_host_platform_device_count=2"
    monkeypatch.setenv("XLA_FLAGS", f"--b {of_a_host} --a=1")
    code = provenance.code()
    assert code["XLA_FLAGS"] == ["--a=1", "--b"] and code["pillow"] == PIL.__version__
    args = result.parser("a", "").parse_args([])
    assert ", XLA_FLAGS --a=1 --b" in result.header_lines(result.header(args))[1]
    monkeypatch.setenv("XLA_FLAGS", of_a_host)
    assert "XLA_FLAGS" not in str(result.header(args))


def test_what_the_first_process_sends_is_few_large_buffers_of_the_same_bits(monkeypatch):
    kinds = ("float32", "bfloat16", "int32", "uint8", "bool")
    arrays = {f"{k}{i}": np.full((i, 3), -0.0).astype(k) for k in kinds for i in range(40)}
    arrays |= {"nan": np.array(np.uint32(0x7FC00123)).view(np.float32), "count": np.int64(2**40)}
    sent = []

    def broadcast(value):
        sent.append(np.asarray(value).nbytes)
        return value

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "BROADCAST_BYTES", 1000)
    monkeypatch.setattr(processes.multihost_utils, "broadcast_one_to_all", broadcast)
    received, facts = processes.from_first(lambda: (arrays, [7, None]))
    total = sum(np.asarray(array).nbytes for array in arrays.values())
    assert len(sent) == 2 + -(-total // 1000)  # two tell what comes
    assert facts == [7, None]
    assert list(received) == list(arrays)
    for name, array in received.items():
        assert array.dtype == arrays[name].dtype and array.shape == arrays[name].shape
        assert array.tobytes() == np.asarray(arrays[name]).tobytes()


@pytest.fixture(scope="module")
def half_way(data_dir, tmp_path_factory):
    """A run on two devices, and a copy of it as it was after half of its steps."""
    options = OPTIONS | {"data_dir": data_dir, "model.sync_bn": True}
    options |= {"num_steps": 8, "checkpoint_every": 4, "log_every": 2, "data.validation_size": 0}
    whole = tmp_path_factory.mktemp("whole")
    train.train(config_of(options), whole)
    half = shutil.copytree(whole, tmp_path_factory.mktemp("half") / "run")
    shutil.rmtree(half / "checkpoints" / "8")
    lines = [line for line in logs.read_lines(half / "metrics.jsonl") if line["step"] <= 4]
    (half / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return options, whole, half


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_a_checkpoint_goes_on_with_another_number_of_devices(half_way, tmp_path, devices, caplog):
    """With BN over all devices the numbers are the same up to the order of sums."""
    options, whole, half = half_way
    workdir = shutil.copytree(half, tmp_path / "run")
    if devices == 1:
        train.train(config_of(options), workdir, make_mesh(jax.devices()[:1]))
    else:
        run = faults.Run(workdir, options, devices=devices)
        assert run.wait() == 0, run.said()
    pairs = zip(*(logs.read_lines(w / "metrics.jsonl") for w in (workdir, whole)), strict=True)
    for found, expected in pairs:
        assert (found["step"], found["split"]) == (expected["step"], expected["split"])
        np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-3)
    assert "goes on with" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("group", [64, 16])
def test_another_number_of_images_in_bns_statistics_is_warned_of(half_way, tmp_path, caplog, group):
    options, _, half = half_way
    workdir = shutil.copytree(half, tmp_path / "run")
    folder = Workdir(workdir)
    changed = folder.read(folder.config)
    changed["model"].update(sync_bn=False, bn_group_size=group)
    folder.write(folder.config, changed)
    config = config_of(options | {"model.sync_bn": False, "model.bn_group_size": group})
    train.train(config, workdir, make_mesh(jax.devices()[:1]))
    warned = "trained on 2 device(s) and goes on with 1" in caplog.text
    assert warned == ("over 32 images instead of 16" in caplog.text) == (group == 64)


# ---- Flags and environments


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("", 2, 0), "without --coordinator_address"),
        (("localhost", 2, 0), "expected host:port"),
        (("localhost:1", 2, 2), "--process_id=2 with --num_processes=2"),
        (("localhost:1", 2, -1), "--process_id=-1"),
        (("localhost:1", 0, 0), "--num_processes=0"),
        (("localhost:1", 2, 0, False, ["x"]), "--local_device_ids=x: expected numbers"),
        (("localhost:1", 2, 0, False, ["-1"]), "--local_device_ids=-1: expected numbers"),
        (("localhost:1", 2, 0, False, ["0", "0"]), "each once"),
        (("", 0, -1, False, ["0"]), "only in a run of several processes"),
    ],
)
def test_flags_that_do_not_fit_together_are_refused(flags, named):
    with pytest.raises(UserError, match=named):
        processes.join(*flags)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "8"}, False),  # inside salloc, but not started by srun
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "n1"}, False),
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NODELIST": "n[1-2]"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, True),
    ],
)
def test_a_cluster_is_recognised_by_its_environment(monkeypatch, environment, expected):
    for name in {name for names in processes.CLUSTERS for name in names}:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: joined.append(a))
    monkeypatch.setattr(jax.config, "update", lambda *a: None)
    processes.join()
    assert joined == ([(None, None, None, None)] if expected else [])


def test_local_devices_reach_jax(monkeypatch):
    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: joined.append(a))
    monkeypatch.setattr(jax.config, "update", lambda *a: None)
    monkeypatch.setattr(processes.ctypes.pythonapi, "PyOS_setsig", lambda *a: None)
    monkeypatch.setattr(processes, "meet", lambda *a: None)
    processes.join("localhost:1", 8, 3, local_device_ids=["3"])
    processes.join("localhost:1", 2, 1, local_device_ids=["4", "5"])
    assert joined == [("localhost:1", 8, 3, [3]), ("localhost:1", 2, 1, [4, 5])]
