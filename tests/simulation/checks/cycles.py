"""Cycles in a graph of dependencies between transactions, by Adya's names.

Edges: ww (wrote the next version), wr (saw the version), rw (saw the version before the one that the other wrote).
G0: ww alone; G1c: ww and wr; G-single: one rw; G2: several.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Collection, Hashable, Iterable
from typing import Generic, Literal, NamedTuple, TypeVar

N = TypeVar("N", bound=Hashable)

Kind = Literal["ww", "wr", "rw"]


class Edge(NamedTuple, Generic[N]):
    source: N
    target: N
    kind: Kind
    why: str  # what it is about, for messages


def cycle(edges: Collection[Edge[N]]) -> tuple[str, list[Edge[N]]] | None:
    """The worst name that any cycle has, and a short cycle of that name. Edges to oneself do not count."""
    tangled = core([edge for edge in edges if edge.source != edge.target])
    if not tangled:
        return None
    written = [edge for edge in tangled if edge.kind == "ww"]
    if core(written):
        return "G0", any_cycle(core(written))
    seen = [edge for edge in tangled if edge.kind != "rw"]
    if core(seen):
        return "G1c", any_cycle(core(seen))
    for edge in tangled:
        if edge.kind == "rw":
            back = path(edge.target, edge.source, seen)
            if back:
                return "G-single", [edge, *back]
    return "G2", any_cycle(tangled)


def core(edges: Collection[Edge[N]]) -> list[Edge[N]]:
    """Without what no cycle can go through: edges that nothing leads to, or that lead to nothing. Kahn's way."""
    arriving = Counter(edge.target for edge in edges)
    rest = peeled(edges, {edge.source for edge in edges if not arriving[edge.source]}, arriving)
    leaving = Counter(edge.source for edge in rest)
    mirrored = [Edge(edge.target, edge.source, edge.kind, edge.why) for edge in rest]
    rest = peeled(mirrored, {edge.target for edge in rest if not leaving[edge.target]}, leaving)
    return [Edge(edge.target, edge.source, edge.kind, edge.why) for edge in rest]


def peeled(edges: Collection[Edge[N]], loose: Iterable[N], arriving: Counter[N]) -> list[Edge[N]]:
    """Takes away `loose`, the nodes that no edge leads to, and again what then is loose."""
    leaving = by_source(edges)
    work, gone = list(loose), set[N]()
    while work:
        node = work.pop()
        gone.add(node)
        for edge in leaving.get(node, ()):
            arriving[edge.target] -= 1
            if not arriving[edge.target]:
                work.append(edge.target)
    return [edge for edge in edges if edge.source not in gone]


def by_source(edges: Iterable[Edge[N]]) -> dict[N, list[Edge[N]]]:
    found: dict[N, list[Edge[N]]] = defaultdict(list)
    for edge in edges:
        found[edge.source].append(edge)
    return found


def any_cycle(edges: Collection[Edge[N]]) -> list[Edge[N]]:
    """In a core, where every way goes on: ahead to a node for the second time, and the shortest way around it."""
    ahead = {edge.source: edge for edge in edges}
    edge, visited = next(iter(edges)), set[N]()
    while edge.target not in visited:
        visited.add(edge.target)
        edge = ahead[edge.target]
    start = ahead[edge.target]
    return [start, *path(start.target, start.source, edges)]


def path(source: N, target: N, edges: Collection[Edge[N]]) -> list[Edge[N]]:
    """The shortest; empty if there is none."""
    leaving, came, queue = by_source(edges), dict[N, Edge[N]](), deque([source])
    while queue and target not in came:
        for edge in leaving.get(queue.popleft(), ()):
            if edge.target not in came:
                came[edge.target] = edge
                queue.append(edge.target)
    found: list[Edge[N]] = []
    while target != source:
        if target not in came:
            return []
        found.append(came[target])
        target = came[target].source
    return found[::-1]
