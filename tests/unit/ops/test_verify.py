"""What `raftstorage verify` makes of the nodes' reports, and `raftstorage undo` of what cannot be undone."""

from __future__ import annotations

import pytest
from raftstorage.ops.looking.undo import SHOWN, Change, Undone, as_json, lines
from raftstorage.ops.looking.undo import _reasons as reasons
from raftstorage.ops.verify import Found, Verdict
from raftstorage.ops.verify import _compare as compare
from raftstorage.proto import admin_pb2 as pb
from ZODB.POSException import MultipleUndoErrors, UndoError
from ZODB.utils import p64


def found(node_id: int, digest: bytes = b"same", packed: bytes = b"", done: bool = True) -> Found:
    report = pb.VerifyReport(digest=digest, packed=packed, done=done)
    return Found(node_id, f"127.0.0.1:{node_id}", report)


def verdict(*nodes: Found) -> Verdict:
    return Verdict(p64(1), list(nodes), compare(nodes))


def test_nodes_with_one_digest_are_sound() -> None:
    assert verdict(found(1), found(2), found(3)).ok


def test_who_differs_is_named() -> None:
    told = verdict(found(1), found(2, b"other"), found(3))
    assert not told.ok
    assert told.differences == ["the database is not the same everywhere: nodes 1, 3 against nodes 2"]


def test_nodes_that_saw_another_pack_are_not_compared() -> None:
    told = verdict(found(1), found(2, b"other", packed=b"p"), found(3, b"third", packed=b"p"))
    assert told.differences == [
        "the database is not the same everywhere: nodes 2 against nodes 3",
        "some nodes were packed meanwhile, and others not: verify again",
    ]


@pytest.mark.parametrize("why", ["error", "problems", "undone"])
def test_a_node_that_is_not_sound_is_enough(why: str) -> None:
    node = found(2, done=why != "undone")
    if why == "error":
        node.error = "UNAVAILABLE: down"
    if why == "problems":
        node.problems.append("object 1")
        node.report.digest = b""
    told = verdict(found(1), node, found(3))
    assert told.differences == []
    assert not told.ok


def test_why_something_cannot_be_undone_is_told_of_each_object() -> None:
    assert list(reasons(UndoError("non-undoable transaction"))) == ["non-undoable transaction"]
    several = MultipleUndoErrors([(p64(n), UndoError("changed later", p64(n))) for n in (1, 2)])
    assert list(reasons(several)) == [f"object {p64(n).hex()}: changed later" for n in (1, 2)]


def test_what_an_undo_changes_is_told() -> None:
    oids = [p64(n) for n in range(SHOWN + 2)]
    dry = Undone(None, oids, [Change(oid, "removed", "a.B\x1b[0m") for oid in oids])
    shown = list(lines(dry))
    assert shown[0] == f"can be undone: {len(oids)} objects would change"
    assert len(shown) == SHOWN + 2
    assert shown[-1] == "  and 2 more"
    assert "\x1b" not in "".join(shown)
    assert as_json(dry)["objects"][1] == {"oid": p64(1).hex(), "effect": "removed", "class": "a.B\x1b[0m"}
    done = Undone(p64(9), oids[:1])
    assert list(lines(done)) == [f"undone by {p64(9).hex()}: 1 objects changed"]
    assert as_json(done) == {"tid": p64(9).hex(), "objects": [{"oid": p64(0).hex()}]}
