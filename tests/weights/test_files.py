"""Weight files: both torch formats without torch, damage, and pickles that mean harm.

tests/support/files/checkpoint_*.pth were written by torch 2.13 with `torch.save` of one dictionary:
a state dict of Conv2d(3, 4, 3) and BatchNorm2d(4), and tensors of other types, shapes and strides.
"""

import builtins
import collections
import io
import json
import pathlib
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from errors import UserError
from tests.support.reference_weights import write_safetensors
from weights.files import read_safetensors, read_torch

DATA = pathlib.Path(__file__).parents[1] / "support" / "files"
FORMATS = ["zip", "stream"]


@pytest.mark.parametrize("kind", FORMATS)
def test_reads_what_torch_wrote(kind):
    tree = read_torch(DATA / f"checkpoint_{kind}.pth")
    assert tree["epoch"] == 3 and tree["opt"] == {"lr": 0.1, "l": [1, 2, [3]]}
    assert tree["state_dict"]["0.weight"].shape == (4, 3, 3, 3)
    assert tree["state_dict"]["1.running_var"].tolist() == [1, 1, 1, 1]
    # A view: torch.arange(12.).reshape(3, 4).T[1:]
    np.testing.assert_array_equal(tree["x"], np.arange(12.0).reshape(3, 4).T[1:])
    assert tree["h"].dtype == np.float16 and tree["b"].dtype == ml_dtypes.bfloat16
    assert tree["p"].tolist() == [1, 1] and tree["e"].shape == (0, 3)
    assert tree["s"].shape == () and tree["s"] == 5


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0, 0.001, 0.03, 0.5, 0.999])
def test_a_truncated_file_is_named_with_its_size(kind, share, tmp_path):
    data = (DATA / f"checkpoint_{kind}.pth").read_bytes()
    data = data[: int(share * len(data))]
    path = tmp_path / "cut.pth"
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"cut\.pth.*{len(data):,} bytes.*truncated"):
        read_torch(path)


@pytest.mark.parametrize("kind", FORMATS)
def test_flipped_bytes_are_an_error_or_other_numbers_but_no_crash(kind, tmp_path):
    data = (DATA / f"checkpoint_{kind}.pth").read_bytes()
    random = np.random.RandomState(0)
    path = tmp_path / "flipped.pth"
    refused = 0
    for _ in range(300):
        damaged = bytearray(data)
        damaged[random.randint(len(data))] ^= 1 << random.randint(8)
        path.write_bytes(damaged)
        try:
            read_torch(path)
        except UserError:
            refused += 1
    assert refused > 50


def torch_zip(path, pickled, storage=b"\0" * 16):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/data/0", storage)
    return path


class Call:
    """Pickles to a call of `function`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


HARM = {
    "eval": pickle.dumps(Call(builtins.eval, "open('harmed', 'w')")),
    "open": pickle.dumps(Call(builtins.open, "harmed", "w")),
    "system": b"cos\nsystem\n(S'touch harmed'\ntR.",
    "nested": pickle.dumps({"state_dict": collections.OrderedDict(x=Call(open, "harmed", "w"))}),
    "getattr": b"cbuiltins\ngetattr\n(ccollections\nOrderedDict\nS'update'\ntR.",
    "dotted": b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.",
    "instance": b"(S'touch harmed'\nios\nsystem\n.",
    "module": b"ctorch\nload\n(S'harmed'\ntR.",
    "numpy": pickle.dumps(np.ones(3)),
}


@pytest.mark.parametrize("name", HARM)
def test_a_pickle_that_would_call_something_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stream.pth").write_bytes(HARM[name])
    for path in (torch_zip(tmp_path / "zip.pth", HARM[name]), tmp_path / "stream.pth"):
        with pytest.raises(UserError, match="refused, because reading it would call"):
            read_torch(path)
    assert not (tmp_path / "harmed").exists()


def tensor(shape, strides, offset=0, count=4, storage="FloatStorage"):
    """A pickle of one tensor over storage '0', as torch writes it."""
    out = io.BytesIO()
    out.write(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storage")
    out.write(f"ctorch\n{storage}\nX\x01\0\0\x000X\x03\0\0\0cpuI{count}\ntQ".encode())
    out.write(f"I{offset}\n".encode())
    for numbers in (shape, strides):
        out.write(b"(" + b"".join(f"I{n}\n".encode() for n in numbers) + b"t")
    out.write(b"\x89NtR.")
    return out.getvalue()


def test_a_hand_made_tensor_reads(tmp_path):
    data = np.arange(4, dtype="<f4").tobytes()
    path = torch_zip(tmp_path / "x.pth", tensor((2, 2), (1, 2)), data)
    np.testing.assert_array_equal(read_torch(path), [[0, 2], [1, 3]])


@pytest.mark.parametrize(
    "fields",
    [
        {"shape": (5,), "strides": (1,)},
        {"shape": (2, 2), "strides": (3, 1)},
        {"shape": (2,), "strides": (1,), "offset": 3},
        {"shape": (2,), "strides": (-1,)},
        {"shape": (2,), "strides": (1,), "offset": -1},
        {"shape": (1 << 60,), "strides": (0,)},  # a few bytes that claim an exabyte
        {"shape": (2,), "strides": (1,), "count": 1 << 40},
        {"shape": (2,), "strides": (1,), "count": -4},
        {"shape": (2, 2), "strides": (1,)},
    ],
)
def test_a_tensor_that_reaches_outside_its_storage_is_an_error(fields, tmp_path):
    with pytest.raises(UserError, match="cannot be read as a torch file"):
        read_torch(torch_zip(tmp_path / "x.pth", tensor(**fields)))


def test_a_pickle_cannot_claim_memory_or_change_the_reader(tmp_path):
    huge_memo = b"\x80\x02Nr\xff\xff\xff\x7f."
    with pytest.raises(UserError, match="memo index"):
        read_torch(torch_zip(tmp_path / "memo.pth", huge_memo))
    overwrite = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x08\0\0\0__call__Nsb."
    with pytest.raises(UserError, match="cannot be read"):
        read_torch(torch_zip(tmp_path / "build.pth", overwrite))
    with pytest.raises(UserError, match="cannot be read"):
        read_torch(torch_zip(tmp_path / "deep.pth", b"]" * 10))


def test_safetensors_round_trip_with_metadata(tmp_path):
    path = tmp_path / "x.safetensors"
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "b": np.ones(2, ml_dtypes.bfloat16),
        "n": np.zeros((), np.int64),
    }
    write_safetensors(path, arrays, {"downsample_in": "1x1"})
    back, metadata = read_safetensors(path)
    assert metadata == {"downsample_in": "1x1"}
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2", "F4"])
def test_numbers_of_few_bits_are_named_as_what_they_are(kind, tmp_path):
    count = 2 if kind == "F4" else 1
    header = {"conv1.weight": {"dtype": kind, "shape": [count], "data_offsets": [0, 1]}}
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0")
    with pytest.raises(UserError, match=f"type {kind}, which are not read.*float32"):
        read_safetensors(path)


@pytest.mark.parametrize("share", [0, 0.1, 0.9])
def test_truncated_safetensors(share, tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": np.ones((8, 8), np.float32)}, {})
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match=r"x\.safetensors.*truncated"):
        read_safetensors(path)
