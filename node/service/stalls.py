"""How long the event loop is held up: everything a node does waits for that long."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)

#: A tick that comes so late is a stall; so late, it is named in the log. Seconds.
STALL_SECONDS = 0.05
TOLD_SECONDS = 0.2
#: At most one line in so many seconds.
QUIET_SECONDS = 10.0


class Stalls:
    """`lagged` on the loop; `take_longest` in any thread."""

    def __init__(self) -> None:
        self._longest = 0.0
        self._quiet_until = 0.0
        self._untold = 0
        self._worst_untold = 0.0

    def take_longest(self) -> float:
        """The longest lag since the last call, in seconds."""
        longest, self._longest = self._longest, 0.0
        return longest

    def lagged(self, seconds: float, now: float) -> bool:
        """A tick came `seconds` late; `now`: of a clock that is never set. True: it was a stall."""
        self._longest = max(self._longest, seconds)
        if seconds > TOLD_SECONDS:
            self._untold += 1
            self._worst_untold = max(self._worst_untold, seconds)
        if self._untold and now >= self._quiet_until:
            log.warning(
                "the event loop was held up for %.0f ms", self._worst_untold * 1000, extra={"stalls": self._untold}
            )
            self._quiet_until = now + QUIET_SECONDS
            self._untold, self._worst_untold = 0, 0.0
        return seconds > STALL_SECONDS
