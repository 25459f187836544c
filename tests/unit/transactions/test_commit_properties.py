"""Coordinators of several nodes over one log: whatever happens, each transaction is committed at most once, and
one whose refusal a client may rely on never is.

Modelled of Raft: leaders that do not know that they are deposed, entries that a later leader inherits or loses,
a commit index that moves only over a leader's own no-op.
"""

from __future__ import annotations

from struct import Struct
from typing import Any

from hypothesis import event
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from raftstorage.node.engine.api import Z64
from raftstorage.node.engine.memory import MemoryEngine
from raftstorage.node.failures import not_leader
from raftstorage.node.raft.types import Entry, EntryKind
from raftstorage.node.tids import LAST_GIVEN
from raftstorage.node.works import CoordinatorLimits
from raftstorage.proto import storage_pb2 as pb

from tests.unit.service.fuzzing import Reply, Txn, explore
from tests.unit.transactions.coordinators import LEASE, Node

#: A client that gets one of these gives its transaction up for good.
FINAL = {pb.CONFLICT, pb.READ_CONFLICT, pb.STALE_TID, pb.LEASE_EXPIRED}
#: After these it asks again, with a Commit.
AGAIN = {pb.UNKNOWN_VOTE, pb.NOT_LEADER, pb.LEADERSHIP_LOST, pb.BUSY}


p64 = Struct(">Q").pack


numbers = st.integers(0, 3)
who = st.integers(0, 2)
picks = st.integers(0, 20)
#: Whom a client asks: mostly the leader, or one that may believe to be it.
whom = st.integers(0, 8)
#: Where it reads, what it writes and checks, a given tid behind the last, its first step, and where that goes.
specs = st.tuples(
    whom,
    st.lists(numbers, min_size=1, max_size=3, unique=True),
    st.lists(numbers, max_size=2, unique=True),
    st.sampled_from([None] * 5 + [-1, 0, 1, 9]),
    st.sampled_from(["vote", "vote", "vote", "finish", "commit", "commit"]),
    whom,
)


class CommitMachine(RuleBasedStateMachine):
    engine = MemoryEngine

    @initialize(waiting=st.sampled_from([1, 100]), restores=st.booleans())
    def begin(self, waiting: int, restores: bool) -> None:
        limits = CoordinatorLimits(waiting=waiting, expired=waiting)
        self.restores = restores
        self.now, self.wall = 1000.0, 1.7e9
        self.term = 0
        self.committed: list[tuple[int, bytes]] = []
        self.truth = self.engine()
        self.txns: dict[bytes, Txn] = {}
        self.bodies: dict[bytes, set[bytes]] = {}
        self.tids: dict[bytes, bytes] = {}
        self.given: set[int] = set()
        self.restored = False
        self.travelling: list[tuple[Node, Txn, str, int]] = []
        self.owners = [object() for _ in range(3)]
        self.nodes = [Node(self, limits) for _ in range(3)]
        self.leader = self.nodes[0]
        self.elect(0, 0, 9)

    # ---- the cluster ---------------------------------------------------------------------------------

    @rule(number=who, keep=st.integers(0, 3), then=st.integers(0, 9))
    def elect(self, number: int, keep: int, then: int) -> None:
        """`keep`: how much of the old leader's tail had reached a new one whose own log could not have won."""
        node, done = self.nodes[number], len(self.committed)
        if node.log[:done] != self.committed:
            node.log = self.leader.log[: done + keep]
        if node.leads or node.open:
            node.step_down()
        self.term += 1
        self.leader = node
        node.term, node.leads, node.ready = self.term, True, False
        node.log = [*node.log, (self.term, b"")]
        node.begins = len(node.log)
        self.commit_and_apply(then if then < 3 else 9)

    @rule(count=st.sampled_from([1, 1, 2, 9]))
    def commit(self, count: int) -> None:
        """A majority has some more of the leader's log."""
        done = len(self.committed)
        for term, data in self.leader.log[done : max(done + count, self.leader.begins)]:
            self.committed.append((term, data))
            kind = EntryKind.COMMAND if data else EntryKind.NOOP
            outcome = self.truth.apply(Entry(term, len(self.committed), kind, data))
            command = pb.Command.FromString(data)
            if outcome.refused and command.HasField("commit"):
                given = pb.Transaction.FromString(command.commit.transaction).tid
                assert given, f"a tid that a leader chose came too late: {outcome.refused}"
            if outcome.tid is not None and not outcome.repeated:
                txn = self.txns[outcome.transaction_id]
                assert txn.identity not in self.tids, "committed twice"
                assert txn.asked, "committed, and nobody asked for it"
                assert not txn.refused, f"committed, but its client was told {txn.refused}"
                assert self.body_of(command) in self.bodies[txn.identity]
                self.tids[txn.identity] = outcome.tid

    @rule(number=who, count=st.sampled_from([1, 1, 2, 9]))
    def apply(self, number: int, count: int) -> None:
        self.nodes[number].apply(count)

    @rule(count=st.sampled_from([1, 1, 2, 9]))
    def commit_and_apply(self, count: int) -> None:
        self.commit(count)
        self.leader.apply(count)

    @rule(number=who, busy=st.sampled_from([False, False, False, True]))
    def hear_of_the_new_leader(self, number: int, busy: bool) -> None:
        """Or hand leadership over oneself; no proposals are taken while that goes on."""
        node = self.nodes[number]
        node.busy = busy
        if node.leads and node is not self.leader:
            node.step_down()

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 10.0, 31.0]), wall=st.sampled_from([-5.0, 1.7e9, 1.8e9, 1e12]))
    def time_passes(self, seconds: float, wall: float) -> None:
        self.now += seconds
        self.wall = wall
        for node in self.nodes:
            node.coordinator.tick(self.now)

    # ---- clients -------------------------------------------------------------------------------------

    @rule(several=st.lists(specs, min_size=1, max_size=4))
    def transact_more(self, several: list[Any]) -> None:
        for each in several:
            self.transact(*each)

    @rule(number=who, several=st.lists(specs, min_size=2, max_size=4))
    def behind_the_back(self, number: int, several: list[Any]) -> None:
        """Commits at a new leader whose answers are lost are asked for again at the old one."""
        old = self.nodes.index(self.leader)
        self.elect(number, 0, 9)
        for _at, writes, checks, given, _then, _to in several:
            self.transact(8, writes, checks, given, "commit", 8)
            self.commit_and_apply(9)
        for txn in [each for each in self.txns.values() if each.state == "asking"]:
            self._ask(txn, self.nodes[old], "commit", 1)

    def transact(self, at: int, writes: list[int], checks: list[int], given: Any, then: str, to: int) -> None:
        engine = self._node(at).engine
        transaction = pb.Transaction()
        for oid in map(p64, writes):
            transaction.records.add(oid=oid, base_serial=engine.current_serial(oid) or Z64, data=b"data")
        for oid in map(p64, checks):
            transaction.checks.add(oid=oid, serial=engine.current_serial(oid) or Z64)
        if given is not None and self.restores:
            number = max(1, int.from_bytes(engine.last_tid, "big") + given)
            transaction.tid = min(p64(number), LAST_GIVEN)
            self.restored = True  # reserves nothing, and heeds no reservation
        txn = Txn(b"%016d" % len(self.txns), transaction)
        self.txns[txn.identity] = txn
        self.bodies[txn.identity] = {transaction.SerializeToString()}
        if then in ("vote", "finish"):
            self._vote(txn, self._node(to))
            if then == "finish" and txn.state == "voted" and txn.voted_at is not None:
                self._ask(txn, txn.voted_at, "finish", to)
        elif then == "commit":
            self._ask(txn, self._node(to), "commit", to)

    def _node(self, number: int) -> Node:
        if number < 3:
            return self.nodes[number]
        believers = [node for node in self.nodes if node.ready]
        return believers[number % len(believers)] if believers and number < 6 else self.leader

    def _pick(self, at: int, *states: str) -> Txn | None:
        some = [each for each in self.txns.values() if each.state in states]
        return some[at % len(some)] if some else None

    def _vote(self, txn: Txn, node: Node) -> None:
        txn.state, txn.voted_at = "voting", node
        txn.attempt += 1
        body = txn.transaction.SerializeToString()
        reply = Reply(self, node, "vote", txn, self.owners[txn.attempt % 3])
        if node.ready:
            self.hand_in(node.coordinator.vote, reply, body)
        else:
            reply(not_leader())

    def _ask(self, txn: Txn, node: Node, kind: str, delay: int) -> None:
        txn.state, txn.asked = "asking", True
        txn.attempt += 1
        if delay % 3:
            self._arrive(node, txn, kind, txn.attempt, unheard=delay % 3 == 2)
        else:
            self.travelling.append((node, txn, kind, txn.attempt))

    @rule(at=picks, number=whom)
    def vote_again(self, at: int, number: int) -> None:
        """Lost, refused, or replaced by what conflict resolution made of it."""
        txn = self._pick(at, "new", "voting", "voted", "conflict")
        if txn is None:
            return
        if txn.state == "conflict":
            for record in txn.transaction.records:
                record.base_serial = self.truth.current_serial(record.oid) or Z64
            for check in txn.transaction.checks:
                check.serial = self.truth.current_serial(check.oid) or Z64
            self.bodies[txn.identity].add(txn.transaction.SerializeToString())
        self._vote(txn, self._node(number))

    @rule(data=st.data(), delay=numbers)
    def finish(self, data: st.DataObject, delay: int) -> None:
        voted = [each for each in self.txns.values() if each.state == "voted"]
        for txn in data.draw(st.permutations(voted)) if voted else []:
            if txn.voted_at is not None:
                self._ask(txn, txn.voted_at, "finish", delay)

    @rule(data=st.data(), number=whom)
    def commit_again(self, data: st.DataObject, number: int) -> None:
        """Once a Finish or a Commit left, its client only ever asks with Commits."""
        for txn in list(self.txns.values()):
            if txn.state == "asking" and data.draw(st.booleans()):
                self._ask(txn, self._node(number), "commit", number)

    @precondition(lambda self: self.travelling)
    @rule(at=st.integers(0, 99), loses=st.integers(0, 9))
    def deliver(self, at: int, loses: int) -> None:
        request = self.travelling.pop(at % len(self.travelling))
        if loses < 9:
            self._arrive(*request)

    def _arrive(self, node: Node, txn: Txn, kind: str, attempt: int, unheard: bool = False) -> None:
        reply = Reply(self, node, kind, txn, self.owners[attempt % 3])
        reply.attempt, reply.unheard = attempt, unheard
        body = txn.transaction.SerializeToString()
        if not node.ready:
            reply(not_leader())
        elif kind == "finish":
            node.coordinator.finish(txn.identity, self.now, reply)
        else:
            self.hand_in(node.coordinator.commit, reply, body)

    def hand_in(self, call: Any, reply: Reply, body: bytes) -> None:
        """A vote or commit that arrives."""
        call(reply.owner, reply.txn.identity, pb.Transaction.FromString(body), body, self.now, reply)

    def body_of(self, command: pb.Command) -> bytes:
        """What is committed by an entry of the log."""
        return command.commit.transaction

    @rule(at=picks)
    def abort(self, at: int) -> None:
        """A client aborts only what it never asked to commit."""
        txn = self._pick(at, "voting", "voted", "conflict", "new")
        if txn is not None:
            txn.state, txn.refused = "over", "its abort"
            if txn.voted_at is not None and txn.voted_at.ready:
                txn.voted_at.coordinator.abort(txn.identity, self.now)

    @rule(number=who, whose=who)
    def close_session(self, number: int, whose: int) -> None:
        node, owner = self.nodes[number], self.owners[whose]
        node.coordinator.session_closed(owner, self.now)
        node.open = [reply for reply in node.open if reply.owner is not owner]

    @rule(number=who, count=st.sampled_from([1, 100, 5000]))
    def allocate(self, number: int, count: int) -> None:
        def reply(answer: pb.Event) -> None:
            if answer.HasField("oids"):
                first = int.from_bytes(answer.oids.first, "big")
                assert answer.oids.count == count
                given = set(range(first, first + count))
                assert not given & self.given, "an oid was given out twice"
                self.given |= given

        if self.nodes[number].ready:
            self.nodes[number].coordinator.allocate_oids(count, reply)

    def answered(self, reply: Reply, answer: pb.Event) -> None:
        txn, kind, reason = reply.txn, answer.WhichOneof("kind"), answer.failure.reason
        event(f"{reply.kind}: {pb.Reason.Name(reason) if reason else kind}")
        newest = reply.attempt == txn.attempt
        if kind == "committed":
            assert self.tids.get(txn.identity) == answer.committed.tid == self.truth.transaction_tid(txn.identity)
            txn.state = txn.state if reply.unheard else "over"
        elif reply.kind == "vote":
            assert kind == "vote" or reason in AGAIN | {pb.STALE_TID}
            if newest and txn.state == "voting":
                conflicts = bool(answer.vote.conflicts)
                txn.state = "new" if kind == "failure" else "conflict" if conflicts else "voted"
        elif reason in FINAL:
            if reply.kind == "finish" and reason in (pb.CONFLICT, pb.READ_CONFLICT):
                assert self.restored, "what was reserved was changed by somebody else"
            # A vote's lease says nothing of a Commit that was sent to somebody else since: a client must not heed
            # the answer to a Finish that it has given up (client/cluster/policy.py does not).
            if reason != pb.LEASE_EXPIRED or (newest and not reply.unheard):
                assert txn.identity not in self.tids, f"{pb.Reason.Name(reason)}, but it is committed"
                txn.state, txn.refused = "over", pb.Reason.Name(reason)
        else:
            assert reason in AGAIN, answer

    # ---- what holds ----------------------------------------------------------------------------------

    @rule()
    def settle(self) -> None:
        """When nothing is pending any more nothing is reserved, and everyone was answered."""
        node = self.leader
        node.busy = False
        state = node.coordinator
        for _ in range(200):
            self.commit(1 << 30)
            node.apply(1 << 30)
            while state.unfinished:
                state.advance(self.now)
            if not (state._voted or state._waiting or state._flying):
                break
            self.now += LEASE
            state.tick(self.now)
        assert not node.open
        held = state._reservations
        assert not any((state._voted, state._waiting, held.blocked, state._flights, state._flying))
        assert not held.writers and not held.readers and held.wide is None
        assert not any((state._preparing, state._examined, state._flying_weight))
        assert not any(works.weight for works in (state._voted, state._waiting, state._preparing))
        fresh = pb.Transaction()
        for oid in map(p64, range(4)):
            fresh.records.add(oid=oid, base_serial=node.engine.current_serial(oid) or Z64)
        answers: list[pb.Event] = []
        state.vote(None, b"f" * 16, fresh, fresh.SerializeToString(), self.now, answers.append)
        assert answers == [pb.Event(vote=pb.VoteReply())]
        state.abort(b"f" * 16, self.now)

    @invariant()
    def reservations_are_somebodys(self) -> None:
        for node in getattr(self, "nodes", []):
            state = node.coordinator
            held, wide = state._reservations, state._reservations.wide
            holders = {*state._voted, *state._flying}
            assert {*held.writers.values(), *(one for each in held.readers.values() for one in each)} <= holders
            assert wide is None or wide.identity in holders
            assert all(
                oid in held.writers or oid in held.readers or (wide is not None and wide.names(oid))
                for oid in held.blocked
            ), "nobody is waited for"
            assert {work.identity for line in held.blocked.values() for work in line} == set(state._waiting)
            assert not state._voted.keys() & state._waiting.keys()
            assert {flight.work.identity for flight in state._flights.values()} == set(state._flying)

    def teardown(self) -> None:
        if hasattr(self, "nodes"):
            self.settle()


def test_commits_over_leaders_that_come_and_go() -> None:
    explore(CommitMachine, 400, steps=50)
