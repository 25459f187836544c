"""A small bank that shows every stale or mixed snapshot: each transaction says in one place what it changed where.

The clock has the number of the newest transaction, the numbers of the last ones in a row, and for each account the
number of the transaction that changed it last, which the account has, too. The sum of all balances never changes.
"""

from __future__ import annotations

import random
from typing import Any

from persistent import Persistent
from persistent.list import PersistentList

ACCOUNTS = 40
STONES = 100
TOTAL = ACCOUNTS * 100
RECENT = 50


class Broken(AssertionError):
    """What was read in one transaction is no state that the bank ever had."""


class Account(Persistent):
    def __init__(self) -> None:
        self.balance = TOTAL // ACCOUNTS
        self.number = 0


class Clock(Persistent):
    def __init__(self) -> None:
        self.number = 0
        self.numbers = [0] * ACCOUNTS
        self.recent = [0]


class Stone(Persistent):
    """Never changes."""

    def __init__(self, number: int) -> None:
        self.data = bytes([number]) * 200


def found(root: Any) -> None:
    root["clock"] = Clock()
    root["accounts"] = PersistentList(Account() for _ in range(ACCOUNTS))
    root["stones"] = PersistentList(Stone(number) for number in range(STONES))


def look(root: Any, rng: random.Random) -> int:
    """The number of the newest transaction in this snapshot, all of which is read in some order. Broken."""
    clock, accounts = root["clock"], root["accounts"]
    for one in rng.sample([clock, *accounts], 1 + ACCOUNTS):
        one._p_activate()
    numbers = [account.number for account in accounts]
    if numbers != clock.numbers:
        wrong = [i for i in range(ACCOUNTS) if numbers[i] != clock.numbers[i]]
        told = ", ".join(f"account {i} is of {numbers[i]}, not {clock.numbers[i]}" for i in wrong)
        raise Broken(f"at transaction {clock.number}: {told}")
    total = sum(account.balance for account in accounts)
    if total != TOTAL:
        raise Broken(f"at transaction {clock.number}: the balances are {total} together, not {TOTAL}")
    last = clock.number
    if clock.recent != list(range(last - len(clock.recent) + 1, last + 1)):
        raise Broken(f"at transaction {last}: the last ones were {clock.recent}")
    return int(last)


def lift(root: Any) -> None:
    """Reads all stones."""
    for number, stone in enumerate(root["stones"]):
        if stone.data != bytes([number]) * 200:
            raise Broken(f"stone {number} is another one")


def move(root: Any, rng: random.Random) -> int:
    """Moves money between two accounts; this transaction's number."""
    clock, accounts = root["clock"], root["accounts"]
    one, other = rng.sample(range(ACCOUNTS), 2)
    amount = rng.randrange(1, 10)
    clock.number += 1
    clock.recent = [*clock.recent, clock.number][-RECENT:]
    for i, change in ((one, -amount), (other, amount)):
        accounts[i].balance += change
        accounts[i].number = clock.number
        clock.numbers = [*clock.numbers[:i], clock.number, *clock.numbers[i + 1 :]]
    return int(clock.number)
