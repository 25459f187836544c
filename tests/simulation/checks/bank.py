"""Jepsen's bank: transfers between accounts leave the sum as it is, in every snapshot and after every commit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.simulation.checks.errors import Broken
from tests.simulation.checks.index import name, show
from tests.simulation.history import Committed, History, Read

Parse = Callable[[bytes], int]


def amount(data: bytes) -> int:
    """The decimal number before an optional b"|" and what follows it."""
    return int(data.split(b"|", 1)[0])


def check(
    history: History, truth: Sequence[Committed], accounts: Sequence[bytes], total: int, parse: Parse = amount
) -> None:
    """Holds from the first tid at which all accounts exist."""
    if not accounts:
        return
    start = check_truth(truth, frozenset(accounts), total, parse)
    for read in history.reads():
        if all(oid in read.values for oid in accounts):
            check_read(read, accounts, total, parse, start)


def check_truth(
    truth: Sequence[Committed], accounts: frozenset[bytes], total: int, parse: Parse = amount
) -> bytes | None:
    """The tid at which the last account was created; None if that never was."""
    balances: dict[bytes, int] = {}
    held, start = 0, None
    for each in truth:
        changed = accounts & each.records.keys()
        for oid in changed:
            balance = parsed(each.records[oid] or b"", parse, f"tid {each.tid.hex()}", oid)
            held += balance - balances.get(oid, 0)
            balances[oid] = balance
        if len(balances) < len(accounts) or not changed:
            continue
        start = start or each.tid
        if held != total:
            raise Broken(f"the accounts hold {held} after tid {each.tid.hex()}, not {total}")
    return start


def check_read(read: Read, accounts: Sequence[bytes], total: int, parse: Parse, start: bytes | None) -> None:
    held = 0
    for oid in accounts:
        value = read.values[oid]
        if value is None:
            if start is None or read.snapshot < start:
                return
            raise Broken(f"{name(read)} saw no account {oid.hex()}; all exist since tid {start.hex()}")
        held += parsed(value[0], parse, name(read), oid)
    if held != total:
        seen = ", ".join(f"{oid.hex()}: {show(read.values[oid])}" for oid in accounts)
        raise Broken(f"{name(read)} saw accounts that hold {held}, not {total}: {seen}")


def parsed(data: bytes, parse: Parse, where: str, oid: bytes) -> int:
    try:
        return parse(data)
    except ValueError:
        raise Broken(f"account {oid.hex()} holds no number at {where}: {data!r}") from None
