"""What the C library is told, and when: in processes of their own, with a stand-in for it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# One arena for all threads (M_ARENA_MAX), no block of its own for a large one (M_MMAP_MAX), nothing
# handed back to the system (M_TRIM_THRESHOLD): the numbers of malloc.h.
KEPT = [[-8, 1], [-4, 0], [-1, -1]]

STAND_IN = """
import ctypes, json, sys

calls = []

class Glibc:
    def gnu_get_libc_version(self):
        return b"2.39"

    def mallopt(self, option, value):
        calls.append([option, value])
        {at_each_call}
        return 1

class Musl:
    def mallopt(self, option, value):
        calls.append([option, value])

opened = ctypes.CDLL
ctypes.CDLL = lambda name, *args, **kw: {libc}() if name is None else opened(name, *args, **kw)
sys.platform = {platform!r}
{program}
print(json.dumps(calls))
"""
KEEP = "from run import allocator; allocator.keep_freed_memory()"


def told(
    program=KEEP, libc="Glibc", platform="linux", at_each_call="pass", plugins=None, **environment
):
    """The `(option, value)` with which a program has called mallopt, in order.

    Args:
      program: Python code.
      libc: class of the stand-in.
      platform: what Python says that it runs on.
      at_each_call: Python code, run inside of mallopt.
      plugins: a folder with further packages.
      environment: variables; without JAX_PLATFORMS it is not set.
    """
    kept = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    code = STAND_IN.format(program=program, libc=libc, platform=platform, at_each_call=at_each_call)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=kept | environment | ({"PYTHONPATH": str(plugins)} if plugins else {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def plugins(tmp_path):
    """A folder with a package that offers JAX an accelerator, as those for CUDA and ROCm do."""
    info = tmp_path / "accelerator-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: accelerator\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[jax_plugins]\naccelerator = accelerator\n")
    return tmp_path


def test_freed_memory_is_kept_on_a_cpu(plugins):
    assert told(JAX_PLATFORMS="cpu") == KEPT
    assert told(JAX_PLATFORMS="cpu", plugins=plugins) == KEPT


def test_freed_memory_is_kept_where_jax_has_no_accelerator():
    bare = "import importlib.metadata as m, importlib.util as u\n"
    bare += "m.entry_points = lambda **_: ()\nu.find_spec = lambda name: None\n"
    assert told(bare + KEEP) == KEPT


def test_nothing_is_changed_with_an_accelerator(plugins):
    assert told(plugins=plugins) == []
    assert told(JAX_PLATFORMS="cuda") == []
    assert told(JAX_PLATFORMS="cuda,cpu") == []
    (plugins / "libtpu").mkdir()
    (plugins / "libtpu" / "__init__.py").write_text("")
    (plugins / "accelerator-1.0.dist-info" / "entry_points.txt").write_text("")
    assert told(plugins=plugins) == []


def test_nothing_is_changed_in_another_c_library():
    assert told(JAX_PLATFORMS="cpu", libc="Musl") == []
    assert told(JAX_PLATFORMS="cpu", platform="darwin") == []


@pytest.mark.slow
def test_main_keeps_it_before_jax_starts_threads_with_heaps_of_their_own(tmp_path):
    """JAX refuses another number of devices from the moment in which its backend starts."""
    program = (
        "import main\n"
        "main.main(['main.py', '--config=configs/digits.py:resnet8', '--mode=summary',"
        f" {'--config.data_dir=' + str(tmp_path)!r}])\n"
        "jax = sys.modules['jax']\njax.devices()\n"
        "try:\n    jax.config.update('jax_num_cpu_devices', 3)\n"
        "except RuntimeError:\n    pass\n"
        "else:\n    sys.exit('JAX lets the number of devices change: the test would see nothing')"
    )
    early = "sys.modules['jax'].config.update('jax_num_cpu_devices', 1)"
    assert told(program, at_each_call=early, JAX_PLATFORMS="cpu", XLA_FLAGS="") == KEPT
