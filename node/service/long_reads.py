"""Reads that take more than one turn of the loop: generators that yield after a few milliseconds of work each."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator

from raftstorage.node.engine.api import Engine, Packed, Position, add_page
from raftstorage.node.engine.references import scan
from raftstorage.node.failures import failed
from raftstorage.proto import storage_pb2 as pb

#: Returns the answer.
Steps = Generator[None, None, pb.Event]

PAGE_BYTES = 1 << 20
MAX_PAGE_BYTES = 16 << 20
#: How much of that is read before the loop has its turn again.
SLICE_BYTES = 1 << 20
#: A larger record is not brought along by others.
LARGE_BYTES = 256 << 10
#: Objects that are looked up in one turn.
TURN = 64


def missing(oid: bytes) -> pb.Event:
    return failed(pb.NO_SUCH_OBJECT, "no such object or revision", oid)


def packed_away(error: Packed, oid: bytes = b"") -> pb.Event:
    event = failed(pb.PACKED, "what was asked for was packed away", oid)
    event.failure.serial = error.packed
    return event


def history(engine: Engine, asked: pb.History) -> Steps:
    try:
        revisions, more = engine.history(asked.oid, asked.size)
    except KeyError:
        return missing(asked.oid)
    size = sum(each.ByteSize() for each in revisions)
    while more and len(revisions) < asked.size and size < MAX_PAGE_BYTES:
        yield
        try:
            page, more = engine.history(asked.oid, asked.size - len(revisions), revisions[-1].tid)
        except KeyError:  # packed away since
            break
        revisions += page
        size += sum(each.ByteSize() for each in page)
    return pb.Event(history=pb.HistoryReply(revisions=revisions))


def transactions(engine: Engine, asked: pb.ReadTransactions) -> Steps:
    left = min(asked.max_bytes or PAGE_BYTES, MAX_PAGE_BYTES)
    found: list[pb.CommittedTransaction] = []
    position: Position | None = Position(asked.start.rjust(8, b"\0"))
    while position is not None and (left > 0 or position.skip > 0):
        tid, skip = position
        size = SLICE_BYTES if skip > 0 else min(max(left, 0), SLICE_BYTES)
        page, after = engine.transactions(tid, asked.stop or None, size, skip)
        if skip > 0 and len(page) > 1:  # the end of one that may be too large already, and others
            page, after = page[:1], Position(page[1].tid)
        left -= sum(each.ByteSize() for each in page)
        too_large = left < 0 or (after is not None and after.skip > 0)
        if too_large and found and page and skip <= 0:
            break  # it begins the next answer: more than was asked for is answered only when it is one
        add_page(found, page, skip)
        position = after
        if position is not None:
            yield
    return pb.Event(transactions=pb.Transactions(transactions=found, more=position is not None))


def transaction_log(engine: Engine, asked: pb.TransactionLog) -> Steps:
    found: list[pb.CommittedTransaction] = []
    size, before = 0, asked.before
    while True:
        page, before = engine.transaction_log(before, asked.count - len(found))
        found += page
        size += sum(each.ByteSize() for each in page)
        whole = len(before) <= 8  # else it breaks off within a transaction
        if not before or (whole and (len(found) >= asked.count or size >= PAGE_BYTES)):
            break
        yield
    return pb.Event(heads=pb.TransactionHeads(transactions=found, before=before, packed=engine.packed))


def current_records(engine: Engine, asked: pb.CurrentRecords) -> Steps:
    left = min(asked.max_bytes or PAGE_BYTES, MAX_PAGE_BYTES)
    found: list[pb.FoundRecord] = []
    start = asked.start
    while True:
        try:
            page, start = engine.current_page(start, asked.before, min(left, SLICE_BYTES))
        except Packed as error:
            return packed_away(error)
        size = sum(each.ByteSize() + 5 for each in page)
        if found and size > left:
            start = page[0].oid
            break
        found += page
        left -= size
        if not start or left <= 0:
            break
        yield
    return pb.Event(current=pb.CurrentPage(records=found, next=start))


def load_many(engine: Engine, asked: pb.LoadMany) -> Steps:
    answer = pb.Records()
    wanted = deque(asked.oids)
    known = set(wanted)
    size = looked = 0
    while wanted:
        if looked == TURN:
            looked = 0
            yield
        looked += 1
        oid = wanted.popleft()
        try:
            revision = engine.load_before(oid, asked.before, LARGE_BYTES)
        except (KeyError, Packed):
            continue
        if revision is None or revision.data is None:
            continue
        size += len(revision.data) + 60
        if size > PAGE_BYTES:
            break
        looked += len(revision.data) >> 13
        record = pb.Record(data=revision.data, serial=revision.serial, next_serial=revision.next_serial or b"")
        answer.records.add(oid=oid, record=record)
        if len(answer.records) + len(wanted) < asked.follow:
            yield from _follow(revision.data, asked.follow - len(answer.records), wanted, known)
    return pb.Event(records=answer)


def _follow(data: bytes, most: int, wanted: deque[bytes], known: set[bytes]) -> Generator[None, None, None]:
    """Adds what `data` refers to, if it is a ZODB record, up to `most` wanted."""
    found: list[bytes] = []
    try:
        yield from scan(data, found)
    except ValueError:
        return
    for oid in found:
        if len(wanted) >= most:
            return
        if oid not in known:
            known.add(oid)
            wanted.append(oid)
