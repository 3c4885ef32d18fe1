"""A file is written whole or not at all."""

import os

import pytest

from errors import UserError
from run import files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_new_file_appears_when_the_block_has_ended(tmp_path):
    path = tmp_path / "below" / "a.txt"
    with files.whole(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == path.parent and not path.exists()
    assert path.read_text() == "new"
    assert names(path.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, ZeroDivisionError])
def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), files.whole(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_two_processes_write_different_temporary_files(tmp_path):
    reader, writer = os.pipe()
    child = os.fork()
    with files.whole(tmp_path / "a") as temporary:
        if child == 0:
            os.write(writer, temporary.name.encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(reader, 1000).decode() != temporary.name
        temporary.write_text("ours")
    os.close(reader), os.close(writer)


def test_text_is_utf8(tmp_path):
    assert files.write_text(tmp_path / "a", "ü ≤") == tmp_path / "a"
    assert (tmp_path / "a").read_bytes() == "ü ≤".encode()


@pytest.mark.parametrize("advice", ["", "choose another --workdir"])
def test_what_cannot_be_written_is_named_with_advice(tmp_path, advice):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written") as refused:
        files.write_text(tmp_path / "file" / "a", "text", advice)
    assert str(tmp_path / "file" / "a") in str(refused.value)
    assert (advice or "free space") in str(refused.value)


def test_no_flipped_bit_of_a_sealed_text_passes():
    """Nor one of the checksum's name, without which the text would pass as one of older code."""
    fields = {"a": 1.5, "b": ["é", None], "run": "0f"}
    whole = files.sealed(fields).encode()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            assert files.unsealed(damaged.decode()) == (fields, True)
        except ValueError:
            continue
    assert files.unsealed('{"jax": "0.10.1.1"}') == ({"jax": "0.10.1.1"}, False)
