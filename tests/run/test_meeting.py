"""Processes meet before JAX joins them: all of them, or each says why not within the time."""

import concurrent.futures
import json
import socket
import time

import pytest

from errors import UserError
from run.meeting import meet


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def outcomes(*processes, limit_s=20.0, port=None):
    """What each `(number, index)` ends with: its message, or '' when it may go on."""
    address = f"localhost:{port or free_port()}"

    def one(number, index):
        try:
            meet(address, number, index, limit_s)
        except UserError as error:
            return str(error)
        return ""

    with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(one, *zip(*processes, strict=True)))


def test_all_that_come_go_on_whoever_is_first():
    assert outcomes((1, 0)) == [""]
    assert outcomes((3, 2), (3, 0), (3, 1)) == ["", "", ""]


@pytest.mark.parametrize("numbers", [(2, 3), (3, 2)])
def test_another_number_of_processes_is_named_on_both(numbers):
    first, second = numbers
    said = outcomes((first, 0), (second, 1))
    expected = f"--num_processes is {first} on process 0 and {second} on process 1"
    assert all(expected in text for text in said), said


def test_the_same_id_twice_is_named_by_all():
    said = outcomes((3, 0), (3, 1), (3, 1))
    assert all("two processes were started with --process_id=1" in text for text in said), said


@pytest.mark.slow
def test_who_does_not_come_is_named_by_those_who_did():
    said = outcomes((4, 0), (4, 2), limit_s=1.5)
    expected = "after 1.5 s, process 1, 3 of --num_processes=4 had not come"
    assert all(expected in text for text in said), said


def test_without_process_0_the_others_end_in_time():
    start = time.monotonic()
    (said,) = outcomes((2, 1), limit_s=1.0)
    assert "process 0 was not reached at --coordinator_address within 1 s" in said
    assert time.monotonic() - start < 15


@pytest.mark.parametrize("answer", [b"HTTP/1.0 400 Bad request\r\n", b"[1]\n", b"\xff\n", b""])
def test_a_port_that_is_in_use_is_named_on_every_process(answer):
    with socket.create_server(("localhost", 0)) as other:
        port = other.getsockname()[1]
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            serving = pool.submit(answer_one, other, answer)
            first, second = outcomes((2, 0), (2, 1), limit_s=5, port=port)
            serving.result()
    assert f"port {port} of this machine cannot be used (Address already in use)" in first
    assert "what answers at --coordinator_address is not process 0" in second


def answer_one(server, answer):
    connection, _ = server.accept()
    with connection:
        connection.recv(1000)
        connection.sendall(answer)


def test_strangers_at_the_port_are_passed_over():
    port = free_port()

    def stranger():
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                with socket.create_connection(("localhost", port)) as connection:
                    connection.sendall(json.dumps({"hello": 1}).encode() + b"\n")
                    return
            except OSError:
                time.sleep(0.01)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(outcomes, (2, 0), port=port)
        pool.submit(stranger).result()
        assert outcomes((2, 1), port=port) == [""]
        assert first.result() == [""]


@pytest.mark.parametrize("address", ["localhost:x", "localhost:0", "localhost:99999", "localhost:"])
def test_an_address_without_a_port_is_refused(address):
    with pytest.raises(UserError, match="expected host:port"):
        meet(address, 2, 1, 1)
