"""`raftstorage verify`: every node reads all that it has, as of one transaction, and all of them are compared."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from raftstorage.ops.errors import CommandError
from raftstorage.ops.members import members
from raftstorage.ops.status import CHANNEL_OPTIONS, StatusClient, leader_of
from raftstorage.proto import admin_pb2 as pb
from raftstorage.proto import admin_pb2_grpc

Z64 = b"\0" * 8
#: How long a node that lags behind, or is packing, is left alone before it is asked again.
AGAIN_SECONDS = 0.5
_LATER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)


@dataclass
class Found:
    """Of one node. `error`: why it could not be verified, or empty."""

    node_id: int
    address: str
    report: pb.VerifyReport = field(default_factory=pb.VerifyReport)
    problems: list[str] = field(default_factory=list)
    error: str = ""

    @property
    def sound(self) -> bool:
        return self.report.done and not self.problems and not self.error


@dataclass
class Verdict:
    """`differences`: between nodes, for a person."""

    tid: bytes
    nodes: list[Found]
    differences: list[str]

    @property
    def ok(self) -> bool:
        return not self.differences and all(node.sound for node in self.nodes)


def verify(
    addresses: Sequence[str],
    *,
    tid: bytes | None,
    references: bool,
    timeout: float,
    progress: Callable[[Sequence[Found]], object] = lambda nodes: None,
) -> Verdict:
    """Of all members, at the same time; as of `tid`, or of what the leader has now.

    `timeout`: seconds without any news of a node before it is given up. `progress` is called now and then.
    CommandError when no leader is found.
    """
    nodes = [Found(m.node_id, m.address) for m in members(addresses, min(timeout, 30.0)).members]
    wanted = tid or _last_tid(addresses, timeout)
    request = pb.VerifyRequest(tid=wanted, references=references)
    threads = [threading.Thread(target=_ask, args=(node, request, timeout), daemon=True) for node in nodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(0.2)
            progress(nodes)
    return Verdict(wanted, nodes, _compare(nodes))


def _last_tid(addresses: Sequence[str], timeout: float) -> bytes:
    with StatusClient(addresses) as client:
        leader = leader_of(client.ask(min(timeout, 5.0)))
        if leader is not None and leader.reply is not None:
            return leader.reply.last_tid
        found = [status.reply.last_tid for status in client.ask(min(timeout, 5.0)) if status.reply is not None]
    if not found:
        raise CommandError("no node answers")
    return max(found)


def _ask(node: Found, request: pb.VerifyRequest, timeout: float) -> None:
    """Until it has answered to the end; a node that lags, packs or starts again is asked again."""
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while True:
        try:
            for report in _reports(node.address, request, timeout):
                node.report = report
                node.problems += report.problems
                node.error = ""
                deadline = time.monotonic() + timeout
            return
        except grpc.RpcError as error:
            code, details = error.code(), error.details()
            node.error = str(details) if code is grpc.StatusCode.FAILED_PRECONDITION else f"{code.name}: {details}"
            node.problems.clear()
            node.report = pb.VerifyReport()
            if code not in _LATER or time.monotonic() > deadline:
                return
        pause.wait(AGAIN_SECONDS)


def _reports(address: str, request: pb.VerifyRequest, timeout: float) -> Any:
    """Each report; grpc.RpcError when none comes for `timeout` seconds."""
    with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        call = admin_pb2_grpc.AdminStub(channel).Verify(request)  # type: ignore[no-untyped-call]
        watchdog = threading.Timer(timeout, call.cancel)
        watchdog.start()
        try:
            for report in call:
                watchdog.cancel()
                yield report
                watchdog = threading.Timer(timeout, call.cancel)
                watchdog.start()
        finally:
            watchdog.cancel()


def _compare(nodes: Sequence[Found]) -> list[str]:
    """Nodes that have seen the same pack have the same digest."""
    differences = []
    whole = [node for node in nodes if node.report.done and node.report.digest]
    for packed in sorted({node.report.packed for node in whole}):
        digests: dict[bytes, list[int]] = {}
        for node in whole:
            if node.report.packed == packed:
                digests.setdefault(node.report.digest, []).append(node.node_id)
        if len(digests) > 1:
            sides = " against ".join(f"nodes {', '.join(map(str, ids))}" for ids in digests.values())
            differences.append(f"the database is not the same everywhere: {sides}")
    if len({node.report.packed for node in whole}) > 1:
        differences.append("some nodes were packed meanwhile, and others not: verify again")
    return differences


def _hex(value: bytes) -> str:
    return value.hex()


def as_json(verdict: Verdict) -> dict[str, Any]:
    """Ready for `json.dumps`."""
    return {
        "ok": verdict.ok,
        "tid": verdict.tid.hex(),
        "differences": verdict.differences,
        "nodes": [
            {
                "node_id": node.node_id,
                "address": node.address,
                "done": node.report.done,
                "records": node.report.records,
                "bytes": node.report.bytes,
                "blobs": node.report.blobs,
                "packed": _hex(node.report.packed),
                "digest": _hex(node.report.digest),
                "problems": node.problems,
                "error": node.error,
            }
            for node in verdict.nodes
        ],
    }
