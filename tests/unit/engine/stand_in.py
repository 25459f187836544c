"""Stands in for an engine that applies fragments, until ours does: it puts them together and applies the whole."""

from __future__ import annotations

from raftstorage.node.engine.api import Applied
from raftstorage.node.engine.memory import MemoryEngine
from raftstorage.proto import storage_pb2 as pb

from tests.unit.pieces import put_together


class FragmentEngine(MemoryEngine):
    def __init__(self) -> None:
        super().__init__()
        self._fragments: list[pb.FragmentCommand] = []

    def apply(self, index: int, data: bytes) -> Applied:
        command = pb.Command.FromString(data)
        fragments, self._fragments = self._fragments, []
        if command.HasField("fragment"):
            piece = command.fragment
            if piece.number == 0:
                assert piece.tid
                self._fragments = [piece]
            elif fragments and self._goes_on(fragments, piece):
                self._fragments = [*fragments, piece]
            return super().apply(index, b"")
        commit = command.commit
        if commit.fragments:
            if len(fragments) != commit.fragments or not self._is_end(fragments, commit):
                super().apply(index, b"")
                return Applied(index, commit.transaction_id, refused="its fragments are not there")
            commit.transaction = put_together([*(piece.transaction for piece in fragments), commit.transaction])
            commit.fragments = 0
            data = command.SerializeToString()
        return super().apply(index, data)

    def _goes_on(self, fragments: list[pb.FragmentCommand], piece: pb.FragmentCommand) -> bool:
        expected = (fragments[0].transaction_id, len(fragments))
        return (piece.transaction_id, piece.number) == expected and piece.tid in (b"", fragments[0].tid)

    def _is_end(self, fragments: list[pb.FragmentCommand], commit: pb.CommitCommand) -> bool:
        return (commit.transaction_id, commit.tid) == (fragments[0].transaction_id, fragments[0].tid)
