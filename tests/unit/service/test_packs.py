"""Packs and reads of many records, as clients ask for them."""

from __future__ import annotations

from typing import Any

from raftstorage.node.engine.api import Z64
from raftstorage.node.raft.types import NotLeader, Role
from raftstorage.node.service.long_reads import LARGE_BYTES
from raftstorage.node.tids import timestamp_tid
from raftstorage.proto import HISTORY_LEVEL
from raftstorage.proto import storage_pb2 as pb

from tests.unit.node.packing_node import record
from tests.unit.service.session_world import Client, World, oid, run, world

PACK = b"a pack of today."
LAST = b"\xff" * 8


async def write(client: Client, identity: int, objects: dict[int, bytes | None], bases: dict[int, bytes]) -> bytes:
    """Commits the data of each object; None deletes it. Keeps the serials in `bases`; returns the tid."""
    transaction = pb.Transaction(user=b"user %d" % identity)
    for number, data in objects.items():
        added = transaction.records.add(oid=oid(number), base_serial=bases.get(number, Z64), no_data=data is None)
        added.data = data or b""
    body = transaction.SerializeToString()
    answer = await client.ask(commit=pb.Commit(transaction_id=bytes([identity]) * 16, transaction=body))
    assert answer.HasField("committed"), answer
    bases.update(dict.fromkeys(objects, answer.committed.tid))
    return answer.committed.tid


async def done(client: Client) -> pb.PackState:
    while (state := (await client.ask(pack_progress=pb.PackProgress())).pack).phase != "done":
        pass  # each answer is a turn of the loop or more
    return state


async def greeted(it: World, **hello: Any) -> Client:
    client = it.connect()
    await client.hello(**hello)
    return client


def at_level_2() -> Any:
    return world(level=lambda: HISTORY_LEVEL)


@run
async def test_a_pack_from_its_order_to_its_end() -> None:
    async with at_level_2() as it:
        it.driver.ready()
        client = await greeted(it)
        bases: dict[int, bytes] = {}
        first = await write(client, 1, {0: record(1), 1: record(), 2: record(), 3: record()}, bases)
        await write(client, 2, {1: record(), 3: None}, bases)
        last = await write(client, 3, {0: record(1)}, bases)
        future = pb.Pack(pack_id=PACK, tid=timestamp_tid(4e9), collect=True)
        assert (await client.ask(pack=future)).failure.reason == pb.INVALID
        order = pb.Pack(pack_id=PACK, tid=last, collect=True)
        state = (await client.ask(pack=order)).pack
        assert (state.pack_id, state.tid, state.collect) == (PACK, last, True)
        state = await done(client)
        assert (state.removed_records, state.removed_objects) == (5, 1)
        assert (await client.ask(pack=order)).pack == state
        assert (await client.ask(size=pb.Size())).size.packed == last
        assert (await client.ask(size=pb.Size())).size.objects == 2
        away = (await client.ask(load_before=pb.LoadBefore(oid=oid(1), before=bases[1]))).failure
        assert (away.reason, away.serial) == (pb.PACKED, last)
        gone = (await client.ask(load_serial=pb.LoadSerial(oid=oid(1), serial=first))).failure
        assert gone.reason == pb.NO_SUCH_OBJECT
        gone = (await client.ask(load_before=pb.LoadBefore(oid=oid(2), before=LAST))).failure
        assert gone.reason == pb.NO_SUCH_OBJECT
        pages = (await client.ask(read_transactions=pb.ReadTransactions())).transactions.transactions
        assert [(each.status, [r.oid for r in each.records]) for each in pages] == [
            (b"p", [oid(1)]),
            (b"p", [oid(0)]),
        ]
        other = await it.connect().hello()
        assert other.welcome.packed == last


@run
async def test_who_may_pack() -> None:
    async with world(level=lambda: 1) as it:
        client = await greeted(it)
        order = pb.Pack(pack_id=PACK, tid=oid(1))
        assert (await client.ask(pack=order)).failure.reason == pb.UNSUPPORTED
        reader = await greeted(it, read_only=True)
        assert (await reader.ask(pack=order)).failure.reason == pb.READ_ONLY
        assert (await reader.ask(pack_progress=pb.PackProgress())).pack == pb.PackState()
        for bad in (pb.Pack(pack_id=b"short", tid=oid(1)), pb.Pack(pack_id=PACK, tid=Z64), pb.Pack(pack_id=PACK)):
            assert (await client.ask(pack=bad)).failure.reason == pb.INVALID
        it.driver.become(Role.FOLLOWER, 2)
        assert (await client.ask(pack=order)).failure.reason == pb.NOT_LEADER


@run
async def test_a_follower_removes_too() -> None:
    async with at_level_2() as it:
        client = await greeted(it)
        bases: dict[int, bytes] = {}
        for identity in range(1, 5):
            tid = await write(client, identity, {0: record(), 1: record()}, bases)
        it.driver.become(Role.FOLLOWER, 2)
        it.driver._log.append(pb.Command(pack=pb.PackCommand(pack_id=PACK, tid=tid)).SerializeToString())
        it.driver.apply()
        state = await done(client)
        assert state.removed_records == 6
        assert len(list(it.driver.engine._store.scan("records", b""))) == 2


@run
async def test_garbage_is_found_though_the_log_takes_nothing_for_a_while() -> None:
    """Leadership is being handed over, and stays; nobody writes anything."""
    async with at_level_2() as it:
        it.driver.ready()
        client = await greeted(it)
        tid = await write(client, 1, {0: record(), 5: record()}, {})
        packer = it.service._packs.packer
        propose, refused = packer._propose, []

        def handing_over(data: bytes) -> int:
            if pb.Command.FromString(data).HasField("collect") and len(refused) < 3:
                refused.append(data)
                raise NotLeader("handing leadership over")
            return propose(data)

        packer._propose = handing_over
        await client.ask(pack=pb.Pack(pack_id=PACK, tid=tid, collect=True))
        assert (await done(client)).removed_objects == 1
        assert len(refused) == 3


@run
async def test_others_are_served_while_much_is_removed() -> None:
    """However long it takes, no turn of the loop does."""
    async with at_level_2() as it:
        client = await greeted(it)
        bases: dict[int, bytes] = {}
        for identity in range(1, 9):
            tid = await write(client, identity, {n: record() for n in range(450)}, bases)
        steps = []
        packer = it.service._packs.packer
        real = packer.step

        def step() -> bool:
            steps.append(len(client.seen))
            return real()

        packer.step = step  # type: ignore[method-assign]
        await client.ask(pack=pb.Pack(pack_id=PACK, tid=tid))
        await done(client)
        assert len(steps) > 100
        assert len(set(steps)) > 5  # answers came in between


@run
async def test_deletes_and_undo_need_the_level() -> None:
    level = 1
    async with world(level=lambda: level) as it:
        client = await greeted(it)
        bases: dict[int, bytes] = {}
        first = await write(client, 1, {0: b"one"}, bases)
        last = await write(client, 2, {0: b"two"}, bases)

        async def ask(**fields: Any) -> pb.Event:
            body = pb.Transaction(records=[pb.NewRecord(oid=oid(0), **fields)]).SerializeToString()
            vote = pb.Vote(transaction_id=b"v" * 16, transaction=body)
            answer = await client.ask(vote=vote)
            await client.ask(abort=pb.Abort(transaction_id=b"v" * 16))
            return answer

        undo = {"base_serial": last, "data": b"one", "data_tid": first}
        delete = {"base_serial": last, "no_data": True}
        assert (await ask(**undo)).failure.reason == pb.UNSUPPORTED
        assert (await ask(**delete)).failure.reason == pb.UNSUPPORTED
        level = HISTORY_LEVEL
        assert (await ask(**undo)).HasField("vote")
        assert (await ask(**delete)).HasField("vote")
        assert (await ask(no_data=True)).failure.reason == pb.INVALID
        assert (await ask(no_data=True, base_serial=Z64)).failure.reason == pb.INVALID
        assert (await ask(no_data=True, base_serial=last, data=b"x")).failure.reason == pb.INVALID
        tid = await write(client, 3, {0: None}, bases)
        gone = (await client.ask(load_before=pb.LoadBefore(oid=oid(0), before=LAST))).failure
        assert gone.reason == pb.NO_SUCH_OBJECT
        history = (await client.ask(history=pb.History(oid=oid(0), size=9))).history.revisions
        assert [(each.tid, each.no_data, each.size) for each in history] == [
            (tid, True, 0),
            (last, False, 3),
            (first, False, 3),
        ]
        body = pb.Transaction(records=[pb.NewRecord(oid=oid(0), base_serial=first, data=b"x")]).SerializeToString()
        conflict = await client.ask(vote=pb.Vote(transaction_id=b"w" * 16, transaction=body))
        assert (conflict.vote.conflicts[0].serial, conflict.vote.conflicts[0].data) == (tid, b"")


# ---- many records --------------------------------------------------------------------------------------------


def oids_of(event: pb.Event) -> list[int]:
    found = event.records.records or event.current.records
    return [int.from_bytes(each.oid, "big") for each in found]


@run
async def test_many_records_and_what_they_refer_to() -> None:
    async with at_level_2() as it:
        client = await greeted(it)
        bases: dict[int, bytes] = {}
        tid = await write(
            client,
            1,
            {0: record(2, 1, 2), 1: record(3), 2: record(0, 4, 99), 3: b"no pickle", 4: record(5), 5: record()},
            bases,
        )
        await write(client, 2, {4: record()}, bases)

        async def ask(*numbers: int, follow: int = 0, before: bytes = LAST) -> list[int]:
            many = pb.LoadMany(oids=map(oid, numbers), before=before, follow=follow)
            return oids_of(await client.ask(load_many=many))

        assert await ask(4, 99, 1) == [4, 1]
        assert await ask(4, before=tid) == []
        assert await ask(0, follow=1) == [0]
        assert await ask(0, follow=100) == [0, 2, 1, 4, 3]
        assert await ask(0, follow=3) == [0, 2, 1]
        assert await ask(4, follow=9, before=bases[4]) == [4, 5]
        assert await ask(4, follow=9) == [4]
        asked = await client.ask(load_many=pb.LoadMany(oids=[oid(4)], before=bases[4]))
        found = asked.records.records[0].record
        assert (found.data, found.serial, found.next_serial) == (record(5), tid, bases[4])
        for bad in (
            pb.LoadMany(oids=[], before=LAST),
            pb.LoadMany(oids=[b"short"], before=LAST),
            pb.LoadMany(oids=[oid(1)] * 1001, before=LAST),
            pb.LoadMany(oids=[oid(1)]),
            pb.LoadMany(oids=[oid(1)], before=LAST, follow=10_001),
        ):
            assert (await client.ask(load_many=bad)).failure.reason == pb.INVALID
        late = pb.LoadMany(oids=[oid(1)], before=LAST, at_least=LAST)
        assert (await client.ask(load_many=late)).failure.reason == pb.LAGGING


@run
async def test_what_is_large_is_left_out() -> None:
    async with at_level_2() as it:
        client = await greeted(it)
        bases: dict[int, bytes] = {}
        await write(client, 1, {0: record(*range(1, 12)), 1: b"x" * (LARGE_BYTES + 1)}, bases)
        for number in range(2, 12):
            await write(client, number, {number: b"x" * (100 << 10)}, bases)
        answer = await client.ask(load_many=pb.LoadMany(oids=[oid(0)], before=LAST, follow=100))
        assert oids_of(answer) == [0, *range(2, 12)]
        await write(client, 12, {2: b"x" * (150 << 10)}, bases)
        answer = await client.ask(load_many=pb.LoadMany(oids=[oid(0)], before=LAST, follow=100))
        assert oids_of(answer) == [0, *range(2, 11)]
        assert answer.ByteSize() <= 1 << 20


@run
async def test_all_current_records_page_by_page() -> None:
    async with at_level_2() as it:
        client = await greeted(it)
        bases: dict[int, bytes] = {}
        for begin in range(0, 1500, 500):
            tid = await write(client, begin // 500 + 1, {n: b"%d" % n for n in range(begin, begin + 500)}, bases)
        await write(client, 9, {7: b"changed", 8: None, 2000: b"new"}, bases)

        async def ask(before: bytes, most: int) -> tuple[dict[int, bytes], int]:
            found: dict[int, bytes] = {}
            start, pages = b"", 0
            while True:
                asked = pb.CurrentRecords(start=start, before=before, max_bytes=most)
                page = (await client.ask(current_records=asked)).current
                assert page.records and page.ByteSize() <= max(most, 70)
                found |= {int.from_bytes(each.oid, "big"): each.record.data for each in page.records}
                pages += 1
                start = page.next
                if not start:
                    return found, pages

        expected = {n: b"%d" % n for n in range(1500)} | {7: b"changed", 2000: b"new"}
        del expected[8]
        assert await ask(b"", 1 << 20) == (expected, 1)
        found, pages = await ask(b"", 5000)
        assert found == expected and pages >= 10
        assert (await ask(bases[7], 1 << 20))[0] == {n: b"%d" % n for n in range(1500)}
        await client.ask(pack=pb.Pack(pack_id=PACK, tid=tid))
        before = (await client.ask(current_records=pb.CurrentRecords(before=tid))).failure
        assert (before.reason, before.serial) == (pb.PACKED, tid)
        assert (await ask(bases[7], 1 << 20))[0] == {n: b"%d" % n for n in range(1500)}
        bad = pb.CurrentRecords(start=b"short")
        assert (await client.ask(current_records=bad)).failure.reason == pb.INVALID


@run
async def test_the_log_of_transactions() -> None:
    async with at_level_2() as it:
        client = await greeted(it)
        bases: dict[int, bytes] = {}
        tids = [await write(client, n, {0: record(), n: record()}, bases) for n in range(1, 8)]
        tids.append(await write(client, 8, {1: None}, bases))

        async def ask(count: int, before: bytes = b"") -> pb.TransactionHeads:
            return (await client.ask(transaction_log=pb.TransactionLog(count=count, before=before))).heads

        heads = await ask(3)
        assert [each.tid for each in heads.transactions] == tids[:-4:-1]
        assert heads.before == tids[-3] and heads.packed == b""
        assert (heads.transactions[0].user, list(heads.transactions[0].records)) == (b"user 8", [])
        heads = await ask(10_000, heads.before)
        assert ([each.tid for each in heads.transactions], heads.before) == (tids[-4::-1], b"")
        await client.ask(pack=pb.Pack(pack_id=PACK, tid=tids[-1]))
        for _ in range(2):
            heads = await ask(100)
            assert [(each.tid, each.status) for each in heads.transactions] == [(t, b"p") for t in tids[-2:0:-1]]
            assert heads.packed == tids[-1]
            await done(client)
        for bad in (pb.TransactionLog(), pb.TransactionLog(count=10_001), pb.TransactionLog(count=1, before=b"1")):
            assert (await client.ask(transaction_log=bad)).failure.reason == pb.INVALID
