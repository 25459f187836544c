"""Messages between nodes: one gRPC stream for each pair.

Raft repairs what is lost, so nothing here waits for a peer: a message for one that is not connected is dropped,
and so is one for which its queue has no room.

Who dials. The node with the lower id dials all the time, the other one when it has something to send and there
is no link: its counterpart may not know yet that it is a member. So two streams may come up at once. The one
that the lower id dialled wins, on both sides; and of two that the same node dialled, the newer. The lower id,
dialled while its own stream stands or is about to, waits a little: the other side gives its dial up as soon as
it hears of that stream, and if it does not, the stream is dead over there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from raftstorage.node.admission import Amount
from raftstorage.node.identity import NodeIdentity
from raftstorage.node.raft.types import Message
from raftstorage.node.service.metrics import NodeMetrics
from raftstorage.node.service.peer_dialer import Dialer, report
from raftstorage.node.service.peer_hello import (
    REFUSAL_KEY,
    Greeter,
    HelloRefused,
    PeerInfo,
    Refused,
    raise_status,
    refusal_of,
)
from raftstorage.node.service.peer_link import EOF, QUEUE_BYTES, QUEUE_MESSAGES, Link, PeerNote
from raftstorage.node.service.peer_problems import PeerProblem, Problems
from raftstorage.node.service.streams import HELLO_SECONDS
from raftstorage.node.versions import VERSIONS, Versions
from raftstorage.proto import raft_pb2 as pb
from raftstorage.proto import raft_pb2_grpc

log = logging.getLogger(__name__)

#: How long the lower id, dialled, waits for what becomes of its own stream.
YIELD_SECONDS = 1.0
#: How long the link to a node that left stays, so that it hears that it left.
LEAVE_SECONDS = 1.0
#: Links to nodes that are no members here: new ones, old ones, and nodes that went astray.
MOST_STRANGERS = 64


class PeerTransport(raft_pb2_grpc.PeersServicer):
    """This node's side of all streams: `driver.Transport`, and the servicer for those that dial in.

    `receive` gets what each batch brought, checked. `address`, `instance`: this node's own, for its hellos.
    `known_instance(node id)`: a member's directory by the membership; empty: not known. `note()`: what peers
    are told now and then. Callbacks, on the loop: `accepted(peer)` for every hello that led to a link,
    `refused(problem)` once when a peer has refused this node, and again when the reason is another one. What
    they raise is logged. The peers are `identity`'s members until `update` is called.
    """

    def __init__(
        self,
        identity: NodeIdentity,
        metrics: NodeMetrics,
        receive: Callable[[Sequence[Message]], None],
        *,
        versions: Versions = VERSIONS,
        instance: str = "",
        address: str = "",
        known_instance: Callable[[int], str] = lambda node_id: "",
        note: Callable[[], PeerNote] | None = None,
        accepted: Callable[[PeerInfo], None] = lambda peer: None,
        refused: Callable[[PeerProblem], None] = lambda problem: None,
    ) -> None:
        #: For who shakes hands elsewhere: the side that fetches a snapshot.
        self.greeter = Greeter(identity, versions, instance, address, known_instance)
        #: Answers a Snapshot call whose hello was accepted, by writing to the context.
        self.serve_snapshot: Callable[[PeerInfo, pb.SnapshotRequest, Any], Awaitable[None]] | None = None
        self._receive = receive
        self._node_id = identity.node_id
        self._metrics = metrics
        self._note = note
        self._accepted = accepted
        self._refused = refused
        self._problems = Problems(lambda: asyncio.get_running_loop().time())
        self._links: dict[int, Link] = {}
        self._addresses: dict[int, str] = {}
        self._dialers: dict[int, Dialer] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving: dict[int, asyncio.TimerHandle] = {}
        self._changed = asyncio.Event()
        self._running = self._stopped = False
        self._set_peers(identity.members)

    # ---- Transport -----------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        link = self._links.get(message.to_node)
        if link is None:
            dialer = self._dialers.get(message.to_node)
            if dialer is not None:
                dialer.want()
        elif not link.outbox.put(message):
            self._metrics.peer_dropped.labels(str(message.to_node)).inc()

    async def start(self) -> None:
        self._running = True
        for dialer in self._dialers.values():
            self._start_dialer(dialer)

    async def stop(self) -> None:
        """Ends all streams. Messages still in a queue are lost."""
        self._running, self._stopped = False, True
        for timer in self._leaving.values():
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for link in list(self._links.values()):
            link.over.set()
        self._wake()

    # ---- who the peers are ---------------------------------------------------------------------------

    def update(self, addresses: Mapping[int, str]) -> None:
        """The members from now on: node id -> host:port, empty: not known. To be called on the loop.

        This node may be among them. A node that came is dialled, or waited for; one with another address is
        dialled there once its link is over; the link to one that left is closed after LEAVE_SECONDS. Known
        instances are looked up anew.
        """
        if not self._stopped:
            self._set_peers(addresses)

    def _set_peers(self, addresses: Mapping[int, str]) -> None:
        peers = {node: address for node, address in addresses.items() if node != self._node_id}
        for node in self._addresses.keys() - peers.keys():
            self._make_dialer(node, "")
            self._problems.solved(node)
            if node in self._links:
                loop = asyncio.get_running_loop()
                self._leaving[node] = loop.call_later(LEAVE_SECONDS, self._expel, node)
            else:
                self._unlabel(node)
        for node in peers.keys() - self._addresses.keys():
            if node in self._leaving:
                self._leaving.pop(node).cancel()
            self._metrics.peer_connected.labels(str(node)).set(node in self._links)
            self._metrics.peer_dropped.labels(str(node))
            bound = Amount(QUEUE_MESSAGES, QUEUE_BYTES)
            self._metrics.watch_queue(f"peer_{node}", bound, partial(self._queued, node))
        for node, address in peers.items():
            if self._addresses.get(node) != address:
                self._make_dialer(node, address)
        self._addresses = peers
        for link in self._links.values():
            try:
                self.greeter.check_instance(link.peer, None)
            except HelloRefused as refused:  # only now it is known who is who
                problem = PeerProblem(link.peer.node_id, str(refused), refused.kind)
                self._problems.add(problem, dialling=link.dialled)
                link.over.set()

    def _queued(self, node: int) -> Amount:
        link = self._links.get(node)
        return link.outbox.amount if link is not None else Amount(0, 0)

    def _make_dialer(self, node: int, address: str) -> None:
        """In place of the node's last one. Without an address it can only dial us."""
        older = self._dialers.pop(node, None)
        if older is not None:
            older.retire()
        if not address:
            return
        dialer = self._dialers[node] = Dialer(node, address, self._dial, eager=self._node_id < node)
        if node in self._links:
            dialer.linked(own=False)
        if self._running:
            self._start_dialer(dialer)

    def _start_dialer(self, dialer: Dialer) -> None:
        task = dialer.start()
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(report)

    def _expel(self, node: int) -> None:
        del self._leaving[node]
        if node in self._links:
            log.info("the link to peer %d is closed: it is no member any more", node)
            self._links[node].over.set()

    def _unlabel(self, node: int) -> None:
        for metric in (self._metrics.peer_connected, self._metrics.peer_dropped):
            with suppress(KeyError):
                metric.remove(str(node))

    # ---- what is known of them -----------------------------------------------------------------------

    def connected(self, peer: int) -> bool:
        return peer in self._links

    def peer_note(self, node_id: int) -> PeerNote | None:
        """What a connected peer said of itself last; None: not connected, or it has said nothing."""
        link = self._links.get(node_id)
        return None if link is None else link.note

    def peer_info(self, node_id: int) -> PeerInfo | None:
        """Who is connected as this node: as reported to `accepted`."""
        link = self._links.get(node_id)
        return None if link is None else link.peer

    def problems(self) -> list[PeerProblem]:
        """What keeps this node and its peers apart now, by node id."""
        return self._problems.current()

    # ---- the side that dials -------------------------------------------------------------------------

    async def _dial(self, dialer: Dialer, stub: raft_pb2_grpc.PeersStub) -> bool:
        """One attempt, and the link that comes of it; False: one of the two refused the other."""
        peer = dialer.peer
        call = stub.Exchange()
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                await call.write(pb.PeerBatch(hello=self.greeter.hello(peer)))
                batch = await call.read()
            if batch is EOF:
                await raise_status(call)
                raise EOFError
            link = self._new_link(self.greeter.read(batch, peer, self.peer_info(peer)), dialled=True)
            self._link(link, dialer)
            await link.carry(call)
            if not link.over.is_set():
                raise EOFError
        except grpc.aio.AioRpcError as error:
            kind = refusal_of(error)
            self._failed(dialer, f"{error.code().name}: {error.details()}", kind, refused_us=bool(kind))
            return not kind
        except HelloRefused as refused:
            self._failed(dialer, str(refused), refused.kind)
            return False
        except TimeoutError:
            self._failed(dialer, "did not say hello")
        except (EOFError, asyncio.InvalidStateError):
            # grpc.aio says the latter to who writes before the reader has heard of the end.
            self._failed(dialer, "ended the stream")
        finally:
            call.cancel()
            self._wake()
        return True

    def _failed(self, dialer: Dialer, why: str, kind: str = "", *, refused_us: bool = False) -> None:
        problem = PeerProblem(dialer.peer, f"{dialer.address}: {why}", kind, refused_us)
        if self._problems.add(problem, dialling=True) and refused_us:
            _tell(self._refused, problem)

    # ---- the side that is dialled --------------------------------------------------------------------

    async def Exchange(self, request_iterator: Any, context: Any) -> None:  # noqa: N802 - generated name
        """gRPC handler of a stream that a peer dialled."""
        try:
            await self._answer(context)
        except HelloRefused as refused:
            await self._refuse(context, refused)
        except DecodeError:
            self._problems.add(PeerProblem(0, "sent something that is not a PeerBatch"), dialling=False)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "this is not a PeerBatch")
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "no hello")

    async def Snapshot(self, request: pb.SnapshotRequest, context: Any) -> None:  # noqa: N802 - generated name
        """gRPC handler: a snapshot for a peer that introduces itself as for a stream."""
        try:
            peer = self.greeter.check(request.hello)
        except HelloRefused as refused:
            await self._refuse(context, refused)
            return
        if self.serve_snapshot is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this node serves no snapshots")
            return
        await self.serve_snapshot(peer, request, context)

    async def _refuse(self, context: Any, refused: HelloRefused) -> None:
        node = refused.node_id if refused.node_id in self._addresses else 0
        problem = PeerProblem(node, f"a hello was refused: {refused}", refused.kind)
        self._problems.add(problem, dialling=False)
        await context.abort(refused.code, str(refused), ((REFUSAL_KEY, refused.kind.value),))

    async def _answer(self, stream: Any) -> None:
        async with asyncio.timeout(HELLO_SECONDS):
            batch = await stream.read()
        if batch is EOF:
            return
        peer = self.greeter.read(batch, live=self.peer_info(batch.hello.node_id))
        if self._node_id < peer.node_id:
            await self._wait_for_own(peer.node_id)
            self.greeter.check_instance(peer, self.peer_info(peer.node_id))
        if self._stopped:
            await stream.abort(grpc.StatusCode.UNAVAILABLE, "the node is going down")
        self._check_room(peer.node_id)
        link = self._new_link(peer, dialled=False)
        # Linked before it is answered: who has the answer may rely on it (see `_wait_for_own`).
        self._link(link, None)
        await link.carry(stream, pb.PeerBatch(hello=self.greeter.hello(peer.node_id)))

    async def _wait_for_own(self, node: int) -> None:
        """Returns when there is no stream to the peer that this node dialled, nor an attempt; or soon.

        A peer that has taken our stream gives its own dial up at once, which ends this one's handler.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(YIELD_SECONDS):
                while not self._stopped and self._has_own(node):
                    await self._changed.wait()

    def _has_own(self, node: int) -> bool:
        link, dialer = self._links.get(node), self._dialers.get(node)
        return (link is not None and link.dialled) or (dialer is not None and dialer.trying)

    def _check_room(self, node: int) -> None:
        if node in self._addresses or node in self._links:
            return
        strangers = len(self._links.keys() - self._addresses.keys())
        if strangers >= MOST_STRANGERS:
            why = f"node {node} is no member here, and {strangers} others that are none are connected"
            raise HelloRefused(Refused.BUSY, why, node)

    # ---- both ----------------------------------------------------------------------------------------

    def _new_link(self, peer: PeerInfo, *, dialled: bool) -> Link:
        return Link(peer, self._node_id, self, self._note, dialled=dialled)

    def receive(self, messages: Sequence[Message]) -> None:
        """See LinkOwner; likewise those below."""
        self._receive(messages)

    def heard(self, link: Link) -> None:
        self._problems.solved(link.peer.node_id)

    def nonsense(self, link: Link) -> None:
        text = "sends messages that are not understood or not for this stream"
        self._problems.add(PeerProblem(link.peer.node_id, text), dialling=link.dialled)

    def _link(self, link: Link, dialer: Dialer | None) -> None:
        """Puts a link in the place of an older one. `dialer`: that dialled it."""
        peer = link.peer
        node = peer.node_id
        older = self._links.get(node)
        if older is not None:
            older.over.set()
        self._links[node] = link
        current = self._dialers.get(node)
        if current is not None and current is not dialer:
            current.linked(own=False)
        if dialer is not None:
            dialer.linked(own=True)
        self._metrics.peer_connected.labels(str(node)).set(1)
        if link.dialled:  # else it is not known yet whether the peer takes the answer
            self._problems.solved(node)
        log.info(
            "peer %d is connected",
            node,
            extra={"software": peer.software, "protocol": peer.protocol, "dialled": link.dialled},
        )
        self._wake()
        _tell(self._accepted, peer)

    def ended(self, link: Link) -> None:
        node = link.peer.node_id
        if self._links.get(node) is not link:
            return
        del self._links[node]
        if node in self._addresses:
            self._metrics.peer_connected.labels(str(node)).set(0)
        else:
            self._unlabel(node)
        log.info("peer %d is disconnected", node)
        if node in self._dialers:
            self._dialers[node].unlinked()
        self._wake()

    def _wake(self) -> None:
        """For who waits for what becomes of a stream."""
        self._changed.set()
        self._changed = asyncio.Event()


def _tell(callback: Callable[[Any], None], what: object) -> None:
    try:
        callback(what)
    except Exception:
        log.exception("a callback failed")
