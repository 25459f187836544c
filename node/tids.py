"""Tids: eight bytes, big-endian, in the format of ZODB's TimeStamp. Pure."""

from __future__ import annotations

import calendar
import time

_SECOND_UNIT = 60.0 / (1 << 32)


def timestamp_tid(now: float) -> bytes:
    """`now` (Unix seconds) as ZODB's TimeStamp: minutes of a calendar with 31-day months, then 2**-32 minutes.

    A clock before 1970 counts as 1970, one after LAST_GIVEN as that: it must not use all tids up.
    """
    now = min(max(now, 0.0), _LAST_SECOND)
    year, month, day, hour, minute = time.gmtime(now)[:5]
    return _minutes(year, month, day, hour, minute) + int(now % 60 / _SECOND_UNIT).to_bytes(4, "big")


def after(tid: bytes) -> bytes:
    """The next tid. Above the last one there is none: see LAST_GIVEN."""
    return (int.from_bytes(tid, "big") + 1).to_bytes(8, "big")


def _minutes(year: int, month: int, day: int, hour: int, minute: int) -> bytes:
    return ((((year - 1900) * 12 + month - 1) * 31 + day - 1) * 24 * 60 + hour * 60 + minute).to_bytes(4, "big")


#: The last tid that a client may bring along (restore): the start of the year 3000. Every later tid is above it,
#: so one near the end of the range would leave none for those who come after it, for good.
LAST_GIVEN = _minutes(3000, 1, 1, 0, 0) + bytes(4)
_LAST_SECOND = float(calendar.timegm((3000, 1, 1, 0, 0, 0)))
