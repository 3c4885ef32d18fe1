"""What the processes of a run must have in common, compared before they compute together."""

import itertools
import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
from jax._src import distributed  # no public name leads to the service by which processes talk
from ml_collections import ConfigDict

from configs import base
from errors import UserError, first_line
from run import provenance
from run.compare import differences
from run.processes import PEER_GONE

Made = TypeVar("Made")

LARGE = 50_000  # characters; of a larger value only the checksum is compared
POLL_MS = 1_000  # so often a signal is looked at while waiting
OF_A_HOST = ("data_dir", "data.num_threads", "data.prefetch")  # fields that may differ
PARTING_MS = 5_000
_rounds = itertools.count()


def agreed(make: Callable[[], Made], describe: Callable[[Made], Mapping[str, Any]]) -> Made:
    """What `make()` returns, when it is described alike on every process of the run.

    Every process makes the same calls. They talk through JAX's coordination service, because the
    collectives of their devices may hang when processes disagree.

    Args:
      make: may raise a UserError, which then is for every process.
      describe: gives fields that JSON can hold.

    Raises:
      UserError: on every process, with the fields that differ.
    """
    service = distributed.global_state
    number, mine = service.num_processes, service.process_id
    if service.client is None or number == 1:
        return make()
    ours: dict[str, Any]
    try:
        made = make()
        fields = {"--num_processes": number, **describe(made)}
        ours = {"fields": {name: _short(value) for name, value in fields.items()}}
    except UserError as error:
        ours = {"refused": f"process {mine} of this run: {error}"}
    text, key = json.dumps(ours), f"residual/agreed/{next(_rounds)}"
    try:
        service.client.key_value_set(f"{key}/{mine}", text)
        for other in range(number):
            theirs = json.loads(_waited_for(service.client, f"{key}/{other}"))
            _compare(mine, json.loads(text), other, theirs)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"{PEER_GONE} ({first_line(error)})") from error
    return made


def _short(value):
    text = json.dumps(value)
    return value if len(text) <= LARGE else f"CRC-32 {zlib.crc32(text.encode()):08x}"


def _waited_for(client, key):
    """The value of a key; a process that dies before it gives one ends this one too, in time."""
    while True:
        try:
            return client.blocking_key_value_get(key, POLL_MS)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def _compare(mine, ours, other, theirs):
    """Raises UserError unless both processes are content and describe the same."""
    for one in (ours, theirs):
        if "refused" in one:
            raise UserError(one["refused"])
    where = (f"on process {mine}", f"on process {other}")
    if found := differences(ours["fields"], theirs["fields"], where):
        raise UserError(
            f"the processes of this run disagree ({'; '.join(found)}). Start each with the same "
            "code, command and data."
        )


def shared_fields(config: ConfigDict) -> dict[str, Any]:
    """The fields of a config that must be the same on every host of a run, by dotted name."""
    fields = base.flatten(base.to_dict(config))
    return {name: value for name, value in fields.items() if name not in OF_A_HOST}


def part() -> None:
    """Before one of several processes ends with an error: lets the others say theirs.

    When process 0 ends, JAX ends the others at once.
    """
    client = distributed.global_state.client
    try:
        client.wait_at_barrier("residual/part", PARTING_MS)
    except RuntimeError:  # the others go on, or have gone
        return


def same_command(mode: str, workdir: str, config: ConfigDict) -> None:
    """Raises UserError on every process unless all do the same with the same code."""
    agreed(
        lambda: None,
        lambda _: (
            {"--mode": mode, "--workdir": workdir}
            | {f"config.{name}": value for name, value in shared_fields(config).items()}
            | provenance.code()
        ),
    )
