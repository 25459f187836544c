"""Majorities. Every function takes any number of voter sets and wants a majority of each: with two sets that is
the rule of joint consensus (Raft paper, section 6)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Set


def majority(voters: Collection[int]) -> int:
    """How many of `voters` are more than half."""
    return len(voters) // 2 + 1


def has_quorum(configurations: Collection[Set[int]], agreed: Set[int]) -> bool:
    """Has each configuration a majority in `agreed`?"""
    return all(len(voters & agreed) >= majority(voters) for voters in configurations)


def is_lost(configurations: Collection[Set[int]], refused: Set[int]) -> bool:
    """Can a majority no longer be reached?"""
    return any(len(voters) - len(voters & refused) < majority(voters) for voters in configurations)


def committed_index(configurations: Collection[Set[int]], match: Callable[[int], int]) -> int:
    """The highest index that a majority of each configuration has."""
    return min(
        sorted((match(node) for node in voters), reverse=True)[majority(voters) - 1] for voters in configurations
    )
