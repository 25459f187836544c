"""A node's directory and its settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from raftstorage.node.identity import (
    DirectoryError,
    DirectoryLocked,
    Found,
    NodeDirectory,
    NodeIdentity,
    Wish,
    default_cluster_id,
)
from raftstorage.node.options import NodeOptions, OptionError, parse_members, split_address

MEMBERS = {1: "127.0.0.1:7441", 2: "127.0.0.1:7442"}
CLUSTER = default_cluster_id(MEMBERS)
ME = NodeIdentity(CLUSTER, 1, MEMBERS)


def claimed(path: Path, identity: NodeIdentity = ME) -> NodeIdentity:
    directory = NodeDirectory.open(path)
    try:
        return directory.claim(identity)
    finally:
        directory.close()


def test_a_directory_is_made_locked_and_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "node"
    directory = NodeDirectory.open(path)
    assert directory.found is None
    first = directory.claim(ME)
    with pytest.raises(DirectoryLocked, match="in use"):
        NodeDirectory.open(path)
    directory.close()
    assert (first.cluster_id, first.node_id, first.members) == (CLUSTER, 1, MEMBERS)
    assert claimed(path) == first, "the name of the directory stays"
    assert claimed(path, NodeIdentity("", 0, {})) == first, "it knows by itself whose it is"
    assert json.loads((path / "node.json").read_text()) == {
        "format": 2,
        "cluster_id": CLUSTER,
        "node_id": 1,
        "instance": first.instance,
        "members": {"1": MEMBERS[1], "2": MEMBERS[2]},
        "wants_vote": False,
        "replaces": 0,
    }
    assert len(first.instance) == 32
    assert claimed(tmp_path / "another").instance != first.instance
    assert not list(path.glob("*.tmp"))


def test_a_refused_directory_is_not_left_locked(tmp_path: Path) -> None:
    claimed(tmp_path)
    with pytest.raises(DirectoryError):
        claimed(tmp_path, NodeIdentity(CLUSTER, 2, MEMBERS))
    claimed(tmp_path)


def test_what_a_node_that_joined_still_wants_is_remembered(tmp_path: Path) -> None:
    directory = NodeDirectory.open(tmp_path)
    wanted = Found(NodeIdentity(CLUSTER, 7, {}, "ab" * 16), Wish(vote=True, replaces=3))
    directory.write(wanted)
    directory.close()
    again = NodeDirectory.open(tmp_path)
    assert again.found == wanted
    again.close()


def test_a_directory_of_format_1_is_given_a_name_and_its_members(tmp_path: Path) -> None:
    (tmp_path / "node.json").write_text(_identity(1, CLUSTER, 1))
    first = claimed(tmp_path)
    assert (first.members, len(first.instance)) == (MEMBERS, 32)
    assert claimed(tmp_path) == first


def _identity(layout: int, cluster_id: str, node_id: int, **more: Any) -> str:
    return json.dumps({"format": layout, "cluster_id": cluster_id, "node_id": node_id} | more)


GOOD = {"instance": "ab" * 16, "members": {}, "wants_vote": False, "replaces": 0}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (_identity(1, CLUSTER, 2), "belongs to node 2"),
        (_identity(2, CLUSTER, 2, **GOOD), "belongs to node 2"),
        (_identity(1, "0" * 32, 1), "belongs to cluster 000"),
        (_identity(3, CLUSTER, 1), "directory format 3"),
        (_identity(2, CLUSTER, 1), "not a node's identity"),
        (_identity(2, CLUSTER, 1, **GOOD | {"instance": "x"}), "not a node's identity"),
        (_identity(2, CLUSTER, 1, **GOOD | {"members": [1]}), "not a node's identity"),
        ('{"format": 1}', "not a node's identity"),
        ("[1]", "not a node's identity"),
        ("", "not a node's identity"),
    ],
)
def test_a_foreign_identity_is_refused(tmp_path: Path, content: str, why: str) -> None:
    (tmp_path / "node.json").write_text(content)
    with pytest.raises(DirectoryError, match=why):
        claimed(tmp_path)
    assert (tmp_path / "node.json").read_text() == content


def test_data_without_an_identity_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    with pytest.raises(DirectoryError, match=r"no node\.json"):
        NodeDirectory.open(tmp_path)


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DirectoryError, match="cannot be used"):
        NodeDirectory.open(tmp_path / "file")


def test_the_default_cluster_id_depends_on_all_members_and_not_on_their_order() -> None:
    assert default_cluster_id(dict(reversed(MEMBERS.items()))) == CLUSTER
    assert default_cluster_id(MEMBERS | {3: "127.0.0.1:7443"}) != CLUSTER
    assert default_cluster_id({1: MEMBERS[2], 2: MEMBERS[1]}) != CLUSTER
    assert len(CLUSTER) == 32
    assert NodeOptions(1, Path("x"), MEMBERS).identity().cluster_id == CLUSTER


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"node_id": -1}, "--id -1"),
        ({"node_id": 3}, "not among the members"),
        ({"members": {}}, "no address to serve on"),
        ({"members": {1: "a:1", 2: "a:1"}}, "one address"),
        ({"members": {1: "a:0"}}, "cannot be dialled"),
        ({"join": ("a:1",)}, "give one of them"),
        ({"members": {}, "listen": "a:1", "join": ("a:0",)}, "cannot be dialled"),
        ({"members": {}, "listen": "a:1", "join": ("a",)}, "HOST:PORT"),
        ({"standby": True}, "--standby"),
        ({"alone": True}, "--alone"),
        ({"members": {}, "listen": "a:1", "rejoin": True}, "--rejoin is for"),
        ({"learner": True}, "--learner"),
        ({"members": {}, "listen": "0.0.0.0:1"}, "--advertise"),
        ({"advertise": "a:0"}, "cannot be dialled"),
        ({"log_keep_bytes": -1}, "--log-keep-bytes"),
        ({"log_keep_seconds": 0}, "--log-keep-seconds"),
        ({"cache_bytes": 1}, "--cache-bytes"),
        ({"ask": ("a:1",)}, "--ask is for"),
        ({"ask": ("a:0",), "rejoin": True}, "cannot be dialled"),
        ({"snapshot_bytes_per_second": 1}, "--snapshot-bytes-per-second"),
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
