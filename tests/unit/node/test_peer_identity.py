"""Who may speak as which node, in which version, and what nodes tell each other of themselves."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any

import grpc
import grpc.aio
import pytest
from raftstorage.node.service import peer_link
from raftstorage.node.service.peer_hello import HelloRefused, PeerInfo
from raftstorage.node.service.peer_link import PeerNote
from raftstorage.node.service.peer_problems import FORGET_SECONDS, MOST_PROBLEMS, PeerProblem, Problems
from raftstorage.node.service.peers import PeerTransport
from raftstorage.node.versions import VERSIONS, Versions
from raftstorage.proto import raft_pb2 as pb
from raftstorage.proto import raft_pb2_grpc

from tests.unit.node.peer_nodes import Nodes, PeerNode, end_of, exchange, hello, run, until

OLD, NEW = "0" * 32, "a" * 32


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftstorage.node.service.peer_dialer.REFUSED_SECONDS", (0.01, 0.02))


def impostor_text(node: int, address: str) -> str:
    return (
        f"node {node} came with another directory than the one that is member {node}: it lost its disk, or two "
        "nodes run with one id; let it join as a new member: raftstorage serve --dir NEW --join " + address
    )


# ---- instances ---------------------------------------------------------------------------------------------


def test_what_a_hello_says_is_reported_on_both_sides() -> None:
    async def work() -> None:
        versions = Versions(level=7, software="9.9\n of a test" + "!" * 100)
        async with Nodes(2, {1: {"instance": OLD}, 2: {"instance": NEW, "versions": versions}}) as nodes:
            await nodes.connected(1, 2)
            said = "9.9 of a test" + "!" * 50
            assert nodes.nodes[1].accepted == [PeerInfo(2, NEW, nodes.members[2], 7, said, 1)]
            assert nodes.nodes[1].accepted == [nodes.transports[1].peer_info(2)]
            one = PeerInfo(1, OLD, nodes.members[1], VERSIONS.level, VERSIONS.software, 1)
            assert nodes.nodes[2].accepted == [one]
            assert nodes.transports[2].peer_info(7) is None

    run(work())


def test_a_callback_that_fails_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        async with Nodes(2, {2: {"accepted": lambda peer: 1 / 0}}, errors=1) as nodes:
            await nodes.nodes[1].reaches(nodes.nodes[2], 1)

    run(work())


@pytest.mark.parametrize("impostor", [1, 3])
def test_a_node_that_lost_its_disk_is_refused_and_hears_why(
    impostor: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the lower id it dials; as the higher one it is dialled, and hears when it has something to say."""
    refusals: Counter[str] = Counter()
    refuse = PeerTransport._refuse

    async def counted(self: PeerTransport, context: Any, refused: HelloRefused) -> None:
        refusals[self.greeter.hello(impostor).address] += 1
        await refuse(self, context, refused)

    monkeypatch.setattr(PeerTransport, "_refuse", counted)

    async def work() -> None:
        async with Nodes(0) as nodes:
            judges = [PeerNode(node, instance=OLD) for node in (2, 4)]
            false = PeerNode(impostor, instance=NEW)
            members = {node.id: node.address for node in [*judges, false]}
            for node in [*judges, false]:
                node.known[impostor] = OLD
                await nodes.start(node, members)

            def refused_often() -> bool:
                for judge in judges:
                    false.send(judge.id, 1)
                return all(refusals[judge.address] >= 4 for judge in judges)

            await until(refused_often)
            found = {each.node_id: each for each in false.refused}
            assert len(false.refused) == len(found) == 2, "once for each"
            for judge in judges:
                text = impostor_text(impostor, judge.address)
                problem = found[judge.id]
                assert (problem.kind, problem.refused_us) == ("instance", True)
                assert problem.text == f"{judge.address}: FAILED_PRECONDITION: {text}"
                assert problem in false.transport.problems()
                assert not judge.transport.connected(impostor)
                assert impostor not in {each.node_id for each in judge.accepted}
                assert judge.got == []
                seen = judge.transport.problems()
                assert {(each.node_id, each.kind, each.refused_us) for each in seen} == {
                    (impostor, "instance", False)
                }
                assert any(text in each.text for each in seen)

    with caplog.at_level(logging.WARNING):
        run(work())
    texts = [record.getMessage() for record in caplog.records]
    assert len([text for text in texts if "FAILED_PRECONDITION" in text]) == 2, "it logs each refusal once"


def test_the_refusal_says_its_kind_to_a_machine() -> None:
    async def work() -> None:
        async with Nodes(2) as nodes:
            nodes.nodes[2].known[1] = OLD
            nodes.transports[2].update(nodes.members)
            async with grpc.aio.insecure_channel(nodes.members[2]) as channel:
                call = raft_pb2_grpc.PeersStub(channel).Exchange()
                await call.write(hello(1, 2, instance=NEW))
                why = impostor_text(1, nodes.members[2])
                assert await end_of(call) == (grpc.StatusCode.FAILED_PRECONDITION, why, "instance")

    run(work())


def test_while_it_is_not_known_who_it_is_the_first_stays() -> None:
    async def work() -> None:
        async with Nodes(2, {1: {"instance": OLD}}) as nodes:
            await nodes.connected(1, 2)
            link = nodes.transports[2]._links[1]
            for other in (NEW, ""):
                answers, code, why = await exchange(nodes.members[2], hello(1, 2, instance=other))
                assert (answers, code) == ([], grpc.StatusCode.FAILED_PRECONDITION)
                assert "another directory than the one that is connected as node 1" in why
            assert nodes.transports[2]._links[1] is link and not link.over.is_set()
            # The same directory may come anew.
            answers, code, _ = await exchange(nodes.members[2], hello(1, 2, instance=OLD), pb.PeerBatch())
            assert (len(answers), code) == (1, grpc.StatusCode.OK)
            assert link.over.is_set()

    run(work())


def test_of_two_that_wait_for_the_same_place_one_gets_it() -> None:
    """Both were dialled in while nobody was there, and the node waited for what becomes of its own dial."""

    async def work() -> None:
        async with Nodes(1) as nodes:
            one = nodes.nodes[1]
            turns: list[asyncio.Event] = []

            async def held(node: int) -> None:
                turns.append(asyncio.Event())
                await turns[-1].wait()

            one.transport._wait_for_own = held  # type: ignore[method-assign]
            async with grpc.aio.insecure_channel(one.address) as channel:
                calls = []
                for instance in (OLD, NEW):
                    calls.append(raft_pb2_grpc.PeersStub(channel).Exchange())
                    await calls[-1].write(hello(2, 1, instance=instance))
                    await until(lambda calls=calls: len(turns) == len(calls))
                turns[1].set()
                assert (await calls[1].read()).hello.node_id == 1
                turns[0].set()
                _code, why, kind = await end_of(calls[0])
                assert "another directory than the one that is connected" in why and kind == "instance"
                assert one.transport.peer_info(2).instance == NEW  # type: ignore[union-attr]

    run(work())


def test_a_link_ends_when_the_membership_learns_that_it_is_another_node() -> None:
    async def work() -> None:
        async with Nodes(2, {2: {"instance": NEW}}) as nodes:
            await nodes.connected(1, 2)
            one = nodes.transports[1]
            one.update(nodes.members)
            link = one._links[2]
            assert not link.over.is_set()
            nodes.nodes[1].known[2] = OLD
            one.update(nodes.members)
            assert link.over.is_set()
            assert [(each.node_id, each.kind) for each in one.problems()] == [(2, "instance")]
            await until(lambda: not one.connected(2))

    run(work())


# ---- versions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "common"),
    [((1, 2), (2, 3), 2), ((1, 4), (1, 3), 3), ((2, 2), (1, 9), 2), ((1, 1), (2, 2), 0), ((5, 6), (1, 3), 0)],
)
@pytest.mark.parametrize("turned", [False, True])
def test_the_newest_common_version_is_spoken(
    first: tuple[int, int], second: tuple[int, int], common: int, turned: bool
) -> None:
    if turned:
        first, second = second, first

    async def work() -> None:
        options = {1: {"versions": Versions(first)}, 2: {"versions": Versions(second)}}
        async with Nodes(2, options) as nodes:
            if common:
                await nodes.connected(1, 2)
                for node, peer in ((1, 2), (2, 1)):
                    info = nodes.transports[node].peer_info(peer)
                    assert info is not None and info.protocol == common
                return
            await until(lambda: all(transport.problems() for transport in nodes.transports.values()))
            spoken = [str(low) if low == high else f"{low} to {high}" for low, high in (first, second)]
            for node, peer in ((1, 2), (2, 1)):
                (problem,) = nodes.transports[node].problems()
                assert (problem.node_id, problem.kind) == (peer, "version")
                assert f"node 1 speaks protocol {spoken[0]}, node 2 speaks {spoken[1]}" in problem.text
                assert nodes.nodes[node].accepted == []
            assert [each.refused_us for each in nodes.nodes[1].refused] == [True]
            assert "UNIMPLEMENTED" in nodes.nodes[1].refused[0].text

    run(work())


def test_a_hello_without_an_oldest_version_means_one_version() -> None:
    async def work() -> None:
        async with Nodes(1, {1: {"versions": Versions((2, 3))}}) as nodes:
            _answers, code, why = await exchange(nodes.members[1], hello(2, 1, protocol_version=1))
            assert (code, why) == (
                grpc.StatusCode.UNIMPLEMENTED,
                "node 2 speaks protocol 1, node 1 speaks 2 to 3",
            )
            answers, code, _ = await exchange(nodes.members[1], hello(2, 1, protocol_version=2), pb.PeerBatch())
            assert code is grpc.StatusCode.OK
            mine = answers[0].hello
            assert (mine.min_protocol_version, mine.protocol_version) == (2, 3)
            assert nodes.nodes[1].accepted[0].protocol == 2

    run(work())


# ---- notes -------------------------------------------------------------------------------------------------


def test_nodes_tell_of_their_disks_at_once_and_then_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_link, "NOTE_SECONDS", 0.05)
    now = {"note": PeerNote(False, 0)}

    async def work() -> None:
        async with Nodes(2, {2: {"note": lambda: now["note"]}}) as nodes:
            one, two = nodes.nodes[1], nodes.nodes[2]
            assert one.transport.peer_note(2) is None
            await until(lambda: one.transport.peer_note(2))  # though nobody sends anything
            assert one.transport.peer_note(2) == PeerNote(False, 0)
            await nodes.connected(1, 2)
            assert two.transport.peer_note(1) is None, "node 1 has nothing to tell"
            now["note"] = PeerNote(True, 77)
            context = 0
            while one.transport.peer_note(2) != PeerNote(True, 77):
                context += 1
                two.send(1, context)
                await until(lambda: one.got and one.got[-1].context == context)  # noqa: B023
            await two.stop()
            await until(lambda: one.transport.peer_note(2) is None)

    run(work())


def test_notes_are_rare() -> None:
    notes: list[PeerNote] = []

    def note() -> PeerNote:
        notes.append(PeerNote(False, len(notes)))
        return notes[-1]

    async def work() -> None:
        async with Nodes(2, {2: {"note": note}}) as nodes:
            loop = asyncio.get_running_loop()
            begin = loop.time()
            await nodes.connected(1, 2)
            for context in range(200):
                nodes.nodes[2].send(1, context)
                await until(lambda: nodes.got[1] and nodes.got[1][-1].context == context)  # noqa: B023
            assert 1 <= len(notes) <= 1 + (loop.time() - begin) / peer_link.NOTE_SECONDS

    run(work())


def test_a_hello_with_a_note_is_none() -> None:
    async def work() -> None:
        async with Nodes(2) as nodes:
            first = hello(1, 2)
            first.status.SetInParent()
            _answers, code, why = await exchange(nodes.members[2], first)
            assert (code, why) == (
                grpc.StatusCode.FAILED_PRECONDITION,
                "the first batch is not a hello alone",
            )

    run(work())


# ---- problems ----------------------------------------------------------------------------------------------


def test_problems_are_logged_once_solved_forgotten_and_bounded(caplog: pytest.LogCaptureFixture) -> None:
    time = 0.0
    problems = Problems(lambda: time)
    one, other = PeerProblem(1, "one"), PeerProblem(1, "other")
    with caplog.at_level(logging.WARNING):
        news: list[Any] = [problems.add(each, dialling=True) for each in (one, one, other, one)]
        assert news == [True, False, True, True]
        assert problems.add(other, dialling=False), "the other side of streams is another matter"
        assert not problems.add(one, dialling=True)
    assert [record.getMessage() for record in caplog.records] == [
        f"peer 1: {text}" for text in ("one", "other", "one", "other")
    ]
    assert set(problems.current()) == {one, other}
    problems.solved(1)
    assert problems.current() == []
    problems.add(one, dialling=True)
    time = FORGET_SECONDS + 1
    problems.add(PeerProblem(0, "nobody knows"), dialling=False)
    assert problems.current() == [PeerProblem(0, "nobody knows")]
    for node in range(MOST_PROBLEMS + 10):
        problems.add(PeerProblem(node, "many"), dialling=False)
    assert [each.node_id for each in problems.current()] == list(range(10, MOST_PROBLEMS + 10))
