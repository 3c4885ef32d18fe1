"""Weight files as dictionaries of NumPy arrays, read without torch and without running anything.

Both of torch's formats are read: the zip archive of today and the plain stream of the years before
1.6, in which torchvision's older checkpoints are. `weights.pickled` has what makes that safe.
"""

import contextlib
import io
import math
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from google.protobuf import message as protobuf

from errors import UserError
from weights.pickled import Refused, Storage, TensorSpec, foreign_classes, unpickle

NARROW = ("F8", "F6", "F4")  # safetensors' types of quantised weights
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# What damaged or hostile files may raise on their way through a reader.
BROKEN = (
    safetensors.SafetensorError,
    protobuf.DecodeError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
)


class Tensor(NamedTuple):
    """An array in our layout, and the name that it has in the file it came from."""

    array: np.ndarray
    source: str


@contextlib.contextmanager
def readable(path: str | os.PathLike, kind: str) -> Iterator[None]:
    """Turns what reading a damaged file raises in the block into a UserError.

    Args:
      path: of the file.
      kind: what it should be, with its article.
    """
    try:
        yield
    except Refused as error:
        raise UserError(
            f"{path}: refused, because reading it would call {error}. Only tensors and plain "
            "values are read; save the state dict alone: torch.save(model.state_dict(), path)."
        ) from error
    except BROKEN as error:
        size = os.path.getsize(path) if os.path.isfile(path) else 0
        raise UserError(
            f"{path}: cannot be read as {kind} ({type(error).__name__}: {error}). It has {size:,} "
            "bytes; if it was copied or downloaded, it is probably truncated: get it again."
        ) from error


def read_safetensors(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads a `.safetensors` file.

    Returns:
      `(arrays, metadata)`: name → array as stored (bfloat16 too), and the file's string metadata.

    Raises:
      UserError: for a file that cannot be read as this format, or has numbers of 8 bits and fewer.
    """
    with readable(path, "a safetensors file"):
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            types = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        if narrow := sorted(kind for kind in types if kind.startswith(NARROW)):
            raise UserError(
                f"{path}: has arrays of type {', '.join(narrow)}, which are not read: their scales "
                "are each program's own. Save them as float32, float16 or bfloat16."
            )
        return safetensors.numpy.load_file(path), metadata


def read_torch(path: str | os.PathLike) -> Any:
    """Reads a file of `torch.save`: nested dictionaries and lists with arrays for tensors.

    An object of any other class is a `Foreign` with its attributes; nothing of it is run.

    Raises:
      UserError: for a damaged file, one that holds such objects and no tensor, or one that would
        call what only an attack calls.
    """
    with readable(path, "a torch file"), open(path, "rb") as file:
        load = _load_zip if file.read(2) == b"PK" else _load_stream
        file.seek(0)
        return load(file)


def _load_zip(file: IO[bytes]) -> Any:
    with zipfile.ZipFile(file) as archive:
        pickles = [n for n in archive.namelist() if n.endswith("/data.pkl") or n == "data.pkl"]
        if len(pickles) != 1:
            raise zipfile.BadZipFile("no data.pkl inside")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and (
            archive.read(f"{root}byteorder") != b"little"
        ):
            raise NotImplementedError("tensors in big-endian byte order")
        tree = unpickle(io.BytesIO(archive.read(pickles[0])))

        def read(storage: Storage) -> bytes:
            entry = archive.getinfo(f"{root}data/{storage.key}")
            if entry.compress_type != zipfile.ZIP_STORED:
                raise zipfile.BadZipFile("compressed tensors, which torch does not write")
            return archive.read(entry)

        return _with_arrays(tree, read)


def _load_stream(file: IO[bytes]) -> Any:
    """The format before torch 1.6: five pickles, then each storage as a count and its bytes."""
    if (magic := unpickle(file)) != LEGACY_MAGIC:
        _refuse_foreign(magic)
        raise pickle.UnpicklingError("not a file of torch.save")
    unpickle(file)  # protocol version
    system = unpickle(file)
    if not system.get("little_endian", True):
        raise NotImplementedError("tensors in big-endian byte order")
    tree = unpickle(file)
    keys = unpickle(file)
    dtypes = {}
    _map_leaves(tree, lambda spec: dtypes.setdefault(spec.storage.key, spec.storage.dtype))
    data = {}
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8))
        data[key] = file.read(_checked(count) * dtypes[key].itemsize)
    return _with_arrays(tree, lambda storage: data[storage.key])


def _checked(count: int) -> int:
    if count < 0:
        raise ValueError(f"a storage of {count} numbers")
    return count


def _with_arrays(tree: Any, read: Callable[[Storage], bytes]) -> Any:
    """The tree with arrays for tensors. Each storage is read once: tensors may share one."""
    arrays: dict[str, np.ndarray] = {}

    def array(spec: TensorSpec) -> np.ndarray:
        storage = spec.storage
        key = storage.key
        if key not in arrays:
            data, expected = read(storage), _checked(storage.size) * storage.dtype.itemsize
            if len(data) != expected:
                raise EOFError(f"storage {key}: {len(data):,} bytes, expected {expected:,}")
            arrays[key] = np.frombuffer(data, storage.dtype)
        if arrays[key].dtype != storage.dtype:
            raise ValueError(f"storage {key} has two types")
        return _array(spec, arrays[key])

    found = _map_leaves(tree, array)
    if not arrays:
        _refuse_foreign(found)
    return found


def _refuse_foreign(tree: Any) -> None:
    """Raises `Refused` for what is nothing but objects of foreign classes."""
    if names := foreign_classes(tree):
        raise Refused(names[0])


def _array(spec: TensorSpec, storage: np.ndarray) -> np.ndarray:
    """The tensor's view of its storage; a view that reaches outside is an error."""
    numbers = (spec.offset, *spec.shape, *spec.strides)
    if len(spec.shape) != len(spec.strides) or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError(f"a tensor of shape {spec.shape} and strides {spec.strides}")
    size = math.prod(spec.shape)
    last = spec.offset + sum((n - 1) * s for n, s in zip(spec.shape, spec.strides, strict=True))
    # A stride of 0 could claim any number of elements from a small file.
    if size > storage.size or (size and last >= storage.size):
        raise ValueError(f"a tensor of shape {spec.shape} in a storage of {storage.size} numbers")
    if not size:
        return np.zeros(spec.shape, storage.dtype)
    strides = tuple(s * storage.itemsize for s in spec.strides)
    view = np.lib.stride_tricks.as_strided(
        storage[spec.offset :], spec.shape, strides, writeable=False
    )
    return np.ascontiguousarray(view).reshape(spec.shape)


def _map_leaves(tree: Any, convert: Callable[[TensorSpec], Any], done: Any = None) -> Any:
    """A copy with converted tensors and lists for tuples. An object of a module can hold itself."""
    done = {} if done is None else done
    if isinstance(tree, TensorSpec):
        return convert(tree)
    if isinstance(tree, dict) and id(tree) not in done:
        done[id(tree)] = copy = type(tree)()
        copy.update((k, _map_leaves(v, convert, done)) for k, v in tree.items())
    elif isinstance(tree, list | tuple) and id(tree) not in done:
        done[id(tree)] = items = []
        items.extend(_map_leaves(v, convert, done) for v in tree)
    return done.get(id(tree), tree)
