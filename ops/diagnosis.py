"""What is wrong with a cluster, and what to do, read off its nodes' statuses. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from raftstorage.ops.status import NodeStatus, has_quorum, leader_of
from raftstorage.proto import admin_pb2 as pb
from rich.console import Console

#: A member that misses more than this is behind.
LAG_SECONDS = 10.0
LAG_ENTRIES = 10_000


@dataclass(frozen=True, slots=True)
class Finding:
    """`grave`: nothing can be committed, or one more failure would end commits."""

    text: str
    advice: str
    grave: bool = False

    def __str__(self) -> str:
        return f"{self.text}: {self.advice}"


def diagnose(statuses: Sequence[NodeStatus]) -> list[Finding]:
    """The gravest first; empty when all is well."""
    found = [*_leadership(statuses), *_members(statuses), *_nodes(statuses)]
    return sorted(found, key=lambda finding: not finding.grave)


def _leadership(statuses: Sequence[NodeStatus]) -> Iterator[Finding]:
    answered = [status for status in statuses if status.reply is not None]
    leader = leader_of(statuses)
    if not answered:
        yield Finding("no node answers", "start them, or name other addresses with --addresses", grave=True)
    elif leader is None or leader.reply is None:
        voters = _voters(answered[0].reply)
        needed = voters // 2 + 1
        yield Finding(
            "no leader, so nothing can be committed; reads go on where a node runs",
            f"{needed} of {voters} voters must run and reach each other; start those that are down",
            grave=True,
        )
    elif not has_quorum(statuses):
        yield Finding(
            f"node {leader.reply.node_id} leads, but no majority follows it",
            "start the voters that are down, and look at the network between them",
            grave=True,
        )
    ids = {status.reply.cluster_id for status in answered if status.reply is not None}
    if len(ids) > 1:
        yield Finding(f"the nodes asked are of {len(ids)} clusters", "name the addresses of one cluster")


def _voters(reply: pb.StatusReply | None) -> int:
    if reply is None:
        return 1
    own = 0 if reply.role == "learner" else 1
    return own + sum(peer.member_role in ("", "voter") for peer in reply.peers)


def _members(statuses: Sequence[NodeStatus]) -> Iterator[Finding]:
    """What the leader knows of the others."""
    leader = leader_of(statuses)
    reply = leader.reply if leader is not None else None
    if reply is None:
        return
    voters = [peer for peer in reply.peers if peer.member_role in ("", "voter")]
    away = [peer for peer in voters if not peer.connected]
    spare = len(voters) // 2 - len(away)
    for peer in reply.peers:
        name = f"node {peer.node_id} at {peer.address or 'an unknown address'}"
        if not peer.connected:
            counts = peer in voters
            more = f"; {max(0, spare)} more may fail" if counts else ""
            yield Finding(
                f"{name} is not connected to the leader{more}",
                "start it, or look at its log; if its disk is lost start it empty with --join; "
                f"if it is gone for good: raftstorage member remove {peer.node_id}",
                grave=counts and spare <= 0,
            )
        elif peer.state == "snapshot":
            yield Finding(f"{name} is being sent a snapshot", "wait; it misses more than the log holds")
        elif peer.lag_seconds > LAG_SECONDS or peer.lag_entries > LAG_ENTRIES:
            yield Finding(
                f"{name} is {peer.lag_seconds:.0f} s and {peer.lag_entries:,} entries behind",
                "look at its disk, its processor and the network to it",
            )
        if peer.problem:
            yield Finding(f"{name}: {peer.problem}", "see its log")
    if reply.joint:
        yield Finding("a change of voters is under way", "wait; it ends when a majority of both sets has it")


def _nodes(statuses: Sequence[NodeStatus]) -> Iterator[Finding]:
    """What each node says of itself."""
    for status in statuses:
        if status.reply is None:
            yield Finding(f"{status.address} does not answer ({status.error})", "start it, or look at its log")
            continue
        for problem in status.reply.problems:
            text, _, advice = problem.partition(": ")
            yield Finding(f"node {status.reply.node_id}: {text}", advice or "see its log")
    versions = sorted({status.reply.version for status in statuses if status.reply is not None})
    if len(versions) > 1:
        yield Finding(
            f"nodes run versions {', '.join(versions)}",
            "finish the upgrade; what is new is used when all members know it",
        )


def show_findings(statuses: Sequence[NodeStatus], console: Console) -> None:
    """Who leads, what is wrong, and what to do, for a person."""
    leader = leader_of(statuses)
    if leader is not None and leader.reply is not None:
        console.print(f"leader: node {leader.reply.node_id} at {leader.address}, term {leader.reply.term}")
    findings = diagnose(statuses)
    for finding in findings:
        style = "bold red" if finding.grave else "yellow"
        console.print(str(finding), style=style, markup=False, highlight=False, soft_wrap=True)
    if not findings:
        console.print("all is well", style="green")
