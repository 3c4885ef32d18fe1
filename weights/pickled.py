"""Pickles read without running anything.

A pickle can name any function to be called while it is read. Here every name leads to a stand-in:
one of the harmless things in `_INERT`, which make tensors, or a `Foreign`, which runs nothing and
keeps what the file says of the object. So a file from a stranger can be opened, without torch.
"""

import io
import pickle
import pickletools
import re
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

STORAGE_DTYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
    "ComplexFloatStorage": np.dtype("<c8"),
    "ComplexDoubleStorage": np.dtype("<c16"),
}
# What no training state has and an attack calls. Here it could do nothing either; it is refused so
# that its reader is warned.
HOSTILE = re.compile(
    r"(os|posix|nt|sys|subprocess|commands|shutil|socket|runpy|importlib|ctypes|pty|webbrowser)(\..+)?"
    r"|_?io\.open\w*|(builtins|__builtin__)\.(eval|exec|execfile|compile|open|__import__|input)"
)


class Foreign(dict):
    """Stands for an object of a class that is not known here: its attributes and items, as data.

    Attributes:
      of: the class, or the function that would have made it, e.g. 'argparse.Namespace'.
    """

    of = ""
    __hash__ = object.__hash__  # type: ignore[assignment]

    def __new__(cls, *_: object, **__: object) -> "Foreign":
        """Whatever the arguments, an empty one."""
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object):
        super().__init__()

    def __setstate__(self, state: object) -> None:
        """Keeps attributes, which are a dictionary or (with `__slots__`) a pair of them."""
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                super().update(part)

    def append(self, *_: object) -> None:
        """Lets a list of a foreign class be filled with nothing."""

    extend = add = append


class Refused(pickle.UnpicklingError):
    """Reading would call something that is not for tensors."""


class TensorSpec(NamedTuple):
    """A tensor as the pickle describes it; turned into an array after the pickle is read."""

    storage: Any
    offset: int
    shape: tuple
    strides: tuple


class StorageType(NamedTuple):
    dtype: np.dtype


class Storage(NamedTuple):
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


def _tensor(storage: Any, offset: int, shape: Any, strides: Any, *_: object) -> Any:
    # Types of numbers that no weights have (quantised ones) come as foreign objects.
    known = isinstance(storage, Storage)
    return TensorSpec(storage, offset, tuple(shape), tuple(strides)) if known else storage


_INERT = {
    ("collections", "OrderedDict"): _inert(lambda items=(): _StateDict(items)),
    ("torch", "Size"): _inert(lambda shape: tuple(shape)),
    ("torch._utils", "_rebuild_tensor_v2"): _inert(_tensor),
    ("torch._utils", "_rebuild_parameter"): _inert(lambda data, *_: data),
    ("torch._utils", "_rebuild_parameter_with_state"): _inert(lambda data, *_: data),
    ("torch._tensor", "_rebuild_from_type_v2"): _inert(lambda make, kind, args, *_: make(*args)),
    **{("torch", name): StorageType(dtype) for name, dtype in STORAGE_DTYPES.items()},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        full = f"{module}.{name}"
        if HOSTILE.fullmatch(full):
            raise Refused(full)
        return _INERT.get((module, name)) or type("_Foreign", (Foreign,), {"of": full})

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":  # in the stream: a class, with its source beside it
            return pid[1]
        kind, storage_type, key, _, count, *_ = pid
        if kind == "storage" and isinstance(storage_type, type):
            return storage_type()
        if kind != "storage" or not isinstance(storage_type, StorageType):
            raise pickle.UnpicklingError(f"unknown persistent object {kind!r}")
        return Storage(storage_type.dtype, str(key), int(count))


def unpickle(file: IO[bytes]) -> Any:
    """Reads one pickle from `file`, leaving the position after it."""
    start = file.tell()
    for i, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        # The interpreter allocates memory up to any memo index that it meets.
        if opcode.name in ("LONG_BINPUT", "PUT") and argument > i:
            raise pickle.UnpicklingError(f"memo index {argument} at step {i} of a pickle")
    end = file.tell()
    file.seek(start)
    return _Unpickler(io.BytesIO(file.read(end - start)), encoding="utf-8").load()


def foreign_classes(tree: Any) -> list[str]:
    """What a tree of `read_torch` holds besides tensors and plain values, by `Foreign.of`."""
    names: dict[str, None] = {}
    for item in contents(tree):
        kind = item if isinstance(item, type) else type(item)
        if issubclass(kind, Foreign):
            names[kind.of] = None
    return list(names)


def contents(tree: Any) -> Iterator[Any]:
    """A tree and everything in it, each container once."""
    seen, waiting = set(), [tree]
    while waiting:
        item = waiting.pop()
        yield item
        if isinstance(item, dict | list) and id(item) not in seen:
            seen.add(id(item))
            waiting += [*item.keys(), *item.values()] if isinstance(item, dict) else item
