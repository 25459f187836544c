"""A node's directory and its settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from raftstorage.node.identity import DirectoryError, NodeDirectory, NodeIdentity, default_cluster_id
from raftstorage.node.options import NodeOptions, OptionError, parse_members, split_address

MEMBERS = {1: "127.0.0.1:7441", 2: "127.0.0.1:7442"}
CLUSTER = default_cluster_id(MEMBERS)
ME = NodeIdentity(CLUSTER, 1, MEMBERS)


def test_a_directory_is_made_locked_and_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "node"
    directory = NodeDirectory.open(path, ME)
    with pytest.raises(DirectoryError, match="in use"):
        NodeDirectory.open(path, ME)
    directory.close()
    again = NodeDirectory.open(path, ME)
    assert (again.log, again.db) == (path / "log", path / "db")
    again.close()
    assert json.loads((path / "node.json").read_text()) == {"format": 1, "cluster_id": CLUSTER, "node_id": 1}
    assert not list(path.glob("*.tmp"))


def test_a_refused_directory_is_not_left_locked(tmp_path: Path) -> None:
    NodeDirectory.open(tmp_path, ME).close()
    with pytest.raises(DirectoryError):
        NodeDirectory.open(tmp_path, NodeIdentity(CLUSTER, 2, MEMBERS))
    NodeDirectory.open(tmp_path, ME).close()


def _identity(layout: int, cluster_id: str, node_id: int) -> str:
    return json.dumps({"format": layout, "cluster_id": cluster_id, "node_id": node_id})


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (_identity(1, CLUSTER, 2), "belongs to node 2"),
        (_identity(1, "0" * 32, 1), "belongs to cluster 000"),
        (_identity(2, CLUSTER, 1), "directory format 2"),
        ('{"format": 1}', "not a node's identity"),
        ("[1]", "not a node's identity"),
        ("", "not a node's identity"),
    ],
)
def test_a_foreign_identity_is_refused(tmp_path: Path, content: str, why: str) -> None:
    (tmp_path / "node.json").write_text(content)
    with pytest.raises(DirectoryError, match=why):
        NodeDirectory.open(tmp_path, ME)
    assert (tmp_path / "node.json").read_text() == content


def test_data_without_an_identity_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    with pytest.raises(DirectoryError, match=r"no node\.json"):
        NodeDirectory.open(tmp_path, ME)


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DirectoryError, match="cannot be used"):
        NodeDirectory.open(tmp_path / "file", ME)


def test_the_default_cluster_id_depends_on_all_members_and_not_on_their_order() -> None:
    assert default_cluster_id(dict(reversed(MEMBERS.items()))) == CLUSTER
    assert default_cluster_id(MEMBERS | {3: "127.0.0.1:7443"}) != CLUSTER
    assert default_cluster_id({1: MEMBERS[2], 2: MEMBERS[1]}) != CLUSTER
    assert len(CLUSTER) == 32
    assert NodeOptions(1, Path("x"), MEMBERS).identity().cluster_id == CLUSTER


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"node_id": 0}, "--id 0"),
        ({"node_id": 3}, "not among the members"),
        ({"members": {}}, "no --member"),
        ({"members": {1: "a:1", 2: "a:1"}}, "one address"),
        ({"members": {1: "a:0"}}, "cannot be dialled"),
        ({"listen": "7441"}, "HOST:PORT"),
        ({"listen": "host:70000"}, "HOST:PORT"),
        ({"listen": "::1:7441"}, "brackets"),
        ({"metrics": "nowhere"}, "HOST:PORT"),
        ({"cluster_id": "xyz"}, "hexadecimal"),
        ({"tick_ms": 0}, "--tick-ms 0"),
        ({"election_ticks": 2}, "--election-ticks 2"),
        ({"max_record_bytes": 0}, "--max-record-bytes"),
        ({"max_transaction_bytes": 1 << 30}, "--max-transaction-bytes"),
        ({"lease_ms": 0}, "--lease-ms"),
        ({"log_format": "xml"}, "--log-format"),
        ({"log_level": "loud"}, "--log-level"),
        ({"disk_reserve_bytes": -1}, "--disk-reserve-bytes -1"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], why: str) -> None:
    good: dict[str, Any] = {"node_id": 1, "directory": Path("x"), "members": MEMBERS}
    NodeOptions(**good)
    with pytest.raises(OptionError, match=why):
        NodeOptions(**good | changes)


def test_members_and_addresses() -> None:
    assert parse_members(["1=a:1", "2=[::1]:2"]) == {1: "a:1", 2: "[::1]:2"}
    assert split_address("[::1]:2") == ("::1", 2)
    for bad in (["1"], ["one=a:1"], ["1=a"], ["1=a:1", "1=b:1"]):
        with pytest.raises(OptionError):
            parse_members(bad)
