"""Classic mistakes with transactions that come in parts, on their way and in the log; see `mutants`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

from raftstorage.node.engine.api import Applied
from raftstorage.node.engine.fragments import Staging
from raftstorage.node.engine.state import StateMachine
from raftstorage.node.parts import Parsed, PartGatherer
from raftstorage.proto import storage_pb2 as pb

from tests.unit.raft.change_mutants import together


def mixes_the_parts_of_two_attempts() -> AbstractContextManager[object]:
    """What is left of an attempt that was given up stays, and the next one's parts are put behind it."""
    original = PartGatherer.add

    def add(
        self: PartGatherer,
        owner: object,
        identity: bytes,
        number: int,
        body: bytes,
        parse: Callable[[bytes], Parsed],
        now: float,
    ) -> pb.Failure | None:
        gathering = self._owners.get(owner, {}).get(identity)
        if gathering is not None and gathering.refused is None:
            number = len(gathering.parts)
        return original(self, owner, identity, number, body, parse, now)

    return mock.patch.object(PartGatherer, "add", add)


def goes_on_with_another_attempts_fragments() -> AbstractContextManager[object]:
    """Only another transaction ends a run of fragments, and in it they are known by their numbers alone: what a
    deposed leader's attempt left counts for the next."""
    original = StateMachine._fragment

    def goes_on(self: Staging, command: pb.Command) -> bool:
        kind = command.WhichOneof("kind")
        return kind not in ("fragment", "commit") or getattr(command, kind).transaction_id == self.identity

    def fragment(self: StateMachine, index: int, fragment: pb.FragmentCommand, changes: list[Any]) -> Applied:
        if self._staging is not None and fragment.number < self._staging.count:
            return Applied(index, fragment.transaction_id)
        return original(self, index, fragment, changes)

    return together(
        mock.patch.object(Staging, "goes_on", goes_on), mock.patch.object(StateMachine, "_fragment", fragment)
    )


def shows_fragments_that_nothing_followed() -> AbstractContextManager[object]:
    """They are not removed, and the last tid passes theirs."""
    return mock.patch.object(StateMachine, "_let_go", lambda self, staging, changes: None)
