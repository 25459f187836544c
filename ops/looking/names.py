"""Oids, tids and times as people write them."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from persistent.TimeStamp import TimeStamp

_TID = re.compile(r"(?:0x)?([0-9a-fA-F]{16})")
_OID = re.compile(r"0x([0-9a-fA-F]{1,16})")


def parse_tid(text: str) -> bytes:
    """16 hexadecimal digits, as every command prints it. ValueError."""
    found = _TID.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"not a tid (16 hexadecimal digits): {text!r}")
    return bytes.fromhex(found[1])


def parse_oid(text: str) -> bytes:
    """16 hexadecimal digits, or 0x and some of them, or a decimal number. ValueError."""
    text = text.strip()
    found = _TID.fullmatch(text) or _OID.fullmatch(text)
    if found is not None:
        return int(found[1], 16).to_bytes(8)
    if text.isascii() and text.isdigit() and int(text) < 1 << 64:
        return int(text).to_bytes(8)
    raise ValueError(f"not an oid (16 hexadecimal digits, 0x..., or a number): {text!r}")


def parse_moment(text: str) -> bytes:
    """The tid of a moment: a tid, or a date and perhaps a time (ISO 8601, UTC unless it says more). ValueError."""
    if _TID.fullmatch(text.strip()):
        return parse_tid(text)
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(
            f"not a time (2026-11-25, 2026-11-25T07:30, with Z or +01:00) or a tid: {text!r}"
        ) from None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    seconds = moment.second + moment.microsecond / 1e6
    raw: bytes = TimeStamp(moment.year, moment.month, moment.day, moment.hour, moment.minute, seconds).raw()
    return raw


def time_of(tid: bytes) -> str:
    """ISO 8601, UTC, to the millisecond; of a tid that is no time (a test's) what it would be."""
    try:
        moment = datetime.fromtimestamp(TimeStamp(tid).timeTime(), UTC)
    except (ValueError, OverflowError, OSError):
        return "?"
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
