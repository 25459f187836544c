"""Reading pickles opcode by opcode: nothing is imported, called, hashed or compared, whoever wrote them.

Python's own unpickler, with all classes left out, would do for honest pickles; others end the process with nested
tuples as keys, or take gigabytes for a memo's index. Here time and memory are proportional to the pickle.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: Values of an extension that are shown, and how deep they may be nested. A few bytes can say "twice that" often.
MOST_VALUES = 100_000
MOST_DEPTH = 50
_MOST_BITS = 4096


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function, by name."""

    path: str


class Pairs(list[tuple[Any, Any]]):
    """What a pickle puts into a dict, in order."""


#: Any other value.
OPAQUE = object()
_MARK = object()


class Reader:
    """Of pickles that follow one another, with one memo, as ZODB writes them.

    `refer` is called with each persistent reference, which may be anything. Values are plain ones, tuples, lists,
    Pairs, Global and OPAQUE.
    """

    def __init__(self, data: bytes, refer: Callable[[Any], object]) -> None:
        self._file = io.BytesIO(data)
        self._refer = refer
        self._memo: dict[int, Any] = {}
        self._stack: list[Any] = []

    def load(self) -> Any:
        """The next one's value. ValueError: it is none, or breaks off."""
        self._stack = []
        try:
            for opcode, argument, _ in pickletools.genops(self._file):
                act = _ACTS.get(opcode.name)
                if act is not None:
                    act(self, argument)
                elif opcode.name in _PLAIN:
                    self._stack.append(argument)
                elif opcode.name not in ("PROTO", "FRAME", "STOP"):
                    raise ValueError(f"opcode {opcode.name}")
            value = self._stack.pop()
        except (IndexError, KeyError):
            raise ValueError("it takes what is not there") from None
        if value is _MARK:
            raise ValueError("it ends in a mark")
        return value

    def _since_mark(self) -> list[Any]:
        stack = self._stack
        at = len(stack) - 1
        while stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise IndexError
        items = stack[at + 1 :]
        del stack[at:]
        return items

    def _take(self, count: int) -> list[Any]:
        if count > len(self._stack):
            raise IndexError
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _add(self, items: list[Any]) -> None:
        if isinstance(self._stack[-1], list) and not isinstance(self._stack[-1], Pairs):
            self._stack[-1].extend(items)

    def _set(self, items: list[Any]) -> None:
        if isinstance(self._stack[-1], Pairs):
            self._stack[-1].extend(zip(items[::2], items[1::2], strict=True))

    def _dict(self, _: None) -> None:
        items = self._since_mark()
        self._push(Pairs())
        self._set(items)

    def _made(self, _: Any) -> None:
        self._since_mark()
        self._push(OPAQUE)

    def _replace(self, count: int) -> None:
        self._take(count)
        self._push(OPAQUE)

    def _reduce(self, _: None) -> None:
        function, arguments = self._take(2)
        self._stack.append(_reduced(function, arguments))

    def _global(self, path: str) -> None:
        self._stack.append(Global(path.replace(" ", ".", 1)))

    def _stack_global(self, _: None) -> None:
        module, name = self._take(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a class without a name")
        self._stack.append(Global(f"{module}.{name}"))

    def _persistent(self, reference: Any) -> None:
        self._refer(reference)
        self._stack.append(OPAQUE)

    def _put(self, number: int) -> None:
        self._memo[number] = self._stack[-1]

    def _push(self, value: Any) -> None:
        self._stack.append(value)


def _reduced(function: Any, arguments: Any) -> Any:
    """Protocols below 3 write bytes as what a function makes of a text."""
    if function == Global("_codecs.encode") and isinstance(arguments, tuple) and arguments:
        text = arguments[0]
        if isinstance(text, str) and arguments[1:] in (("latin1",), ("latin-1",)):
            return text.encode("latin-1")
    if function in (Global("__builtin__.bytes"), Global("builtins.bytes")) and arguments == ():
        return b""
    if function == Global("zodbpickle.binary") and isinstance(arguments, tuple) and len(arguments) == 1:
        return arguments[0] if isinstance(arguments[0], bytes) else OPAQUE
    return OPAQUE


_Act = Callable[[Reader, Any], object]
_GET: _Act = lambda self, number: self._push(self._memo[int(number)])  # noqa: E731
_PUT: _Act = lambda self, number: self._put(int(number))  # noqa: E731
_EXTENSION: _Act = lambda self, _: self._push(OPAQUE)  # noqa: E731
_ACTS: dict[str, _Act] = {
    "MARK": lambda self, _: self._push(_MARK),
    "NONE": lambda self, _: self._push(None),
    "NEWTRUE": lambda self, _: self._push(True),
    "NEWFALSE": lambda self, _: self._push(False),
    "EMPTY_TUPLE": lambda self, _: self._push(()),
    "EMPTY_LIST": lambda self, _: self._push([]),
    "EMPTY_DICT": lambda self, _: self._push(Pairs()),
    "EMPTY_SET": lambda self, _: self._push(OPAQUE),
    "TUPLE": lambda self, _: self._push(tuple(self._since_mark())),
    "TUPLE1": lambda self, _: self._push(tuple(self._take(1))),
    "TUPLE2": lambda self, _: self._push(tuple(self._take(2))),
    "TUPLE3": lambda self, _: self._push(tuple(self._take(3))),
    "LIST": lambda self, _: self._push(self._since_mark()),
    "DICT": Reader._dict,
    **dict.fromkeys(("FROZENSET", "OBJ", "INST"), Reader._made),
    "APPEND": lambda self, _: self._add(self._take(1)),
    "APPENDS": lambda self, _: self._add(self._since_mark()),
    "SETITEM": lambda self, _: self._set(self._take(2)),
    "SETITEMS": lambda self, _: self._set(self._since_mark()),
    "ADDITEMS": lambda self, _: self._since_mark(),
    "POP": lambda self, _: self._take(1),
    "POP_MARK": lambda self, _: self._since_mark(),
    "DUP": lambda self, _: self._push(self._stack[-1]),
    "BUILD": lambda self, _: self._take(1),
    "REDUCE": Reader._reduce,
    "NEWOBJ": lambda self, _: self._replace(2),
    "NEWOBJ_EX": lambda self, _: self._replace(3),
    "GLOBAL": Reader._global,
    "STACK_GLOBAL": Reader._stack_global,
    "PERSID": Reader._persistent,
    "BINPERSID": lambda self, _: self._persistent(*self._take(1)),
    "MEMOIZE": lambda self, _: self._put(len(self._memo)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _GET),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _PUT),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), _EXTENSION),
}
#: They push their argument.
_PLAIN = {
    opcode.name
    for opcode in pickletools.opcodes
    if opcode.arg is not None and not opcode.stack_before and len(opcode.stack_after) == 1
} - set(_ACTS)


def plain(pickled: bytes) -> Any:
    """What is in a pickle of plain values, as a transaction's extension. ValueError for any other."""
    try:
        return _Plain().values_of(Reader(pickled, _refuse).load())
    except ValueError as error:
        raise ValueError(f"not a pickle of plain values: {error}") from None


def _refuse(reference: object) -> None:
    raise ValueError("it refers to an object")


class _Plain:
    def __init__(self) -> None:
        self._left = MOST_VALUES

    def values_of(self, value: Any, depth: int = 0) -> Any:
        self._left -= 1
        if depth > MOST_DEPTH or self._left < 0:
            raise ValueError("too many values, or too deeply nested")
        match value:
            case Global():
                raise ValueError(f"it names {value.path}")
            case Pairs():
                return {self._key(key): self.values_of(each, depth + 1) for key, each in value}
            case list():
                return [self.values_of(each, depth + 1) for each in value]
            case tuple():
                return tuple(self.values_of(each, depth + 1) for each in value)
            case int() if value.bit_length() > _MOST_BITS:
                raise ValueError("a number of too many digits")
            case None | bool() | int() | float() | str() | bytes():
                return value
        raise ValueError("an object is in it")

    def _key(self, key: Any) -> Any:
        found = self.values_of(key, MOST_DEPTH - 4)
        try:
            hash(found)
        except TypeError:
            raise ValueError("a key that can be none") from None
        return found
