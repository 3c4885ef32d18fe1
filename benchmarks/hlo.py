"""A compiled program as kernels: what each reads and writes, and which sums have a free order.

Reads the text that `jax.stages.Compiled.as_text()` gives. A kernel reads each operand once, of one
that it only slices the slices, and writes its result; what caches save is not known here.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

BITS = {"pred": 8, "token": 0, "opaque": 0}
# They only name what is there already.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"}
FREE |= {
    "async-done",
    "fusion-done",
    "copy-done",
    "partition-id",
    "replica-id",
    "domain",
    "opt-barrier",
}
SLICES = {"slice", "dynamic-slice", "gather"}
MOVES = {"copy", "transpose", "convert", "reshape", "broadcast", "pad", "concatenate", "reverse"}
CONVOLUTIONS = {
    "__cudnn$convForward": "convolution",
    "__cudnn$convBiasActivationForward": "convolution and sum",
    "__cudnn$convBackwardInput": "convolution, input gradient",
    "__cudnn$convBackwardFilter": "convolution, kernel gradient",
}
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")


class Instruction(NamedTuple):
    """One line of a program; `rest` holds its attributes."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    root: bool

    def called(self) -> list[str]:
        """Computations that it runs, the condition of a loop left out."""
        found = re.findall(r"(?:calls|to_apply|body|\w*computations?)=\{?([^}\s]*)", self.rest)
        return [name for group in found for name in _NAME.findall(group)]


class Kernel(NamedTuple):
    """What one instruction of a program moves.

    Attributes:
      kind: in words, e.g. 'convolution'.
      phase: 'forward', 'backward' or 'update', by the name that JAX gave it.
      read, written: bytes of one run.
      times: how often a step runs it.
      results, operands: shapes of what it writes and reads, e.g. 'bf16[8,4,4,16]'.
      name: of the instruction.
    """

    kind: str
    phase: str
    read: int
    written: int
    times: int
    results: tuple[str, ...]
    operands: tuple[str, ...]
    name: str

    @property
    def moved(self) -> int:
        """Bytes of all its runs."""
        return self.times * (self.read + self.written)


class Program:
    """The computations of a compiled module; `entry` is the one that is run."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            if line.endswith("{") and " = " not in line.partition("(")[0]:
                name = line.removeprefix("ENTRY ").split()[0].lstrip("%").partition("(")[0]
                current = self.computations[name] = {}
                if line.startswith("ENTRY"):
                    self.entry = name
            elif instruction := _parsed(line):
                current[instruction.name] = instruction

    def inside(self, instruction: Instruction) -> Iterator[Instruction]:
        """The instructions of the computations that it calls, also of theirs."""
        for name in instruction.called():
            for inner in self.computations.get(name, {}).values():
                yield inner
                yield from self.inside(inner)

    def kernels(self, computation: str = "", times: int = 1) -> Iterator[Kernel]:
        """Every kernel of a computation, by default of `entry`, those of a loop with its count."""
        scope = self.computations[computation or self.entry]
        for instruction in scope.values():
            opcode = instruction.opcode
            if opcode in FREE:
                continue
            if opcode in ("while", "call", "conditional", "async-start"):
                count = re.search(r'known_trip_count\W+"?n\W+(\d+)', instruction.rest)
                for name in instruction.called():
                    yield from self.kernels(name, times * int(count[1]) if count else times)
                continue
            read, written = self._moved(instruction, scope)
            operands = [a for name in instruction.operands for a in _arrays(scope[name].shape)]
            yield Kernel(
                self._kind(instruction),
                _phase(instruction),
                read,
                written,
                times,
                tuple(_arrays(instruction.shape)),
                tuple(operands),
                instruction.name,
            )

    def free_sums(self) -> list[str]:
        """Instructions whose result depends on the order in which threads come, with their reason.

        A scatter adds what meets in one place as it comes, unless its indices are unique. (What a
        library chooses inside a convolution is not in the program: see `config.deterministic`.)
        """
        found = []
        for scope in self.computations.values():
            for i in scope.values():
                if i.opcode in ("scatter", "select-and-scatter"):
                    if "unique_indices=true" not in i.rest:
                        found.append(f"{i.name}: {i.opcode} to {i.shape}")
                elif i.opcode == "rng" or (i.opcode == "all-reduce" and "async" in i.name):
                    found.append(f"{i.name}: {i.opcode}")
        return found

    def _moved(self, instruction, scope):
        written, opcode = size_of(instruction.shape), instruction.opcode.removesuffix("-start")
        if opcode == "custom-call":
            scratch = re.findall(r"\bu8\[\d+\]", instruction.shape)
            written -= sum(map(size_of, scratch))
        reads = [size_of(scope[name].shape) for name in instruction.operands]
        if opcode in SLICES:
            reads[0] = written
        elif opcode == "dynamic-update-slice":
            reads[0], written = 0, reads[1]
        elif instruction.opcode == "copy-start":
            written = reads[0]
        elif opcode == "fusion":
            (called,) = instruction.called()[:1]
            body = self.computations[called]
            parameters = [i for i in body.values() if i.opcode == "parameter"]
            numbered = {int(i.rest.partition(")")[0] or 0): i for i in parameters}
            reads = [_read(body, numbered[n], size) for n, size in enumerate(reads)]
            written = sum(_written(body, root) for root in _roots(body))
        return sum(reads), written

    def _kind(self, instruction):
        target = re.search(r'custom_call_target="([^"]*)"', instruction.rest)
        if target:
            name = target[1]
            if name in CONVOLUTIONS:
                return CONVOLUTIONS[name]
            return "matrix product" if "gemm" in name or "matmul" in name else name
        opcode = instruction.opcode.removesuffix("-start")
        if opcode != "fusion":
            return "copies, casts" if opcode in MOVES else opcode
        inner = {i.opcode for i in self.inside(instruction)}
        if "dot" in inner:
            return "matrix product"
        if "convolution" in inner or "__cudnn$" in instruction.rest:
            return "convolution, fused"
        for opcode in ("scatter", "sort"):
            if opcode in inner:
                return opcode
        if inner & {"reduce", "reduce-window"}:
            return "sums"
        moves = MOVES | FREE | SLICES | {"dynamic-update-slice"}
        return "copies, casts" if inner <= moves else "elementwise"


def _parsed(line):
    head, equals, rest = line.strip().partition(" = ")
    root, head = head.startswith("ROOT "), head.removeprefix("ROOT ")
    if not equals or not re.fullmatch(r"%?[\w.\-]+", head):
        return None
    end = _closing(rest, 0) + 1 if rest.startswith("(") else 0
    shape, _, call = rest[end:].partition(" ")
    shape = rest[:end] + shape
    opcode, paren, arguments = call.partition("(")
    if not paren:
        return None
    close = _closing("(" + arguments, 0) - 1
    inner, attributes = arguments[:close], arguments[close + 1 :]
    operands = tuple(_NAME.findall(inner))
    rest = f"{inner}){attributes}" if opcode == "parameter" else attributes
    return Instruction(head.lstrip("%"), shape, opcode, operands, rest, root)


def _closing(text, start):
    """Position of the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if not depth:
            return i
    raise ValueError(f"no end of {text[start : start + 80]!r}")


def size_of(shape: str) -> int:
    """Bytes of an array, or of all arrays of a tuple."""
    total = 0
    for kind, dims in _ARRAY.findall(shape):
        width = re.search(r"\d+", kind)
        count = 1
        for size in filter(None, dims.split(",")):
            count *= int(size)
        total += count * BITS.get(kind, int(width[0]) if width else 8) // 8
    return total


def _arrays(shape):
    return [f"{kind}[{dims}]" for kind, dims in _ARRAY.findall(shape)]


def _phase(instruction):
    name = re.search(r'op_name="([^"]*)"', instruction.rest)
    if not name:
        return "unnamed"
    if "transpose(" in name[1]:
        return "backward"
    return "forward" if "jvp(" in name[1] else "update"


def _uses(body, name):
    """Who reads an instruction, looked at through bitcasts: (instruction, position)."""
    for user in body.values():
        for position, operand in enumerate(user.operands):
            if operand == name:
                if user.opcode == "bitcast":
                    yield from _uses(body, user.name)
                else:
                    yield user, position


def _read(body, parameter, whole):
    """Bytes that a fused computation reads of a parameter."""
    total = 0
    for user, position in _uses(body, parameter.name):
        if user.opcode in SLICES and position == 0:
            total += size_of(user.shape)
        elif not (user.opcode == "dynamic-update-slice" and position == 0):
            return whole
    return min(total, whole)


def _roots(body: Mapping[str, Instruction]) -> Sequence[Any]:
    (root,) = [i for i in body.values() if i.root]
    return [body[name] for name in root.operands] if root.opcode == "tuple" else [root]


def _written(body, root):
    while root.opcode == "bitcast":
        root = body[root.operands[0]]
    if root.opcode == "dynamic-update-slice":
        return size_of(body[root.operands[1]].shape)
    return size_of(root.shape)
