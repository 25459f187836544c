"""Does an empty founder found, or was its place another directory's? What it once learnt counts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from raftstorage.node import founding
from raftstorage.node.options import NodeOptions
from raftstorage.proto import admin_pb2 as pb


def test_a_moment_without_answers_does_not_undo_that_a_cluster_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = pb.MemberStatus(node_id=1, instance="another")
    members: list[Sequence[pb.MemberStatus]] = [[], [], [taken]]
    runs = [True, False]

    async def members_near(addresses: Sequence[str]) -> Sequence[pb.MemberStatus]:
        return members.pop(0)

    async def cluster_runs(addresses: Sequence[str]) -> bool:
        return runs.pop(0)

    monkeypatch.setattr(founding, "members_near", members_near)
    monkeypatch.setattr(founding, "cluster_runs", cluster_runs)
    monkeypatch.setattr(founding, "pause", lambda attempt: 0.0)
    options = NodeOptions(1, tmp_path, {1: "a:1", 2: "b:1", 3: "c:1"}, rejoin=True)
    assert asyncio.run(founding._place_is_taken(options))
    assert members == []
