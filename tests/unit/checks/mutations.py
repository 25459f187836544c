"""Single mistakes in a good history of the model, each of which some check must notice.

A mutation changes the events or the truth in place; False: this history has no place for it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from tests.simulation.history import Commit, Committed, Event, Opened, Read, Told
from tests.unit.checks.histories import ACCOUNTS, FIRST, LISTS, REGISTERS, word

Events = list[Event]
Truth = list[Committed]
Mutation = Callable[[random.Random, Events, Truth], bool]


def places(events: Sequence[Event], good: Callable[[Event], bool]) -> list[int]:
    return [place for place, event in enumerate(events) if good(event)]


def change(
    rng: random.Random, events: Events, good: Callable[[Event], bool], do: Callable[[Event], Event]
) -> bool:
    """Replaces one event that is `good`."""
    found = places(events, good)
    if found:
        place = rng.choice(found)
        events[place] = do(events[place])
    return bool(found)


def is_told(event: Event) -> bool:
    return isinstance(event, Told)


def acknowledged(event: Event) -> bool:
    return isinstance(event, Commit) and event.outcome == "acknowledged"


def neighbours(events: Events) -> list[tuple[int, int]]:
    """Places of what the same client was told one after the other, without opening between."""
    found, last = [], dict[int, int]()
    for place, event in enumerate(events):
        if isinstance(event, Told):
            if event.client in last:
                found.append((last[event.client], place))
            last[event.client] = place
    return found


# ---- what was told -------------------------------------------------------------------------------------


def skip_told(rng: random.Random, events: Events, truth: Truth) -> bool:
    pairs = neighbours(events)
    if pairs:
        del events[rng.choice(pairs)[0]]
    return bool(pairs)


def swap_told(rng: random.Random, events: Events, truth: Truth) -> bool:
    pairs = neighbours(events)
    if pairs:
        one, other = rng.choice(pairs)
        events[one], events[other] = events[other], events[one]
    return bool(pairs)


def double_told(rng: random.Random, events: Events, truth: Truth) -> bool:
    found = places(events, is_told)
    if found:
        place = rng.choice(found)
        events.insert(place, events[place])
    return bool(found)


def tell_less(rng: random.Random, events: Events, truth: Truth) -> bool:
    def do(event: Event) -> Event:
        assert isinstance(event, Told)
        return replace(event, oids=event.oids[1:])

    return change(rng, events, is_told, do)


def tell_more(rng: random.Random, events: Events, truth: Truth) -> bool:
    def do(event: Event) -> Event:
        assert isinstance(event, Told)
        return replace(event, oids=(*event.oids, word(99)))

    return change(rng, events, is_told, do)


def tell_of_nothing(rng: random.Random, events: Events, truth: Truth) -> bool:
    def do(event: Event) -> Event:
        assert isinstance(event, Told)
        return replace(event, tid=word(int.from_bytes(event.tid) + 1000))

    return change(rng, events, is_told, do)


# ---- reads ---------------------------------------------------------------------------------------------


def other_value(rng: random.Random, events: Events, truth: Truth) -> bool:
    """Other data, another serial, nothing where something was or the reverse."""

    def do(event: Event) -> Event:
        assert isinstance(event, Read)
        oid = rng.choice(list(event.values))
        seen = event.values[oid]
        kinds = (
            [None, (b"0|x", seen[1]), (seen[0], word(int.from_bytes(seen[1]) + 1))] if seen else [(b"0", word(1))]
        )
        return replace(event, values={**event.values, oid: rng.choice(kinds)})

    return change(rng, events, lambda event: isinstance(event, Read), do)


def other_snapshot(rng: random.Random, events: Events, truth: Truth) -> bool:
    """While the others of the model read, the client is told of nothing: there is one right snapshot."""

    def do(event: Event) -> Event:
        assert isinstance(event, Read)
        return replace(event, snapshot=rng.choice([each.tid for each in truth if each.tid != event.snapshot]))

    def good(event: Event) -> bool:
        return isinstance(event, Read) and not event.linearizable

    return len(truth) > 1 and change(rng, events, good, do)


def split_snapshot(rng: random.Random, events: Events, truth: Truth) -> bool:
    """One value of a read is that of an earlier snapshot: read skew."""
    found = []
    for place, event in enumerate(events):
        if isinstance(event, Read):
            for oid, seen in event.values.items():
                if seen is not None:
                    found += [(place, oid, each) for each in truth if oid in each.records and each.tid < seen[1]]
    if found:
        place, oid, each = rng.choice(found)
        event = events[place]
        assert isinstance(event, Read)
        events[place] = replace(event, values={**event.values, oid: (each.records[oid] or b"", each.tid)})
    return bool(found)


def claim_linearizable(rng: random.Random, events: Events, truth: Truth) -> bool:
    """A stale read says that it is none."""
    commits = [event for event in events if isinstance(event, Commit) and event.outcome == "acknowledged"]

    def stale(event: Event) -> bool:
        return isinstance(event, Read) and any(
            commit.ended is not None and commit.ended < event.begun and (commit.tid or b"") > event.snapshot
            for commit in commits
        )

    def do(event: Event) -> Event:
        assert isinstance(event, Read)
        return replace(event, linearizable=True)

    return change(rng, events, stale, do)


# ---- commits -------------------------------------------------------------------------------------------


def deny_commit(rng: random.Random, events: Events, truth: Truth) -> bool:
    """It was committed, but its client is told that it was refused."""

    def do(event: Event) -> Event:
        assert isinstance(event, Commit)
        return replace(event, outcome="refused", tid=None)

    return change(rng, events, acknowledged, do)


def claim_commit(rng: random.Random, events: Events, truth: Truth) -> bool:
    """It was refused, but its client is told that it was committed."""

    def do(event: Event) -> Event:
        assert isinstance(event, Commit)
        return replace(event, outcome="acknowledged", tid=word(int.from_bytes(truth[-1].tid) + 1))

    return change(rng, events, lambda event: isinstance(event, Commit) and event.outcome == "refused", do)


def other_tid(rng: random.Random, events: Events, truth: Truth) -> bool:
    def do(event: Event) -> Event:
        assert isinstance(event, Commit)
        return replace(event, tid=rng.choice([each.tid for each in truth if each.tid != event.tid]))

    return change(rng, events, acknowledged, do)


def other_base(rng: random.Random, events: Events, truth: Truth) -> bool:
    def do(event: Event) -> Event:
        assert isinstance(event, Commit)
        oid = rng.choice(list(event.bases))
        return replace(event, bases={**event.bases, oid: word(int.from_bytes(event.bases[oid]) + 1)})

    return change(rng, events, acknowledged, do)


def other_check(rng: random.Random, events: Events, truth: Truth) -> bool:
    def do(event: Event) -> Event:
        assert isinstance(event, Commit)
        oid = rng.choice(list(event.checks))
        return replace(event, checks={**event.checks, oid: word(int.from_bytes(event.checks[oid]) + 1)})

    return change(
        rng, events, lambda event: isinstance(event, Commit) and acknowledged(event) and event.checks != {}, do
    )


def commit_later(rng: random.Random, events: Events, truth: Truth) -> bool:
    """It began after a commit with a higher tid had ended."""
    end = max([event.ended or 0.0 for event in events if isinstance(event, Commit)], default=0.0)
    last = max([event.tid or b"" for event in events if isinstance(event, Commit)], default=b"")

    def do(event: Event) -> Event:
        assert isinstance(event, Commit)
        return replace(event, begun=end + 1, ended=end + 2)

    return change(
        rng, events, lambda event: isinstance(event, Commit) and acknowledged(event) and event.tid != last, do
    )


def forget_commit(rng: random.Random, events: Events, truth: Truth) -> bool:
    """It is in the truth, but nobody made it."""
    found = places(events, acknowledged)
    if found:
        del events[rng.choice(found)]
    return bool(found)


def open_nowhere(rng: random.Random, events: Events, truth: Truth) -> bool:
    def do(event: Event) -> Event:
        assert isinstance(event, Opened)
        return replace(event, tid=word(int.from_bytes(truth[-1].tid) + 1000))

    return change(rng, events, lambda event: isinstance(event, Opened), do)


# ---- the truth -----------------------------------------------------------------------------------------


def of_commits(events: Events, truth: Truth) -> list[int]:
    """Places in the truth of acknowledged commits."""
    known = {event.identity for event in events if isinstance(event, Commit) and event.outcome == "acknowledged"}
    return [place for place, each in enumerate(truth) if each.identity in known]


def lose(rng: random.Random, events: Events, truth: Truth) -> bool:
    found = of_commits(events, truth)
    if found:
        del truth[rng.choice(found)]
    return bool(found)


def halve(rng: random.Random, events: Events, truth: Truth) -> bool:
    found = of_commits(events, truth)
    if found:
        place = rng.choice(found)
        records = dict(truth[place].records)
        del records[rng.choice(list(records))]
        truth[place] = replace(truth[place], records=records)
    return bool(found)


def alter(rng: random.Random, events: Events, truth: Truth) -> bool:
    """In any transaction of a client, acknowledged or not."""
    found = [place for place, each in enumerate(truth) if each.tid != FIRST]
    if found:
        place = rng.choice(found)
        oid = rng.choice(list(truth[place].records))
        truth[place] = replace(truth[place], records={**truth[place].records, oid: b"7"})
    return bool(found)


def double(rng: random.Random, events: Events, truth: Truth) -> bool:
    found = [each for each in truth if each.tid != FIRST]
    if found:
        truth.append(replace(rng.choice(found), tid=word(int.from_bytes(truth[-1].tid) + 1)))
    return bool(found)


def swap(rng: random.Random, events: Events, truth: Truth) -> bool:
    if len(truth) > 1:
        place = rng.randrange(len(truth) - 1)
        truth[place], truth[place + 1] = truth[place + 1], truth[place]
    return len(truth) > 1


def resurrect(rng: random.Random, events: Events, truth: Truth) -> bool:
    """A refused commit is committed later."""
    found = [event for event in events if isinstance(event, Commit) and event.outcome == "refused"]
    if found:
        commit = rng.choice(found)
        truth.append(Committed(word(int.from_bytes(truth[-1].tid) + 1), commit.identity, commit.writes))
    return bool(found)


def invent(rng: random.Random, events: Events, truth: Truth) -> bool:
    oid = rng.choice(REGISTERS + ACCOUNTS + LISTS)
    truth.append(Committed(word(int.from_bytes(truth[-1].tid) + 1), b"nobody's", {oid: b"10"}))
    return True


MUTATIONS: tuple[Mutation, ...] = (
    skip_told, swap_told, double_told, tell_less, tell_more, tell_of_nothing, other_value, other_snapshot,
    split_snapshot, claim_linearizable, deny_commit, claim_commit, other_tid, other_base, other_check,
    commit_later, forget_commit, open_nowhere, lose, halve, alter, double, swap, resurrect, invent,
)  # fmt: skip
