"""Ranges of protocol versions, as hellos carry them: who can talk to whom, and in which version."""

from __future__ import annotations

#: (oldest, newest) that somebody speaks.
Range = tuple[int, int]


def spoken(newest: int, oldest: int) -> Range:
    """The range that a hello means by its two fields: an `oldest` of 0 is the same as `newest`."""
    return oldest or newest, newest


def agreed(mine: Range, theirs: Range) -> int | None:
    """The newest version that both speak; None when there is none."""
    newest = min(mine[1], theirs[1])
    return newest if newest >= max(mine[0], theirs[0]) else None


def named(versions: Range) -> str:
    """For a person: "3", or "1 to 3"."""
    oldest, newest = versions
    return str(newest) if oldest == newest else f"{oldest} to {newest}"
