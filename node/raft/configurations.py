"""Which membership is in effect: the newest in the log, committed or not (Raft paper, section 6; thesis 4.1)."""

from __future__ import annotations

from collections.abc import Iterable

from .log import RaftLog
from .membership import Membership
from .types import Entry, EntryKind, RaftInvariantError


class Configurations:
    """The membership as of the commit index, and those of entries behind it, which may be taken back.

    `index`: of the newest one's entry; of the first one it is only known that its entry is not behind it.
    """

    def __init__(self, membership: Membership, applied: int, log: RaftLog, page_bytes: int) -> None:
        """`membership` is that as of `applied`; the log behind it is searched for newer ones.

        RaftInvariantError."""
        self._known = [(applied, membership)]
        low = applied + 1
        while low <= log.last_index:
            entries = log.entries(low, log.last_index + 1, page_bytes, 1024)
            self.append(entries)
            low += len(entries)

    @property
    def newest(self) -> Membership:
        return self._known[-1][1]

    @property
    def index(self) -> int:
        return self._known[-1][0]

    def may_campaign(self, node: int) -> bool:
        """Is it a voter, or was one before an entry that is not known to be committed?

        Who has only appended that it is no voter any more may be the only one whose log can win (thesis 4.2.2).
        """
        return any(membership.has_vote(node) for _, membership in self._known)

    def append(self, entries: Iterable[Entry]) -> bool:
        """Is there a newer one among them? RaftInvariantError: one that cannot be read."""
        before = len(self._known)
        for entry in entries:
            if entry.kind is EntryKind.MEMBERSHIP:
                try:
                    self._known.append((entry.index, Membership.decode(entry.data)))
                except ValueError as error:
                    raise RaftInvariantError(f"entry {entry.index} cannot be read: {error}") from error
        return len(self._known) > before

    def truncate(self, index: int) -> bool:
        """The entries from `index` on are gone: was one of them the newest?"""
        before = len(self._known)
        while len(self._known) > 1 and self._known[-1][0] >= index:
            self._known.pop()
        return len(self._known) < before

    def commit(self, index: int) -> None:
        """The entries up to `index` stay."""
        while len(self._known) > 1 and self._known[1][0] <= index:
            del self._known[0]

    def restore(self, index: int, membership: Membership, *, keep: bool) -> None:
        """A snapshot's membership as of `index`; with `keep` the log behind that stays. One without members: no
        entry up to there has changed the one that the cluster began with."""
        if not membership.members:
            membership = self._known[0][1]
        later = [each for each in self._known if each[0] > index] if keep else []
        self._known = [(index, membership), *later]
