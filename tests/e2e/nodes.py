"""A node as a process of its own, and the least that one asks of a node over gRPC."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from raftstorage.ops.ports import free_ports
from raftstorage.proto import PROTOCOL_VERSION, admin_pb2, admin_pb2_grpc, storage_pb2, storage_pb2_grpc

SECONDS = 30.0


class OneNode:
    """A cluster of one node, which needs nobody's vote. `run` waits for its end, `start` for its ready line."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "node"
        self.address, self.metrics = (f"127.0.0.1:{port}" for port in free_ports(2))
        self.processes: list[subprocess.Popen[str]] = []

    def popen(self, *more: str, **changes: str) -> subprocess.Popen[str]:
        options = {
            "id": "1",
            "dir": str(self.directory),
            "listen": self.address,
            "member": f"1={self.address}",
            "metrics": self.metrics,
        } | changes
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        process = subprocess.Popen(
            [sys.executable, "-m", "raftstorage.node", *arguments, *more],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def run(self, *more: str, **changes: str) -> tuple[int, str]:
        """Exit status and last line of standard error; nothing may have come out as if it served."""
        process = self.popen(*more, **changes)
        out, err = process.communicate(timeout=SECONDS)
        assert out == ""
        assert "Traceback" not in err
        return process.returncode, err.splitlines()[-1]

    def start(self, *more: str, **changes: str) -> subprocess.Popen[str]:
        process = self.popen(*more, **changes)
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready == {"event": "ready", "node_id": 1, "address": self.address, "metrics": self.metrics}
        return process

    def stop(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        process.terminate()
        _out, err = process.communicate(timeout=SECONDS)
        return process.returncode, err

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()


def commit_something(address: str, calls: int = 20) -> None:
    """Has the node write to its log: each block of new oids is an entry. Raises what the node's end raises."""
    requests = [
        storage_pb2.Request(
            id=1, hello=storage_pb2.Hello(protocol_version=PROTOCOL_VERSION, client_id=secrets.token_hex(16))
        )
    ]
    for number in range(calls):
        oids = storage_pb2.AllocateOids(count=10_000)
        requests.append(storage_pb2.Request(id=2 + number, allocate_oids=oids))
    answered = threading.Event()

    def sending() -> Iterator[storage_pb2.RequestBatch]:
        yield from (storage_pb2.RequestBatch(requests=[request]) for request in requests)
        answered.wait(SECONDS)  # a client that says no more ends its session

    got = 0
    with grpc.insecure_channel(address) as channel:
        try:
            for batch in storage_pb2_grpc.StorageStub(channel).Session(sending(), timeout=SECONDS):
                failed = [event.failure for event in batch.events if event.HasField("failure")]
                assert not failed, failed
                got += sum(1 for event in batch.events if event.HasField("oids"))
                if got == calls:
                    return
        finally:
            answered.set()
    raise AssertionError(f"{got} of {calls} answers")


def wait_until_leading(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="raftstorage.leader")
        for answer in stub.Watch(request, timeout=SECONDS):
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return
    raise AssertionError("it does not lead")


def admin_status(address: str) -> admin_pb2.StatusReply:
    with grpc.insecure_channel(address) as channel:
        return admin_pb2_grpc.AdminStub(channel).Status(admin_pb2.StatusRequest(), timeout=SECONDS)
