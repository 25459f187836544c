"""What a node does for packs beside the log: takes orders, has the garbage found, removes. Pure; in small steps.

A leader takes a pack through the log and looks for its garbage; a new leader begins anew. Every node, once all
garbage is known, removes for itself what nobody sees any more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from raftstorage.node.engine.api import Z64, Applied, Engine
from raftstorage.node.failures import busy, failed, lost, not_leader
from raftstorage.node.garbage import Collector
from raftstorage.node.raft.types import Entry, NotLeader
from raftstorage.node.tids import timestamp_tid
from raftstorage.proto import storage_pb2 as pb

Reply = Callable[[pb.Event], None]

#: How far in the future a pack may be, in seconds: clients' clocks are not the leader's.
TOLERATED_SECONDS = 60
#: Records removed in one step: up to 1 ms.
STEP = 32
#: When another pack is to be asked for again.
AGAIN_MS = 1000


@dataclass
class _Asked:
    """A pack on its way through the log."""

    term: int
    pack: pb.Pack
    replies: list[Reply] = field(default_factory=list)


class Packer:
    """Takes orders of packs, and works at the newest one: on a leader, finding garbage; on every node, removing.

    `term()`, `last_index()`: of the log. Whoever has it calls `step` as long as there is `work`, and tells what
    becomes of the node and of the log.
    """

    def __init__(
        self,
        engine: Engine,
        propose: Callable[[bytes], int],
        term: Callable[[], int],
        last_index: Callable[[], int],
    ) -> None:
        self._engine = engine
        self._propose = propose
        self._term = term
        self._last_index = last_index
        self._leads = False
        self._asked: dict[int, _Asked] = {}
        self._collector: Collector | None = None
        self._problem = (b"", "")  # a pack's id, and why its garbage was not collected

    # ---- orders --------------------------------------------------------------------------------------

    def pack(self, asked: pb.Pack, wall_clock: float, reply: Reply) -> None:
        """On a leader that is ready. `wall_clock`: seconds since 1970."""
        pack = self._engine.pack
        under_way = next(iter(self._asked.values()), None)
        if asked.pack_id == pack.pack_id:
            reply(pb.Event(pack=self.state()))
        elif under_way is not None and under_way.pack.pack_id == asked.pack_id:
            under_way.replies.append(reply)
        elif asked.tid > max(timestamp_tid(wall_clock + TOLERATED_SECONDS), self._engine.last_tid):
            reply(failed(pb.INVALID, "the time to pack to is in the future"))
        elif under_way is not None or self.busy:
            which = (
                pb.PackState(tid=under_way.pack.tid, phase="marking") if under_way is not None else self.state()
            )
            what = f"another pack is under way, to {which.tid.hex()} ({which.phase}); try again when it is done"
            reply(pb.Event(failure=busy(what, retry_after_ms=AGAIN_MS)))
        elif not self._changes(asked):
            reply(self._nothing(asked))
        else:
            command = pb.PackCommand(pack_id=asked.pack_id, tid=asked.tid, collect=asked.collect)
            try:
                index = self._propose(pb.Command(pack=command).SerializeToString())
            except NotLeader:
                reply(not_leader())
                return
            self._asked[index] = _Asked(self._term(), asked, [reply])

    def _changes(self, asked: pb.Pack) -> bool:
        pack, tid = self._engine.pack, min(asked.tid, self._engine.last_tid)
        if tid == pack.tid:
            return asked.collect and not pack.collect
        return tid > (pack.tid or Z64) and self._engine.transactions(Z64, tid, 0) != ([], None)

    def _nothing(self, asked: pb.Pack) -> pb.Event:
        """There is nothing to pack, or it was packed to this time or a later one before."""
        packed = self._engine.packed
        return pb.Event(pack=pb.PackState(pack_id=asked.pack_id, tid=packed, collect=asked.collect, phase="done"))

    @property
    def busy(self) -> bool:
        """The newest pack is not done on this node."""
        pack = self._engine.pack
        return self._engine.removes or (pack.collect and not pack.collected)

    def state(self) -> pb.PackState:
        """Of the newest pack, as far as this node is."""
        state = self._engine.pack_state()
        if self._collector is not None and state.phase == "marking":
            state.phase, state.done = self._collector.state()
            state.unit = "objects"
            state.total = max(state.done, self._collector.total)
        state.problem = self.problem
        return state

    @property
    def problem(self) -> str:
        """Why the garbage of the newest pack was not collected, as far as this node knows."""
        pack_id, problem = self._problem
        return problem if pack_id == self._engine.pack.pack_id else ""

    # ---- what the node tells -------------------------------------------------------------------------

    def proposed(self, index: int, data: Sequence[bytes]) -> None:
        """Entries from `index` on were appended to the log, by this node as the leader."""
        if self._collector is not None:
            self._collector.proposed(index, data)

    def applied(self, entries: Sequence[tuple[Entry, Applied]]) -> None:
        """What was applied, on any node in any role."""
        for entry, outcome in entries:
            if outcome.pack is not None:
                self._newest()
            asked = self._asked.pop(entry.index, None)
            if asked is not None:
                for reply in asked.replies:
                    reply(self._outcome(asked, entry, outcome))

    def _outcome(self, asked: _Asked, entry: Entry, outcome: Applied) -> pb.Event:
        if entry.term != asked.term:
            return lost()
        if outcome.pack is None:
            return failed(pb.INVALID, outcome.refused or "refused")
        return (
            pb.Event(pack=self.state())
            if outcome.pack.pack_id == asked.pack.pack_id
            else self._nothing(asked.pack)
        )

    def became_ready(self) -> None:
        """This node leads, and its engine holds all that was committed before."""
        self._leads = True
        self._newest()

    def lost_leadership(self) -> None:
        self._leads = False
        self._collector = None
        asked, self._asked = self._asked, {}
        for each in asked.values():
            for reply in each.replies:
                reply(lost())

    def _newest(self) -> None:
        """The pack may be another one than before, or its garbage known."""
        pack, collector = self._engine.pack, self._collector
        if not pack.collect or pack.collected or not self._leads:
            self._collector = None
        elif collector is None or collector.pack.pack_id != pack.pack_id:
            self._collector = Collector(self._engine, self._propose, self._last_index())

    # ---- work ----------------------------------------------------------------------------------------

    @property
    def work(self) -> bool:
        """Is there anything to do? It may have to wait for entries to be applied."""
        return self._engine.removes or self._collector is not None

    @property
    def refused(self) -> bool:
        """The log took nothing: `step` is to be called again some time later, even if nothing is applied."""
        return self._collector is not None and self._collector.refused

    def step(self) -> bool:
        """About a millisecond of work; False: there is none before something is applied."""
        collector = self._collector
        if collector is None:
            return self._engine.pack_step(STEP)
        more = collector.step()
        if collector.problem:
            self._problem = (collector.pack.pack_id, collector.problem)
        return more
