"""Which objects a record refers to, read off its pickles without making anything that is in them.

zodbpickle's `noload` finds the same in honest records, but it builds tuples and hashes them as keys: ten megabytes
of nested tuples end the process, and five bytes with a high memo index take gigabytes. What a client sends must do
neither. So this reads the opcodes itself and keeps of each value only what a reference can be made of. Nothing is
imported, hashed or nested; time and memory are proportional to the record.
"""

from __future__ import annotations

import codecs
import pickle
from collections.abc import Iterator

#: So many opcodes are read in a turn of `scan`: about 1 ms.
TURN = 5000
#: No pickler nests deeper.
MOST_MARKS = 1 << 16
#: A record is the pickles of the class and of the state.
PICKLES = 2

_LIST = object()
#: An oid, or a tuple that begins with one (it refers to the same); _LIST: as a reference it is a weak one or leads
#: to another database; None: anything else.
_Value = bytes | object | None


def references(data: bytes) -> list[bytes]:
    """Oids of the persistent references in a record, in order, as often as they are there.

    Weak references and those to other databases are left out, as `ZODB.serialize.referencesf` does. ValueError: it
    is no ZODB record.
    """
    found: list[bytes] = []
    for _ in scan(data, found):
        pass
    return found


def scan(data: bytes, found: list[bytes]) -> Iterator[None]:
    """As `references`, in turns of TURN opcodes; appends to `found`."""
    try:
        yield from _scan(data, found)
    except IndexError:
        raise ValueError("not a ZODB record: it breaks off, or takes what is not there") from None


# ---- opcodes ------------------------------------------------------------------------------------------------


def _table(pairs: dict[bytes, int]) -> dict[int, int]:
    return {code[0]: number for code, number in pairs.items()}


#: Bytes that follow the opcode of a plain value.
_PLAIN = _table(
    {
        pickle.NONE: 0, pickle.NEWTRUE: 0, pickle.NEWFALSE: 0, pickle.EMPTY_DICT: 0, pickle.EMPTY_TUPLE: 0,
        pickle.EMPTY_SET: 0, pickle.BININT: 4, pickle.BININT1: 1, pickle.BININT2: 2, pickle.BINFLOAT: 8,
        pickle.EXT1: 1, pickle.EXT2: 2, pickle.EXT4: 4,
    }
)  # fmt: skip
#: Bytes of the size of bytes or a text that can be an oid, ...
_STRINGS = _table(
    {
        pickle.SHORT_BINSTRING: 1, pickle.BINSTRING: 4, pickle.SHORT_BINBYTES: 1, pickle.BINBYTES: 4,
        pickle.BINBYTES8: 8, pickle.SHORT_BINUNICODE: 1, pickle.BINUNICODE: 4, pickle.BINUNICODE8: 8,
    }
)  # fmt: skip
#: ... and of other values with a size.
_SIZED = _table({pickle.LONG1: 1, pickle.LONG4: 4, pickle.BYTEARRAY8: 8})
#: Lines that make up a value.
_LINES = _table({pickle.INT: 1, pickle.LONG: 1, pickle.FLOAT: 1, pickle.UNICODE: 1, pickle.GLOBAL: 2})
#: How many values become one of which nothing is known.
_REDUCED = _table({pickle.REDUCE: 2, pickle.NEWOBJ: 2, pickle.NEWOBJ_EX: 3, pickle.STACK_GLOBAL: 2})
#: How many values go into the one below them.
_ADDED = _table({pickle.APPEND: 1, pickle.SETITEM: 2, pickle.BUILD: 1})
#: All above the mark go into what is below it.
_ADDED_ALL = frozenset(code[0] for code in (pickle.APPENDS, pickle.SETITEMS, pickle.ADDITEMS, pickle.POP_MARK))
#: All above the mark become one; followed by lines.
_GATHERED = _table({pickle.DICT: 0, pickle.OBJ: 0, pickle.FROZENSET: 0, pickle.INST: 2})
_TUPLES = _table({pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3})
#: Bytes of the memo's index.
_PUTS = _table({pickle.BINPUT: 1, pickle.LONG_BINPUT: 4})
_GETS = _table({pickle.BINGET: 1, pickle.LONG_BINGET: 4})


def _scan(data: bytes, found: list[bytes]) -> Iterator[None]:
    memo: list[_Value] = []
    stack: list[_Value] = []
    marks: list[int] = []
    push = stack.append
    at = pickles = turn = 0
    while pickles < PICKLES:
        turn += 1
        if turn == TURN:
            turn = 0
            yield
        op = data[at]
        at += 1
        if (width := _PUTS.get(op)) is not None:
            _memorize(memo, int.from_bytes(data[at : at + width], "little"), stack[-1], at)
            at += width
        elif (width := _STRINGS.get(op)) is not None:
            size = int.from_bytes(data[at : at + width], "little")
            at += width
            push(data[at : at + 8] if size == 8 else None)
            at += size
        elif (width := _GETS.get(op)) is not None:
            push(memo[int.from_bytes(data[at : at + width], "little")])
            at += width
        elif (size := _PLAIN.get(op, -1)) >= 0:
            push(None)
            at += size
        elif op == 0x28:  # MARK
            if len(marks) == MOST_MARKS:
                raise ValueError("not a ZODB record: nested too deeply")
            marks.append(len(stack))
        elif (number := _TUPLES.get(op, 0)) or op == 0x74:  # TUPLE
            _make_tuple(stack, marks.pop() if not number else len(stack) - number)
        elif op == 0x51:  # BINPERSID
            _refer(stack.pop(), found)
            push(None)
        elif op in _ADDED_ALL:
            _cut(stack, marks.pop())
        elif (number := _ADDED.get(op, 0)) or op == 0x30:  # POP
            if op == 0x30 and marks and marks[-1] == len(stack):
                marks.pop()
            else:
                _cut(stack, len(stack) - (number or 1))
        elif number := _REDUCED.get(op, 0):
            _cut(stack, len(stack) - number)
            push(None)
        elif number := _LINES.get(op, 0):
            at = _behind_lines(data, at, number)
            push(None)
        elif op == 0x5D:  # EMPTY_LIST
            push(_LIST)
        elif op == 0x6C:  # LIST
            _cut(stack, marks.pop())
            push(_LIST)
        elif (number := _GATHERED.get(op, -1)) >= 0:
            _cut(stack, marks.pop())
            at = _behind_lines(data, at, number)
            push(None)
        elif (width := _SIZED.get(op)) is not None:
            at += width + int.from_bytes(data[at : at + width], "little")
            push(None)
        elif op == 0x32:  # DUP
            push(stack[-1])
        elif op == 0x94:  # MEMOIZE
            memo.append(stack[-1])
        elif op == 0x2E:  # STOP
            stack.pop()
            stack.clear()
            marks.clear()
            pickles += 1
        elif op == 0x80:  # PROTO
            at += 1
        elif op == 0x95:  # FRAME
            at += 8
        elif op in b"pgPS":  # PUT, GET, PERSID, STRING: nobody has written them for twenty years
            after = _behind_lines(data, at, 1)
            _old(op, data[at : after - 1] if after - at < 64 else b"", memo, stack, found, at)
            at = after
        else:
            raise ValueError(f"not a ZODB record: opcode {op:#x}")
        if marks and marks[-1] > len(stack):
            raise ValueError("not a ZODB record: more is taken than was given since the mark")


# ---- what they do -------------------------------------------------------------------------------------------


def _memorize(memo: list[_Value], number: int, value: _Value, at: int) -> None:
    if number == len(memo):
        memo.append(value)
    elif number < len(memo):
        memo[number] = value
    elif number <= at:  # who optimizes pickles leaves gaps
        memo += [None] * (number - len(memo))
        memo.append(value)
    else:
        raise ValueError("not a ZODB record: a memo of more values than there were")


def _make_tuple(stack: list[_Value], start: int) -> None:
    """Of all from `start` on."""
    first = stack[start] if 0 <= start < len(stack) else None
    _cut(stack, start)
    stack.append(first if isinstance(first, bytes) else None)


def _cut(stack: list[_Value], start: int) -> None:
    if not 0 <= start <= len(stack):
        raise IndexError
    del stack[start:]


def _refer(value: _Value, found: list[bytes]) -> None:
    if isinstance(value, bytes):
        found.append(value)
    elif value is not _LIST:
        raise ValueError("not a ZODB record: it refers to an object by something that is no oid")


def _behind_lines(data: bytes, at: int, lines: int) -> int:
    for _ in range(lines):
        at = data.find(b"\n", at) + 1
        if at == 0:
            raise IndexError
    return at


def _old(op: int, line: bytes, memo: list[_Value], stack: list[_Value], found: list[bytes], at: int) -> None:
    """Opcodes with a line of text, of up to 63 bytes if it matters."""
    if op == 0x50:  # PERSID
        _refer(line if len(line) == 8 else None, found)
        stack.append(None)
    elif op == 0x53:  # STRING
        value = codecs.escape_decode(line[1:-1])[0]
        stack.append(value if len(value) == 8 else None)
    elif not line.isdigit():
        raise ValueError("not a ZODB record: an index of the memo that is no number")
    elif op == 0x70:  # PUT
        _memorize(memo, int(line), stack[-1], at)
    else:
        stack.append(memo[int(line)])
