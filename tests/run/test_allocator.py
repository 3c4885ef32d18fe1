"""What the process frees, it keeps."""

import subprocess
import sys
from pathlib import Path

CODE = """
import resource, threading, numpy as np, allocator
{call}
def fill():
    np.full(2**28, 1, np.uint8)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def fill_in_a_thread():
    thread = threading.Thread(target=fill)
    thread.start()
    thread.join()
for run in (fill, fill_in_a_thread):
    run()
    before = faults()
    run()
    print(faults() - before)
"""


def faults_of_the_second_time(call):
    """Page faults of filling 256 MiB again, in the main thread and in another."""
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(call=call)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(line) for line in done.stdout.split()]


def test_freed_memory_is_kept_for_every_thread():
    assert max(faults_of_the_second_time("allocator.keep_freed_memory()")) < 40
    # What there is to save: 65,536 small pages or 128 large ones.
    assert min(faults_of_the_second_time("")) > 100


def test_main_keeps_it_before_jax_starts_threads_with_heaps_of_their_own():
    started = "import jax, main; main.flags.FLAGS(['main']); main._set_up_jax(); jax.devices()"
    assert max(faults_of_the_second_time(started)) < 40
