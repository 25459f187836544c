"""Packs: what the log says of them, which is the same on every node, and the removal of what nobody sees any more.

A pack takes effect at once: reading leaves out what it made invisible. Removing that from disk is each node's own
affair, a little at a time (`pack_step`), and changes no answer. Garbage that was collected becomes a deletion
where its newest revision was, which is not newer than the pack and so not seen; it goes with the rest.

A removal first goes through the records, an object at a time, older revisions first: at no time may one that was
not seen become the newest. It counts how many records of each transaction went. Then it goes through the
transactions and removes those that have none left. Its own state is written with what it removes.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass, replace

from raftstorage.node.engine.api import Z64, Applied, EngineError, Pack
from raftstorage.node.engine.commits import Commits
from raftstorage.node.engine.kv import Change
from raftstorage.node.engine.layout import Stub, chunk_keys, page_key, read_head, read_stub, seal, unseal
from raftstorage.proto import storage_pb2 as pb

#: Most oids in a CollectCommand.
MAX_COLLECTED = 1000

PACK_KEY = b"pack"
_REMOVAL_KEY = b"removal"
_GONE_KEY = b"gone"

_PACK = struct.Struct(">16s8sBQQ")
_REMOVAL = struct.Struct(">BQQQQQQ")
_COLLECT, _COLLECTED = 1, 2

# Where a removal is.
_RECORDS, _HEADS, _DONE = range(3)


@dataclass
class Removal:
    """`phase`: _RECORDS, _HEADS, _DONE; it goes on at `key`.

    `done`: objects or transactions of this phase. `records`, `size`: removed since this pack. `vanished`: objects
    of which nothing is left, since ever. `fragment`, `pages`: pages of a transaction's oids that go first of all.
    """

    phase: int = _DONE
    done: int = 0
    records: int = 0
    size: int = 0
    vanished: int = 0
    fragment: int = 0
    pages: int = 0
    key: bytes = b""

    def sealed(self) -> bytes:
        numbers = (self.phase, self.done, self.records, self.size, self.vanished, self.fragment, self.pages)
        return seal(_REMOVAL.pack(*numbers) + self.key)

    def again(self) -> Removal:
        """From the beginning, for another pack."""
        return Removal(_RECORDS, vanished=self.vanished, fragment=self.fragment, pages=self.pages)


class Packing(Commits):
    """Applies packs, and removes what they made invisible."""

    _removal: Removal

    # ---- what the log says ---------------------------------------------------------------------------

    @property
    def pack(self) -> Pack:
        """See `api.Engine.pack`."""
        return self._pack

    def _read_packing(self) -> None:
        """After a store was opened."""
        self._pack, self._removal = Pack(), Removal()
        sealed = self._store.get("packing", PACK_KEY)
        if sealed is not None:
            pack_id, tid, flags, objects, size = _PACK.unpack(unseal("packing", PACK_KEY, sealed))
            self._pack = Pack(pack_id, tid, bool(flags & _COLLECT), bool(flags & _COLLECTED), objects, size)
        sealed = self._store.get("packing", _REMOVAL_KEY)
        if sealed is not None:
            value = unseal("packing", _REMOVAL_KEY, sealed)
            self._removal = Removal(*_REMOVAL.unpack_from(value))
            self._removal.key = value[_REMOVAL.size :]

    def _keep(self, pack: Pack, changes: list[Change]) -> None:
        self._pack = pack
        changes.append(("packing", PACK_KEY, _sealed(pack)))

    def _apply_pack(self, index: int, command: pb.PackCommand, changes: list[Change]) -> Applied:
        if len(command.pack_id) != 16 or len(command.tid) != 8:
            return Applied(index, refused="a pack of a bad id or tid")
        tid, before = min(command.tid, self._last_tid), self._pack
        more = tid > before.tid and tid != Z64
        collects = tid == before.tid and command.collect and not before.collect
        if more or collects:
            self._keep(Pack(command.pack_id, tid, command.collect), changes)
            self._removal = self._removal.again()
            changes.append(("packing", _REMOVAL_KEY, self._removal.sealed()))
        return Applied(index, pack=self._pack)

    def _apply_collect(self, index: int, command: pb.CollectCommand, changes: list[Change]) -> Applied:
        pack, joined = self._pack, command.oids
        if not pack.collect or pack.collected or command.pack_id != pack.pack_id:
            return Applied(index, refused="garbage of a pack that is over")
        oids = [joined[at : at + 8] for at in range(0, len(joined), 8)]
        rising = all(a < b for a, b in itertools.pairwise(oids))
        if len(joined) % 8 or len(oids) > MAX_COLLECTED or not rising:
            return Applied(index, refused="malformed garbage")
        objects, size = pack.objects, pack.size
        for oid in oids:
            key = self._newest(oid, self._last_tid)
            if oid == Z64 or key is None or key[8:] > pack.tid:
                continue  # the root, or changed since
            stub = read_stub(key, self._needed("records", key))
            if not stub.no_data:
                objects += 1
                size += stub.size
                emptied = stub.inline if stub.inline is None else b""
                changes.append(("records", key, stub._replace(no_data=True, inline=emptied).sealed()))
        self._keep(replace(pack, collected=command.last, objects=objects, size=size), changes)
        return Applied(index, pack=self._pack)

    # ---- removing ------------------------------------------------------------------------------------

    @property
    def removes(self) -> bool:
        """See `api.Engine.removes`. Garbage first: one way through the records is enough."""
        return self._removal.phase != _DONE and (self._pack.collected or not self._pack.collect)

    def pack_state(self) -> pb.PackState:
        """See `api.Engine.pack_state`."""
        pack, removal = self._pack, self._removal
        if not pack.tid:
            return pb.PackState()
        state = pb.PackState(
            pack_id=pack.pack_id,
            tid=pack.tid,
            collect=pack.collect,
            removed_objects=pack.objects,
            removed_records=removal.records,
            removed_bytes=removal.size + pack.size,
        )
        if pack.collect and not pack.collected:
            state.phase = "marking"
        elif removal.phase == _DONE:
            state.phase = "done"
        else:
            state.phase, state.done = "removing", removal.done
            state.unit = "objects" if removal.phase == _RECORDS else "transactions"
            state.total = max(removal.done, self._objects) if removal.phase == _RECORDS else 0
        return state

    def pack_step(self, budget: int) -> bool:
        """See `api.Engine.pack_step`."""
        if not self.removes:
            return False
        self._counts.clear()  # what it held is written
        removal = replace(self._removal)
        changes: list[Change] = []
        if removal.pages:
            self._remove_pages(removal, budget, changes)
        elif removal.phase == _RECORDS:
            self._remove_records(removal, budget, changes)
        else:
            self._remove_heads(removal, budget, changes)
        changes.append(("packing", _REMOVAL_KEY, removal.sealed()))
        self._store.write(changes)
        self._removal = removal
        return removal.phase != _DONE

    def _remove_records(self, removal: Removal, budget: int, changes: list[Change]) -> None:
        """`removal.key`: of the next record to be looked at, the first one of its object that may have to go."""
        packed = self._pack.tid
        gone: dict[bytes, int] = {}
        held: tuple[bytes, Stub] | None = None  # goes if another one comes that is not newer than the pack
        looked, begin = 0, removal.key
        for key, sealed in self._store.scan("records", begin):
            if held is not None and held[0][:8] != key[:8]:
                self._remove_deletion(*held, removal, gone, changes)
                held = None
            onward = key if held is None else held[0]
            # One of an object is looked at twice. However much the first one is, the next step begins behind it.
            if looked >= max(budget, 2) and onward > begin:
                removal.key = onward
                removal.done -= held is not None
                break
            if key[8:] > packed:
                looked += 1
                if held is not None:
                    self._remove_deletion(*held, removal, gone, changes)
                    held = None
                continue
            stub = read_stub(key, sealed)
            if stub.fragment in self._dropped:
                looked += held is None
                continue
            looked += 1 + stub.chunks // 4
            if held is None:
                removal.done += 1
            else:
                self._remove(*held, removal, gone, changes)
            held = key, stub
        else:
            if held is not None:
                self._remove_deletion(*held, removal, gone, changes)
            removal.phase, removal.key, removal.done = _HEADS, b"", 0
        for tid, count in gone.items():
            changes.append(("packing", _GONE_KEY + tid, seal((self._gone(tid) + count).to_bytes(8, "big"))))

    def _remove_deletion(
        self, key: bytes, stub: Stub, removal: Removal, gone: dict[bytes, int], changes: list[Change]
    ) -> None:
        """The newest one that is not newer than the pack goes if it is a deletion: nothing older is left."""
        if stub.no_data:
            self._remove(key, stub, removal, gone, changes)
            removal.vanished += 1

    def _remove(
        self, key: bytes, stub: Stub, removal: Removal, gone: dict[bytes, int], changes: list[Change]
    ) -> None:
        removal.size += self._forget(key, stub, changes)
        removal.records += 1
        removal.size += 0 if stub.no_data else stub.size  # of garbage it was counted when it was collected
        gone[key[8:]] = gone.get(key[8:], 0) + 1

    def _forget(self, key: bytes, stub: Stub, changes: list[Change]) -> int:
        """Removes a record and all that it alone has; returns the bytes of its blob if that goes too."""
        changes.append(("records", key, None))
        changes += [("data", each, None) for each in chunk_keys(key, stub)]
        return self._forget_blob(stub, changes)

    def _gone(self, tid: bytes) -> int:
        key = _GONE_KEY + tid
        sealed = self._store.get("packing", key)
        return 0 if sealed is None else int.from_bytes(unseal("packing", key, sealed), "big")

    def _remove_pages(self, removal: Removal, budget: int, changes: list[Change]) -> None:
        for _ in range(min(budget, removal.pages)):
            removal.pages -= 1
            changes.append(("pages", page_key(removal.fragment, removal.pages), None))

    def _remove_heads(self, removal: Removal, budget: int, changes: list[Change]) -> None:
        for looked, (tid, sealed) in enumerate(self._store.scan("transactions", removal.key)):
            if tid >= self._pack.tid:  # the newest one stays: clients wait to be told that they have come so far
                break
            if looked >= budget:
                removal.key = tid
                return
            head = read_head(tid, sealed)
            gone, records = self._gone(tid), head.paged + len(head.info.records)
            if gone > records:
                raise EngineError(f"transaction {tid.hex()} had {records} records, and {gone} were removed")
            if gone == records:
                changes += [("transactions", tid, None), ("packing", _GONE_KEY + tid, None)]
                if head.pages:
                    removal.key, removal.fragment, removal.pages = tid, head.fragment, head.pages
                    return
            removal.done += 1
        removal.phase, removal.key = _DONE, b""


def _sealed(pack: Pack) -> bytes:
    flags = _COLLECT * pack.collect | _COLLECTED * pack.collected
    return seal(_PACK.pack(pack.pack_id, pack.tid, flags, pack.objects, pack.size))
