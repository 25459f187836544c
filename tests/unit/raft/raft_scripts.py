"""Plays scripts: text files that tell a story, drive a cluster and hold the trace that this produces.

A script is paragraphs: comment lines (`#`), command lines (`> `), then what the commands print. `play` returns
the script with what they really print; it is right when nothing changed. The commands:

cluster 3 learners=4 election=10 batch=8 window=4 log2=1*3,2    log2: the terms on node 2's disk
tick 1 [3], time-out 1, propose 1 a b, read 2 7, transfer 1 3
elect 1 [by=2,3]                  a whole election; with `by` nothing but these nodes' votes is delivered
write 1 [2]                       the oldest writes (one by default) become durable
deliver APPEND 1->2, drop *->2    of what flies now; also: count=1 (the oldest), last (the newest)
settle [frozen=2,3]               delivers and writes until all is quiet, but nodes in `frozen` write nothing
crash 2, restart 2 [applied=0], cut 1 2, isolate 1, heal
join 5                            a new node runs, with an empty disk and without members
change 1 promote=4 demote=2 remove=3 add=6 learner=5
compact 1 [5]                     forgets the entries up to there, or all that were applied
install 3                         the snapshot that it was told to fetch
flying, logs, status, members, progress 1
quiet COMMAND                     prints nothing

An entry is `index/term:data`, in `logs` with a `~` before it where it is not durable; `5/1..` before all of them
is what the log begins behind. A membership is `{1,2,3}`, `{1,2 learner 3}`, or joint `{1,4 from 1,2,3}`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

from raftstorage.node.raft.membership import Change, Member, MemberRole, MembershipError
from raftstorage.node.raft.types import Entry, EntryKind, HardState, Message, NotLeader

from tests.unit.raft.memory_log import MemoryLog
from tests.unit.raft.raft_cluster import Cluster
from tests.unit.raft.raft_node import Node
from tests.unit.raft.raft_words import show, show_entry, show_membership

SHORT = {"election": "election_ticks", "batch": "max_message_entries", "window": "max_inflight_messages"}
ALL = 1 << 30


Choice = Callable[[Message], bool]


def anything(message: Message) -> bool:
    return True


class ScriptError(Exception):
    """The script cannot be understood; says where."""


class LossTellingCluster(Cluster):
    """Also traces what a cut or a crash swallows."""

    def deliver(self, choose: Choice = anything, count: int = ALL) -> int:
        chosen = [message for message in self.flying if choose(message)][:count]
        lost = [message for message in chosen if self._is_lost(message)]
        for message in lost:
            self.flying.remove(message)
            self.trace(f"  {show(message)} -- lost")
        return len(lost) + super().deliver(one_of([each for each in chosen if not self._is_lost(each)]))

    def _is_lost(self, message: Message) -> bool:
        return (message.from_node, message.to_node) in self.cuts or not self.is_up(message.to_node)


def as_number(word: str) -> int:
    if not word.isdecimal():
        raise ScriptError(f"not a number: {word}")
    return int(word)


class Arguments:
    """The words after a command; each is taken once, and none may be left."""

    def __init__(self, words: Iterable[str]) -> None:
        words = list(words)
        self.words = [word for word in words if "=" not in word]
        self.options = dict(word.split("=", 1) for word in words if "=" in word)

    def number(self, what: str, default: int | None = None) -> int:
        if not self.words and default is None:
            raise ScriptError(f"{what} is missing")
        return as_number(self.words.pop(0)) if self.words else default or 0

    def option(self, name: str, default: int) -> int:
        return as_number(self.options.pop(name, str(default)))

    def option_numbers(self, name: str) -> list[int]:
        return [as_number(each) for each in self.options.pop(name, "").split(",") if each]


class Player:
    """Runs commands on one cluster; `printed` is what they print."""

    def __init__(self) -> None:
        self.printed: list[str] = []
        self._cluster: Cluster | None = None

    @property
    def cluster(self) -> Cluster:
        if self._cluster is None:
            raise ScriptError("no cluster yet")
        return self._cluster

    def run(self, command: str) -> None:
        name, *words = command.removeprefix("quiet ").split() or [""]
        before, arguments = len(self.printed), Arguments(words)
        self._new_cluster(arguments) if name == "cluster" else self._run(name, arguments)
        if left := arguments.words + [f"{name}={value}" for name, value in arguments.options.items()]:
            raise ScriptError(f"not understood: {' '.join(left)}")
        self.cluster.checks.logs()
        if command.startswith("quiet "):
            del self.printed[before:]

    def _node(self, arguments: Arguments, *, up: bool | None = True) -> int:
        node = arguments.number("a node")
        if node not in self.cluster.nodes:
            raise ScriptError(f"no such node: {node}")
        if up is not None and self.cluster.nodes[node].up is not up:
            raise ScriptError(f"node {node} is {'down' if up else 'up'}")
        return node

    def _run(self, name: str, its: Arguments) -> None:
        cluster, printed = self.cluster, self.printed
        match name:
            case "tick":
                cluster.tick(self._node(its), its.number("how often", 1))
            case "time-out" | "crash":
                (cluster.crash if name == "crash" else cluster.time_out)(self._node(its))
            case "elect":
                node, voters = self._node(its), its.option_numbers("by")
                cluster.elect(node, votes_among({node, *voters}) if voters else anything)
            case "propose":
                node, data, its.words = self._node(its), its.words, []
                try:
                    cluster.propose(node, *(each.encode() for each in data))
                except NotLeader as error:
                    printed.append(f"not proposed: {error}")
            case "read":
                cluster.read(self._node(its), its.number("the request"))
            case "transfer":
                cluster.transfer(self._node(its), self._node(its, up=None))
            case "write":
                cluster.write(self._node(its), its.number("how many", 1))
            case "deliver":
                cluster.deliver(one_of(self._chosen(its)))
            case "drop":
                chosen = self._chosen(its)
                printed += [f"  {show(message)} -- dropped" for message in chosen]
                cluster.drop(one_of(chosen))
            case "settle":
                cluster.settle(frozen=its.option_numbers("frozen"))
            case "restart":
                node = self._node(its, up=False)
                cluster.restart(node, its.option("applied", len(cluster.nodes[node].applied)))
            case "isolate":
                cluster.isolate(self._node(its, up=None))
            case "cut":
                cluster.cut(self._node(its, up=None), self._node(its, up=None))
            case "heal":
                cluster.heal()
            case "join" | "change" | "compact" | "install":
                self._run_members(name, its)
            case "flying":
                printed += [f"  {show(message)}" for message in cluster.flying] or ["nothing flies"]
            case "logs":
                printed += [f"{node}: {show_log(it)}" for node, it in cluster.nodes.items()]
            case "members":
                printed += [f"{node}: {show_members(it)}" for node, it in cluster.nodes.items()]
            case "status":
                printed += [f"{node}: {show_state(it)}" for node, it in cluster.nodes.items()]
            case "progress":
                for node, it in cluster[self._node(its)].progress().items():
                    in_flight = f"in flight {len(it.inflight)}"
                    printed.append(f"{node}: {it.state.value}, has {it.match}, next {it.next}, {in_flight}")
            case _:
                raise ScriptError(f"unknown command: {name}")

    def _run_members(self, name: str, its: Arguments) -> None:
        """What has to do with members and snapshots."""
        cluster, printed = self.cluster, self.printed
        match name:
            case "join":
                cluster.join(its.number("a node"))
            case "compact":
                node = self._node(its)
                cluster.compact(node, its.number("up to which entry", len(cluster.nodes[node].applied)))
            case "install":
                if not cluster.install(self._node(its)):
                    printed.append("nothing to install")
            case "change":
                node = self._node(its)
                promote, demote, remove, add, learners = map(
                    its.option_numbers, ("promote", "demote", "remove", "add", "learner")
                )
                new = [Member(each) for each in add] + [Member(each, MemberRole.LEARNER) for each in learners]
                try:
                    cluster.change(
                        node, Change(tuple(new), frozenset(promote), frozenset(demote), frozenset(remove))
                    )
                except (NotLeader, MembershipError) as error:
                    printed.append(f"refused: {error}")

    def _new_cluster(self, its: Arguments) -> None:
        voters, learners = range(1, its.number("how many voters") + 1), its.option_numbers("learners")
        options: dict[str, Any] = {
            long: its.option(name, 0) for name, long in SHORT.items() if name in its.options
        }
        logs = {n: as_log(its.options.pop(f"log{n}")) for n in (*voters, *learners) if f"log{n}" in its.options}
        self._cluster = LossTellingCluster(voters, learners, logs=logs, trace=self.printed.append, **options)

    def _chosen(self, its: Arguments) -> list[Message]:
        """What flies and is all that the words say: its kind, its way (`1->2`, `1->*`, `*->2`)."""
        count, words, its.words = its.option("count", ALL), set(its.words), []
        chosen = [message for message in self.cluster.flying if words - {"last"} <= names(message)][:count]
        if not chosen:
            raise ScriptError("no such message flies")
        return chosen[-1:] if "last" in words else chosen


def names(message: Message) -> set[str]:
    source, target = message.from_node, message.to_node
    return {message.type.name, f"{source}->{target}", f"{source}->*", f"*->{target}"}


def as_log(terms: str) -> MemoryLog:
    """`1*3,2`: three entries of term 1 and one of term 2."""
    found: list[int] = []
    for part in terms.split(","):
        term, _, count = part.partition("*")
        found += [as_number(term)] * as_number(count or "1")
    entries = [Entry(term, index, EntryKind.COMMAND, b"x") for index, term in enumerate(found, 1)]
    return MemoryLog(entries, HardState(max(found)))


def one_of(messages: list[Message]) -> Choice:
    return lambda message: any(message is each for each in messages)


def votes_among(nodes: set[int]) -> Choice:
    return lambda message: "VOTE" in message.type.name and {message.from_node, message.to_node} <= nodes


def show_log(it: Node) -> str:
    core = it.core
    if it.up:
        entries, stable, state = it.log(), core.log.stable, f"commit {core.commit_index} term {core.term}"
        base = (core.log.base, core.log.term(core.log.base))
    else:
        stable, state, base = it.disk.last_index(), f"down, term {it.disk.hard_state.term}", it.disk.base
        entries = it.disk.entries(base[0] + 1, stable + 1, ALL) if stable > base[0] else []
    parts = [f"{base[0]}/{base[1]}.."] if base[0] else []
    parts += [("~" if each.index > stable else "") + show_entry(each) for each in entries]
    return " ".join([*parts, "|", state])


def show_members(it: Node) -> str:
    if not it.up:
        return "down"
    core = it.core
    committed = "" if core.membership_index <= core.commit_index else ", not known to be committed"
    return f"{show_membership(core.membership)} of entry {core.membership_index}{committed}"


def show_state(it: Node) -> str:
    role, term, leader, commit = it.core.role.value, it.core.term, it.core.leader or "none", it.core.commit_index
    return f"{role}, term {term}, leader {leader}, commit {commit}, applied {len(it.applied)}" if it.up else "down"


def play(name: str, text: str) -> str:
    """The script with what its commands print. ScriptError; all errors are told with the line that raised them."""
    player = Player()
    paragraphs = groupby(enumerate(text.splitlines(), 1), lambda each: bool(each[1].strip()))
    return "\n".join(_play_paragraph(player, name, lines) for filled, lines in paragraphs if filled)


def _play_paragraph(player: Player, name: str, lines: Iterable[tuple[int, str]]) -> str:
    player.printed.clear()
    kept, part = list[str](), 0  # of a paragraph: 0 comment, 1 commands, 2 output
    for number, line in lines:
        try:
            now = 0 if line.startswith("#") else 1 if line.startswith("> ") else 2
            if now < part or now > part + 1 or (now == 1 and not kept):
                raise ScriptError("a paragraph is a comment, then commands, then what they print")
            part = now
            kept += [line] if now < 2 else []
            if now == 1:
                player.run(line.removeprefix("> ").strip())
        except ScriptError as error:
            raise ScriptError(f"{name}:{number}: {error}") from error
        except Exception as error:
            error.add_note(f"{name}:{number}: {line}")
            raise
    return "\n".join(kept + player.printed) + "\n"
