"""Every test runs on two virtual CPU devices with JAX at its strictest."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# The second flag halves the time that compiling takes, and compiling is what tests do most.
UNOPTIMISED = "--xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=2 {UNOPTIMISED}"

import collections
import resource
import shutil
import signal
import subprocess

import jax
import pytest
from absl import flags

from tests.support import buckets, fuzzing

jax.config.update("jax_numpy_rank_promotion", "raise")
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` ignores it, and so would what tests start

# grain reads absl's flags, which pytest never parses.
if not flags.FLAGS.is_parsed():
    flags.FLAGS(["pytest"])


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A TFDS folder shared by the session, so that digits is prepared once."""
    return str(tmp_path_factory.mktemp("tensorflow_datasets"))


@pytest.fixture(scope="module")
def compilation_cache(tmp_path_factory):
    """Runs of one program in a file share its compilation."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture
def tiny(data_dir):
    """A digits config that trains in a second or two: ResNet-8, 4 channels, 12 steps of 32."""
    from configs import digits

    config = digits.get_config("resnet8,paper")
    config.data_dir = data_dir
    config.model.width = 4
    config.update(batch_size=32, num_steps=12, log_every=4, checkpoint_every=4, tensorboard=False)
    config.optim.boundaries = (6, 9)
    config.eval.batch_size = 300
    return config


@pytest.fixture(params=buckets.KINDS)
def bucket(request):
    """The address of an empty bucket, gs://…, of every kind that is at hand."""
    with buckets.bucket(request.param) as address:
        yield address


@pytest.fixture
def small_disk(tmp_path):
    """A folder and what sets its space in KiB: a disk of its own, where mounting is allowed.

    Else a limit on the size of every file, which ends in EFBIG instead of ENOSPC.
    """
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = [shutil.which("mount") or "false", "-t", "tmpfs", "tmpfs", str(folder), "-o"]
    if subprocess.run([*mount, "size=400k"], check=False, capture_output=True).returncode == 0:
        yield folder, lambda size: subprocess.run([*mount, f"remount,size={size}k"], check=True)
        subprocess.run(["umount", str(folder)], check=True)
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        largest = 20_000 if size <= 400 else before[0]
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, before[1]))

    yield folder, limit
    limit(2**22)


# ---- The number of fuzz cases that ran, also when pytest-xdist spreads the tests over processes

FUZZ_CASES = collections.Counter()


def pytest_sessionfinish(session):
    """Adds up this process's cases, or hands them to the process that prints."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["fuzz"] = fuzzing.COUNTED
    else:
        FUZZ_CASES.update(fuzzing.COUNTED)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Adds a worker's cases (pytest-xdist)."""
    FUZZ_CASES.update(getattr(node, "workeroutput", {}).get("fuzz", {}))


def pytest_terminal_summary(terminalreporter):
    """Prints the count when there is one."""
    if FUZZ_CASES.total():
        terminalreporter.write_line(fuzzing.summary(FUZZ_CASES))
