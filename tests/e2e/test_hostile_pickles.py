"""Records and extensions are pickles that a client chose; a node must never import or call what they name."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from raftstorage.proto import storage_pb2 as pb
from ZODB.utils import maxtid, p64, z64

from tests.e2e.test_import_export import raftstorage

if TYPE_CHECKING:
    from raftstorage.ops.local import LocalCluster

#: Importable in the nodes' processes (and nowhere else): leaves a file behind when it is imported or called.
TRAP = """
import os, pathlib
def spring(what):
    path = pathlib.Path(os.environ["TRAP_DIRECTORY"]) / what
    path.touch()
spring("imported")
"""

#: Calls trap.spring("called") when it is loaded, by protocol 0's GLOBAL and by protocol 4's STACK_GLOBAL.
GLOBAL = b"ctrap\nspring\n(S'called'\ntR."
STACK_GLOBAL = b"\x80\x04\x8c\x04trap\x8c\x06spring\x93(\x8c\x06calledtR."
#: As a class of a persistent object, with a state and a reference to an object of that class.
RECORD = b"ctrap\nspring\n." + pickle.dumps({"state": 1})
REFERENCE = b"ctrap\nspring\n.(U\x08" + p64(77) + b"ctrap\nspring\ntQ."
PICKLES = [GLOBAL, STACK_GLOBAL, GLOBAL + GLOBAL, STACK_GLOBAL + STACK_GLOBAL, RECORD, REFERENCE]


@pytest.fixture
def sprung(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Sets the trap for processes started from here; says what it caught."""
    modules, directory = tmp_path / "modules", tmp_path / "sprung"
    modules.mkdir()
    directory.mkdir()
    (modules / "trap.py").write_text(TRAP)
    path = os.pathsep.join(filter(None, [str(modules), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("TRAP_DIRECTORY", str(directory))
    return lambda: sorted(entry.name for entry in directory.iterdir())


@pytest.mark.parametrize("data", [GLOBAL, STACK_GLOBAL], ids=["global", "stack_global"])
def test_the_trap_works(sprung: Callable[[], list[str]], data: bytes) -> None:
    script = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"
    subprocess.run([sys.executable, "-c", script], input=data, check=True, timeout=60)
    assert sprung() == ["called", "imported"]


def test_nodes_never_load_a_pickle(
    sprung: Callable[[], list[str]],
    start_cluster: Callable[..., LocalCluster],
    raw: Callable[..., Any],
    wait_for: Callable[..., Any],
) -> None:
    cluster = start_cluster()
    leader = raw(cluster.address(cluster.leader(timeout=30)))
    tids = []
    for n, data in enumerate(PICKLES):
        for serial in (z64, None):  # made, then changed
            record = pb.NewRecord(oid=p64(n + 1), base_serial=serial or tids[-1], data=data)
            transaction = pb.Transaction(extension=data, records=[record]).SerializeToString()
            identity = n.to_bytes(8, "big") + (serial or b"changed.")
            if serial:
                answer = leader.ask(commit=pb.Commit(transaction_id=identity, transaction=transaction))
            else:
                assert not leader.ask(vote=pb.Vote(transaction_id=identity, transaction=transaction)).conflicts
                answer = leader.ask(finish=pb.Finish(transaction_id=identity))
            tids.append(answer.tid)
    # a conflict, answered with the committed data
    stale = pb.Transaction(records=[pb.NewRecord(oid=p64(1), base_serial=p64(5), data=GLOBAL)]).SerializeToString()
    (conflict,) = leader.ask(vote=pb.Vote(transaction_id=b"s" * 16, transaction=stale)).conflicts
    assert conflict.data == GLOBAL

    for restart in (False, True):
        if restart:  # from the log and from the database
            for i in range(3):
                cluster.kill(i)
            cluster.start_all()
            cluster.leader(timeout=60)
            wait_for(lambda: all(cluster.status(i).last_tid == tids[-1] for i in range(3)), "replicas to catch up")
        for i in range(3):
            read_everything(raw(cluster.address(i)), tids)
    follow_everything(cluster, raw, tids[-1])
    assert all(cluster.is_running(i) for i in range(3))
    assert sprung() == []


def follow_everything(cluster: LocalCluster, raw: Callable[..., Any], last: bytes) -> None:
    """Nodes read what refers to what off the pickles: to find garbage, and to see that nothing is missing."""
    leader = raw(cluster.address(cluster.leader(timeout=30)))
    missing = f"object {p64(6).hex()} of transaction {last.hex()} refers to {p64(77).hex()}, which is not there"
    unreadable = "2 current records are not ZODB's (a client encrypts them?): what they refer to is not known"
    serial = z64
    # The first two hold one pickle in place of two: garbage can be told only where nothing refers to them.
    for first, code, removed, problems in ((1, 3, 0, {missing, unreadable}), (3, 0, 2, {missing})):
        references = b"".join(b"U\x08" + p64(n) + b"Q" for n in range(first, len(PICKLES) + 1))
        record = pb.NewRecord(oid=z64, base_serial=serial, data=b"ctrap\nspring\n.](" + references + b"e.")
        root = pb.Transaction(records=[record]).SerializeToString()
        serial = leader.ask(commit=pb.Commit(transaction_id=b"refers to " + p64(first)[2:], transaction=root)).tid

        packed = raftstorage("pack", "--collect", "--json", "--addresses", cluster.addresses)
        told = json.loads(packed.stdout)
        assert (packed.returncode, told["removed_objects"], told["tid"]) == (code, removed, serial.hex())
        assert ("the references of object" in told["problem"]) == bool(code)
        verified = raftstorage("verify", "--references", "--json", "--addresses", cluster.addresses)
        found = json.loads(verified.stdout)
        assert (verified.returncode, found["differences"]) == (1, [])
        assert [(node["done"], node["error"]) for node in found["nodes"]] == [(True, "")] * 3
        assert [set(node["problems"]) for node in found["nodes"]] == [problems] * 3
    for i in range(3):
        call = pb.LoadBefore(oid=p64(6), before=maxtid, at_least=serial)
        assert raw(cluster.address(i)).ask(load_before=call).data == REFERENCE


def read_everything(session: Any, tids: list[bytes]) -> None:
    """Every call that answers with a pickle, at one node; they come back byte for byte."""
    for n, data in enumerate(PICKLES):
        oid = p64(n + 1)
        assert session.ask(load_before=pb.LoadBefore(oid=oid, before=maxtid, at_least=tids[-1])).data == data
        assert session.ask(load_serial=pb.LoadSerial(oid=oid, serial=tids[2 * n])).data == data
        history = session.ask(history=pb.History(oid=oid, size=10))
        assert [revision.extension for revision in history.revisions] == [data, data]
    whole = session.ask(read_transactions=pb.ReadTransactions(start=z64, max_bytes=1 << 20))
    assert [t.tid for t in whole.transactions] == tids
