"""Weight files as dictionaries of NumPy arrays, read without torch and without running anything.

A `.pth` file is a pickle, and a pickle can name any function to be called while it is read. Here it
can name nothing but the eleven harmless things in `_INERT`; everything else is refused, so a file
from a stranger can be opened. That needs no torch, and both of torch's formats are read: the zip
archive of today and the plain stream of the years before 1.6, in which torchvision's older
checkpoints are.
"""

import contextlib
import io
import math
import os
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from google.protobuf import message as protobuf

from errors import UserError

STORAGE_DTYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "BoolStorage": np.dtype("?"),
}
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
    except _Refused as error:
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
      UserError: for a file that cannot be read as this format.
    """
    with readable(path, "a safetensors file"):
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        return safetensors.numpy.load_file(path), metadata


def read_torch(path: str | os.PathLike) -> Any:
    """Reads a file of `torch.save`: nested dictionaries and lists with arrays for tensors.

    Raises:
      UserError: for a damaged file, or one that holds more than tensors and plain Python values.
    """
    with readable(path, "a torch file"), open(path, "rb") as file:
        load = _load_zip if file.read(2) == b"PK" else _load_stream
        file.seek(0)
        return load(file)


class _Refused(pickle.UnpicklingError):
    """The pickle asked for something outside `_INERT`."""


class _TensorSpec(NamedTuple):
    """A tensor as the pickle describes it; turned into an array after the pickle is read."""

    storage: Any
    offset: int
    shape: tuple
    strides: tuple


class _StorageType(NamedTuple):
    dtype: np.dtype


class _Storage(NamedTuple):
    dtype: np.dtype
    key: str
    size: int


class _StateDict(dict):
    """Stands for OrderedDict."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Ignores the attributes that torch's OrderedDict carries (`_metadata`)."""


def _inert(function: Callable) -> object:
    """Something to call, without any attribute that a pickle's BUILD could overwrite."""
    return type("_Inert", (), {"__slots__": (), "__call__": lambda self, *args: function(*args)})()


_INERT = {
    ("collections", "OrderedDict"): _inert(lambda items=(): _StateDict(items)),
    ("torch", "Size"): _inert(lambda shape: tuple(shape)),
    ("torch._utils", "_rebuild_tensor_v2"): _inert(
        lambda storage, offset, shape, strides, *_: _TensorSpec(
            storage, offset, tuple(shape), tuple(strides)
        )
    ),
    ("torch._utils", "_rebuild_parameter"): _inert(lambda data, *_: data),
    **{("torch", name): _StorageType(dtype) for name, dtype in STORAGE_DTYPES.items()},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _INERT:
            raise _Refused(f"{module}.{name}")
        return _INERT[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _, count, *_ = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise pickle.UnpicklingError(f"unknown persistent object {kind!r}")
        return _Storage(storage_type.dtype, str(key), int(count))


def _unpickle(file: IO[bytes]) -> Any:
    """Reads one pickle from `file`, leaving the position after it."""
    start = file.tell()
    for i, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        # The interpreter allocates memory up to any memo index that it meets.
        if opcode.name in ("LONG_BINPUT", "PUT") and argument > i:
            raise pickle.UnpicklingError(f"memo index {argument} at step {i} of a pickle")
    end = file.tell()
    file.seek(start)
    return _Unpickler(io.BytesIO(file.read(end - start)), encoding="utf-8").load()


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
        tree = _unpickle(io.BytesIO(archive.read(pickles[0])))

        def read(storage: _Storage) -> bytes:
            entry = archive.getinfo(f"{root}data/{storage.key}")
            if entry.compress_type != zipfile.ZIP_STORED:
                raise zipfile.BadZipFile("compressed tensors, which torch does not write")
            return archive.read(entry)

        return _with_arrays(tree, read)


def _load_stream(file: IO[bytes]) -> Any:
    """The format before torch 1.6: five pickles, then each storage as a count and its bytes."""
    if _unpickle(file) != LEGACY_MAGIC:
        raise pickle.UnpicklingError("not a file of torch.save")
    _unpickle(file)  # protocol version
    system = _unpickle(file)
    if not system.get("little_endian", True):
        raise NotImplementedError("tensors in big-endian byte order")
    tree = _unpickle(file)
    keys = _unpickle(file)
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


def _with_arrays(tree: Any, read: Callable[[_Storage], bytes]) -> Any:
    """The tree with arrays for tensors. Each storage is read once: tensors may share one."""
    arrays: dict[str, np.ndarray] = {}

    def array(spec: _TensorSpec) -> np.ndarray:
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

    return _map_leaves(tree, array)


def _array(spec: _TensorSpec, storage: np.ndarray) -> np.ndarray:
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


def _map_leaves(tree: Any, convert: Callable[[_TensorSpec], Any]) -> Any:
    if isinstance(tree, _TensorSpec):
        return convert(tree)
    if isinstance(tree, dict):
        return {key: _map_leaves(value, convert) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_map_leaves(value, convert) for value in tree]
    return tree
