"""Classic mistakes of clients: retries, replicas, streams, the cache; see `mutants`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any
from unittest import mock

from raftstorage.client.cache.records import RecordCache
from raftstorage.client.cluster import policy, refusals
from raftstorage.client.cluster.feed import Feed
from raftstorage.client.cluster.replicas import Replicas
from raftstorage.proto import storage_pb2 as pb


def takes_a_lost_answer_for_a_no() -> AbstractContextManager[object]:
    stack = ExitStack()
    stack.enter_context(mock.patch.object(policy, "UNSURE", frozenset()))
    stack.enter_context(mock.patch.object(policy, "RETRY_LEAD", frozenset({pb.NOT_LEADER, pb.BUSY})))
    return stack


def gives_up_and_says_no() -> AbstractContextManager[object]:
    """A commit whose time is over is called refused, though nobody knows what became of it."""
    return mock.patch.object(
        refusals.Attempts, "error", lambda self, kind, committing: refusals.refused(self._last, kind)
    )


def retries_under_another_name() -> AbstractContextManager[object]:
    original = Replicas.commit

    def commit(self: Replicas, identity: bytes, body: bytes, voted_at: str, timeout: float) -> policy.Flow:
        flow = original(self, identity, body, voted_at, timeout)
        happened: Any = None
        attempts = 0
        while True:
            try:
                step = flow.send(happened)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            if step.send is not None and step.send.call.kind == "commit":
                attempts += 1
                message = pb.Commit(transaction_id=bytes([attempts]) * 16, transaction=body)
                if attempts > 1:
                    message.transaction_id = identity[:15] + bytes([attempts])
                else:
                    message.transaction_id = identity
                step = step._replace(send=step.send._replace(call=policy.Call("commit", message)))
            happened = yield step

    return mock.patch.object(Replicas, "commit", commit)


def reads_anywhere() -> AbstractContextManager[object]:
    """A snapshot is read from a replica that need not have it: `at_least` is left out."""
    original = Replicas.read

    def read(self: Replicas, call: policy.Call, at_least: bytes, timeout: float, **more: Any) -> policy.Flow:
        if call.kind == "load_before":
            message = pb.LoadBefore(oid=call.message.oid, before=call.message.before)
            call = policy.Call(call.kind, message)
        return original(self, call, at_least, timeout, **more)

    return mock.patch.object(Replicas, "read", read)


def believes_every_stream() -> AbstractContextManager[object]:
    """Invalidations are taken in the order in which several streams bring them."""

    def accept(self: Feed, tid: bytes, oids: Sequence[bytes]) -> None:
        self._queue.append((tid, oids))
        self.accepted = tid

    return mock.patch.object(Feed, "accept", accept)


def caches_what_a_change_has_overtaken() -> AbstractContextManager[object]:
    """An answer counts as current at the tid that the cache knows, not at the one that was asked for."""
    original = RecordCache.store

    def store(
        self: RecordCache, oid: bytes, data: bytes, serial: bytes, next_serial: bytes | None, as_of: bytes
    ) -> None:
        original(self, oid, data, serial, next_serial, self.known)
        if next_serial is None and not self.has(oid, self.known):
            self._changed.pop(oid, None)
            original(self, oid, data, serial, next_serial, self.known)

    return mock.patch.object(RecordCache, "store", store)


def moves_on_before_the_cache_is_told() -> AbstractContextManager[object]:
    """Every change is told to the cache when the next one comes."""
    original = RecordCache.invalidate

    def invalidate(self: RecordCache, tid: bytes, oids: Sequence[bytes]) -> None:
        late = getattr(self, "late", None)
        if late is not None:
            original(self, *late)
        self.late = tid, oids  # type: ignore[attr-defined]

    return mock.patch.object(RecordCache, "invalidate", invalidate)
