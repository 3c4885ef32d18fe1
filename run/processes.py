"""The processes of a run: joining them, what they tell each other, and what ends them together."""

import collections
import contextlib
import ctypes
import json
import logging
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from errors import UserError, first_line
from run.meeting import meet
from run.signals import Signals

LAG = 2  # calls after which processes read each other's signals, so that none waits for another
JOIN_LIMIT_S = 120  # for all processes to come, unless --join_seconds says otherwise
HEARTBEAT_TIMEOUT_S = 60  # after which a process that hangs counts as dead
BROADCAST_BYTES = 2**26  # sent at once: few and large, whatever the arrays are
PEER_GONE = (
    "another process of this run has ended or cannot be reached. Run the same command on every "
    "process again: it continues from the last checkpoint."
)
# The environments from which jax.distributed knows the run: the number of processes, and another
# variable that is only set inside one of them.
CLUSTERS = (
    ("SLURM_NTASKS", "SLURM_STEP_NODELIST"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
)


def in_cluster() -> bool:
    """Whether Slurm (srun) or Open MPI (mpirun) started this process as one of several."""
    return any(int(os.environ.get(n, 1)) > 1 and v in os.environ for n, v in CLUSTERS)


def join(
    coordinator_address: str = "",
    num_processes: int = 0,
    process_id: int = -1,
    multihost: bool = False,
    local_device_ids: Sequence[str] = (),
    limit_s: int = JOIN_LIMIT_S,
) -> None:
    """Makes this process one of a run of several; does nothing for a run of one.

    What is left out comes from the cluster's environment; `multihost` says that there is one that
    JAX itself recognises (a TPU pod slice, Kubernetes). A process that dies ends the others
    within `HEARTBEAT_TIMEOUT_S`.

    Args:
      coordinator_address: host:port of process 0.
      num_processes: of the run.
      process_id: of this process, from 0.
      multihost: see above.
      local_device_ids: the GPUs of this host that this process takes, as the flag has them; all of
        them, or what the cluster says, when empty.
      limit_s: seconds that all processes may take to come.

    Raises:
      UserError: the numbers do not fit together, a process did not come in time, or the port of
        the first is in use.
    """
    several = bool(coordinator_address or in_cluster() or multihost)
    wrong = not all(i.isdecimal() for i in local_device_ids)
    if wrong or len(set(local_device_ids)) < len(local_device_ids):
        raise UserError(
            f"--local_device_ids={','.join(local_device_ids)}: expected numbers of devices of this "
            "host, from 0 and each once, e.g. 0 or 0,1."
        )
    if local_device_ids and not several:
        raise UserError(
            f"--local_device_ids={','.join(local_device_ids)} without --coordinator_address: "
            "expected only in a run of several processes; one process takes all devices, or those "
            "of CUDA_VISIBLE_DEVICES."
        )
    if num_processes > 1 and not coordinator_address and not in_cluster():
        raise UserError(
            f"--num_processes={num_processes} without --coordinator_address: expected host:port of "
            "process 0 (outside Slurm and Open MPI nothing else tells it)."
        )
    if coordinator_address and ":" not in coordinator_address:
        raise UserError(f"--coordinator_address={coordinator_address}: expected host:port.")
    if coordinator_address and not in_cluster() and not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id} with --num_processes={num_processes}: expected a number "
            "from 0 to one below --num_processes, another on each process."
        )
    if not several:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Its own handler would swallow a SIGTERM that comes before `Signals`.
    jax.config.update("jax_enable_preemption_service", False)
    if coordinator_address and process_id >= 0:
        meet(coordinator_address, num_processes, process_id, limit_s)
    ctypes.pythonapi.PyOS_setsig(signal.SIGABRT, _on_abort)
    try:
        jax.distributed.initialize(
            coordinator_address or None,
            num_processes or None,
            process_id if process_id >= 0 else None,
            [int(i) for i in local_device_ids] or None,
            initialization_timeout=limit_s,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the processes of this run could not be joined ({first_line(error)}); see that "
            "process 0 runs at --coordinator_address and that all were started with the same "
            "--num_processes."
        ) from error
    if jax.process_index() > 0:  # one voice is enough
        logging.getLogger("residual").setLevel(logging.WARNING)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(_):
    """Ends an aborting process of several with a message and status 1.

    When heartbeats stop, JAX's coordination client aborts from a thread of its own, while Python
    waits for a collective that will never end; no Python handler of that signal would ever run.
    """
    message = f"\nerror: JAX ended this process (see above): {PEER_GONE}\n"
    os.write(2, message.encode())
    os._exit(1)


def shared_failure(error: Exception) -> bool:
    """Whether an error of JAX says that another process is gone."""
    signs = ("gloo", "nccl", "connection", "coordination", "heartbeat", "unavailable")
    return jax.process_count() > 1 and any(sign in str(error).lower() for sign in signs)


class Stop:
    """Asks whether to stop: the number of the signal, or 0, the same on every process.

    Every process makes the same calls in the same order. On several processes an answer is `LAG`
    calls old, so that asking waits for nothing; on one it is a look at `signals.received`.

    Attributes:
      signum: the last answer.
    """

    def __init__(self, signals: Signals, mesh: Mesh):
        self.signum = 0
        self._signals = signals
        self._pending: collections.deque[jax.Array] = collections.deque()
        self._alone = jax.process_count() == 1
        self._mine = len(mesh.local_devices)
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._largest = jax.jit(
            lambda flags: flags.max(), out_shardings=NamedSharding(mesh, PartitionSpec())
        )

    def __call__(self) -> int:
        self.signum = self._answer()
        return self.signum

    def _answer(self):
        if self._alone:
            return self._signals.received
        flags = np.full(self._mine, self._signals.received, np.int32)
        flags = jax.make_array_from_process_local_data(self._sharding, flags)
        self._pending.append(self._largest(flags))
        if len(self._pending) <= LAG:
            return 0
        return int(self._pending.popleft().addressable_data(0))


def from_first(read: Callable[[], tuple[dict, Any]]) -> tuple[dict, Any]:
    """What `read()` returns on the first process, bit for bit on every process, or its UserError.

    Args:
      read: returns `(arrays, facts)`: a dictionary of NumPy arrays and what JSON can hold.
    """
    if jax.process_count() == 1:
        return read()
    message: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    if jax.process_index() == 0:
        try:
            arrays, facts = read()
            kinds = {name: (str(a.dtype), a.shape) for name, a in arrays.items()}
            message = {"facts": facts, "arrays": kinds}
        except UserError as error:
            message = {"refused": str(error)}
    text = json.dumps(message).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    message = json.loads(_broadcast(text, size))
    if "refused" in message:
        raise UserError(message["refused"])
    kinds = message["arrays"]
    sizes = [np.dtype(dtype).itemsize * int(np.prod(shape)) for dtype, shape in kinds.values()]
    ends = np.cumsum([0, *sizes])
    sent = np.empty(ends[-1], np.uint8)
    for array, start, end in zip(arrays.values(), ends, ends[1:], strict=False):
        sent[start:end] = np.frombuffer(array.tobytes(), np.uint8)
    for start in range(0, sent.size, BROADCAST_BYTES):
        part = sent[start : start + BROADCAST_BYTES]
        part[:] = np.frombuffer(_broadcast(part, part.size), np.uint8)
    return {
        name: np.frombuffer(sent[start:end].tobytes(), dtype).reshape(shape)
        for (name, (dtype, shape)), start, end in zip(kinds.items(), ends, ends[1:], strict=False)
    }, message["facts"]


def on_first(act: Callable[[], Any]) -> Any:
    """Acts on the first process alone; what `act` returns (JSON), or its UserError, is for all."""
    return from_first(lambda: ({}, act()))[1]


def gathered(strings: Iterable[str]) -> list[str]:
    """The strings of every process, sorted and each once: the same list on all of them."""
    if jax.process_count() == 1:
        return sorted(set(strings))
    text = np.frombuffer(json.dumps(sorted(set(strings))).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(text.size))
    texts = multihost_utils.process_allgather(np.pad(text, (0, sizes.max() - text.size)))
    parts = [json.loads(t[:size].tobytes()) for t, size in zip(texts, sizes, strict=True)]
    return sorted({string for part in parts for string in part})


def _broadcast(value, size):
    """The first process's bytes. Summed as bytes and not as floats, so that −0.0 stays −0.0."""
    mine = np.frombuffer(value, np.uint8) if jax.process_index() == 0 else np.zeros(size, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(mine), np.uint8).tobytes()


@contextlib.contextmanager
def failures_named() -> Iterator[None]:
    """Turns an error of JAX that says that another process is gone into a UserError."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not shared_failure(error):
            raise
        raise UserError(f"{PEER_GONE} ({first_line(error)})") from error
