"""Reads a pickle as data: nothing it names is imported, and nothing it asks for is called.

Only the few operations that ``torch.save`` writes are known. What a pickle names stays a ``Name``; what it
wants called stays a ``Call``. A name that no checkpoint of weights needs ends the reading. Time and memory
are bounded by the length of the pickle, whatever it says.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from builder.checkpoints.wire import FileBytes, MalformedError

_ORDERED_DICT = "collections.OrderedDict"
_CALLABLE = frozenset(
    {
        _ORDERED_DICT,
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "torch.Size",
        "torch.device",
    }
)
_STORAGES = re.compile(r"torch\.(\w+Storage|storage\.UntypedStorage)")
_MAX_LINE = 512
_MAX_OPERATIONS = 4_000_000
"""Some forty a tensor are needed."""
_LOOSE = "has a pickle that does not hold together"


class RefusedNameError(MalformedError):
    """The pickle asks for something that no checkpoint of weights needs."""


@dataclass(frozen=True)
class Name:
    """Something that the pickle would import."""

    name: str


@dataclass(frozen=True)
class Call:
    """Something that the pickle would call."""

    name: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Reference:
    """A thing outside of the pickle: a storage."""

    key: Any


_MARK = object()


def read_pickle(data: FileBytes, start: int, end: int) -> tuple[Any, int]:
    """What a pickle holds, and where it ends. Raises ``MalformedError``."""
    return _Machine(data, start, end).run()


class _Machine:
    def __init__(self, data: FileBytes, position: int, end: int) -> None:
        self._data, self._position, self._end = data, position, end
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> tuple[Any, int]:
        operations = 0
        while (code := self._take(1)) != b".":
            operations += 1
            if operations > _MAX_OPERATIONS:
                raise MalformedError("has a pickle far longer than that of any model")
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise MalformedError(f"has the pickle operation {code!r}, which torch.save does not write")
            operation(self)
        return self._pop(), self._position

    def _take(self, count: int) -> bytes:
        if count > self._end - self._position:
            raise MalformedError("is cut short")
        found = self._data.at(self._position, count)
        self._position += count
        return found

    def _number(self, layout: str) -> int:
        value = struct.unpack(layout, self._take(struct.calcsize(layout)))[0]
        return int(value)

    def _line(self) -> str:
        line = bytearray()
        while (byte := self._take(1)) != b"\n":
            line += byte
            if len(line) > _MAX_LINE:
                raise MalformedError("has a name without end")
        return self._decoded(bytes(line))

    def _decoded(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise MalformedError("has a string that is not text") from None

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise MalformedError(_LOOSE)
        return self._stack.pop()

    def _top(self, kind: type) -> Any:
        if not self._stack or type(self._stack[-1]) is not kind:
            raise MalformedError(_LOOSE)
        return self._stack[-1]

    def _since_mark(self) -> list[Any]:
        for index in range(len(self._stack) - 1, -1, -1):
            if self._stack[index] is _MARK:
                items = self._stack[index + 1 :]
                del self._stack[index:]
                return items
        raise MalformedError(_LOOSE)

    def protocol(self) -> None:
        if self._take(1)[0] > 5:
            raise MalformedError("has a pickle of an unknown protocol")

    def frame(self) -> None:
        self._take(8)

    def text(self, layout: str) -> None:
        self._push(self._decoded(self._take(self._number(layout))))

    def raw(self, layout: str) -> None:
        self._push(self._take(self._number(layout)))

    def integer(self, layout: str) -> None:
        self._push(self._number(layout))

    def floating(self) -> None:
        self._push(struct.unpack(">d", self._take(8))[0])

    def long(self) -> None:
        self._push(int.from_bytes(self._take(self._number("<B")), "little", signed=True))

    def tuple_of(self, count: int) -> None:
        self._push(tuple([self._pop() for _ in range(count)][::-1]))

    def marked_tuple(self) -> None:
        self._push(tuple(self._since_mark()))

    def append(self) -> None:
        value = self._pop()
        self._top(list).append(value)

    def appends(self) -> None:
        items = self._since_mark()
        self._top(list).extend(items)

    def set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])

    def set_items(self) -> None:
        self._set(self._since_mark())

    def _set(self, items: list[Any]) -> None:
        table = self._top(dict)
        if len(items) % 2:
            raise MalformedError(_LOOSE)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):
                raise MalformedError("has a table with keys that are not names")
            table[key] = value

    def remember(self, index: int) -> None:
        if not self._stack or self._stack[-1] is _MARK:
            raise MalformedError(_LOOSE)
        self._memo[index] = self._stack[-1]

    def recall(self, index: int) -> None:
        if index not in self._memo:
            raise MalformedError(_LOOSE)
        self._push(self._memo[index])

    def named(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise MalformedError(_LOOSE)
        full = f"{module}.{name}"
        if full not in _CALLABLE and not _STORAGES.fullmatch(full):
            raise RefusedNameError(f"asks for {full}, which no checkpoint of weights needs; nothing was run")
        self._push(Name(full))

    def call(self) -> None:
        arguments, function = self._pop(), self._pop()
        if type(function) is not Name or type(arguments) is not tuple or function.name not in _CALLABLE:
            raise MalformedError(_LOOSE)
        if function.name != _ORDERED_DICT:
            self._push(Call(function.name, arguments))
        elif arguments:
            raise MalformedError("has an ordered table that torch.save does not write")
        else:
            self._push({})

    def build(self) -> None:
        """The attributes of a state dict are notes on versions: not needed."""
        self._pop()
        self._top(dict)

    def reference(self) -> None:
        self._push(Reference(self._pop()))

    def stack_name(self) -> None:
        name, module = self._pop(), self._pop()
        self.named(module, name)

    def line_name(self) -> None:
        module = self._line()
        self.named(module, self._line())


_Operation = Callable[[_Machine], None]


def _pushing(make: Callable[[], Any]) -> _Operation:
    return lambda machine: machine._push(make())


_OPERATIONS: Mapping[bytes, _Operation] = MappingProxyType(
    {
        b"\x80": _Machine.protocol,
        b"\x95": _Machine.frame,
        b"(": _pushing(lambda: _MARK),
        b")": _pushing(tuple),
        b"]": _pushing(list),
        b"}": _pushing(dict),
        b"N": _pushing(lambda: None),
        b"\x88": _pushing(lambda: True),
        b"\x89": _pushing(lambda: False),
        b"X": lambda machine: machine.text("<I"),
        b"\x8c": lambda machine: machine.text("<B"),
        b"U": lambda machine: machine.text("<B"),
        b"C": lambda machine: machine.raw("<B"),
        b"J": lambda machine: machine.integer("<i"),
        b"K": lambda machine: machine.integer("<B"),
        b"M": lambda machine: machine.integer("<H"),
        b"G": _Machine.floating,
        b"\x8a": _Machine.long,
        b"\x85": lambda machine: machine.tuple_of(1),
        b"\x86": lambda machine: machine.tuple_of(2),
        b"\x87": lambda machine: machine.tuple_of(3),
        b"t": _Machine.marked_tuple,
        b"a": _Machine.append,
        b"e": _Machine.appends,
        b"s": _Machine.set_item,
        b"u": _Machine.set_items,
        b"q": lambda machine: machine.remember(machine._number("<B")),
        b"r": lambda machine: machine.remember(machine._number("<I")),
        b"\x94": lambda machine: machine.remember(len(machine._memo)),
        b"h": lambda machine: machine.recall(machine._number("<B")),
        b"j": lambda machine: machine.recall(machine._number("<I")),
        b"c": _Machine.line_name,
        b"\x93": _Machine.stack_name,
        b"R": _Machine.call,
        b"b": _Machine.build,
        b"Q": _Machine.reference,
    }
)
