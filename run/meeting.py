"""The processes of a run meet before JAX joins them.

JAX's own joining aborts a process with a C++ stack when its port is in use or another process does
not come, and does not see that the processes were started with different numbers. So they first
meet here, over the same port: each tells process 0 who it is, and hears whether all is well.
"""

import contextlib
import json
import os
import socket
import time
from typing import Any

from errors import UserError

RETRY_S = 0.2  # between two calls of a process 0 that is not there yet
GREETING_S = 5.0  # a connection that says nothing for so long is none of ours
GRACE_S = 5.0  # so much longer the others wait, to hear from process 0 why it gave up


def meet(address: str, number: int, index: int, limit_s: float) -> None:
    """Returns on every process once all `number` of them have come.

    Args:
      address: host:port of process 0.
      number: of processes (`--num_processes`).
      index: of this one (`--process_id`).
      limit_s: seconds that this may take.

    Raises:
      UserError: on every process that came: one did not come in time, two have the same index,
        their numbers differ, or the port is in use.
    """
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator_address={address}: expected host:port, e.g. node1:1234.")
    deadline = time.monotonic() + limit_s
    if index == 0:
        problem = _receive_all(int(port), number, deadline, limit_s)
    else:
        greeting = {"process_id": index, "num_processes": number}
        target = (host.strip("[]"), int(port))
        problem = _report(target, greeting, deadline, limit_s)
    if problem:
        raise UserError(f"the processes of this run could not be joined: {problem}")


def _receive_all(port, number, deadline, limit_s):
    """Process 0: hears from all others, tells them what is wrong, and returns it."""
    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        server = socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise UserError(
            f"--coordinator_address: port {port} of this machine cannot be used "
            f"({os.strerror(error.errno or 0)}); choose a free one, the same on every process."
        ) from error
    with contextlib.ExitStack() as stack:
        stack.enter_context(server)
        others: dict[int, socket.socket] = {}
        problem = ""
        while len(others) < number - 1 and not problem:
            server.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                connection = stack.enter_context(server.accept()[0])
            except TimeoutError:
                missing = [str(i) for i in range(1, number) if i not in others]
                problem = (
                    f"after {limit_s:g} s, process {', '.join(missing)} of --num_processes="
                    f"{number} had not come; see that each was started, with this address."
                )
                break
            greeting = _heard(connection, GREETING_S)
            if not greeting or "process_id" not in greeting:
                continue  # a stranger
            index = greeting["process_id"]
            problem = _mismatch(greeting, number, others)
            others[-1 if problem else index] = connection
        for connection in others.values():
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps({"problem": problem}).encode() + b"\n")
        for connection in others.values():  # who hangs up first keeps the port busy
            _heard(connection, GREETING_S)
    return problem


def _mismatch(greeting, number, others):
    index, theirs = greeting["process_id"], greeting.get("num_processes")
    if theirs != number:
        return f"--num_processes is {number} on process 0 and {theirs} on process {index}."
    if index in others:
        return f"two processes were started with --process_id={index}."
    return ""


def _report(target, greeting, deadline, limit_s):
    """Another process: tells process 0 that it is there; returns what is wrong."""
    reason = "it did not answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(target, timeout=left) as connection:
                connection.sendall(json.dumps(greeting).encode() + b"\n")
                answer = _heard(connection, left + GRACE_S)
        except OSError as error:
            reason = error.strerror or str(error)
            time.sleep(RETRY_S)
            continue
        if answer is None:
            break
        if "problem" in answer:
            return answer["problem"]
        return "what answers at --coordinator_address is not process 0 of a run; is the port free?"
    return (
        f"process 0 was not reached at --coordinator_address within {limit_s:g} s ({reason}); see "
        f"that it runs there, and that --num_processes={greeting['num_processes']} is right."
    )


def _heard(connection: socket.socket, seconds: float) -> dict[str, Any] | None:
    """A line of JSON from the other side; {} when it is none, None when none came in time."""
    connection.settimeout(seconds)
    try:
        with connection.makefile("rb") as lines:
            message = json.loads(lines.readline(10_000))
    except (TimeoutError, ConnectionError):
        return None
    except (OSError, ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}
