"""ClientStorage's options as text: what each is called, and what it is made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from ZConfig.datatypes import SuffixMultiplier, asBoolean

from ..cluster.addresses import parse_addresses

_BYTES = SuffixMultiplier({"kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30})
_AS_NUMBERS = {"1": True, "t": True, "0": False, "f": False}


def boolean(text: str) -> bool:
    """As ZConfig writes it (yes, on, true) or zodburi (1, t). ValueError."""
    known = _AS_NUMBERS.get(text.lower())
    return bool(asBoolean(text)) if known is None else known


def number_of_bytes(text: str) -> int:
    """Bytes, also with kB, MB or GB. ValueError."""
    size = int(_BYTES(text))
    if size < 0:
        raise ValueError(f"not a number of bytes: {text!r}")
    return size


def seconds(text: str) -> float:
    """ValueError for anything but a number from 0 on."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(f"not a number of seconds: {text!r}")
    return value


def consistency(text: str) -> str:
    if text not in ("snapshot", "linearizable"):
        raise ValueError(f"consistency is 'snapshot' or 'linearizable', not {text!r}")
    return text


#: By ClientStorage's names; a configuration file has "-" for "_".
OPTIONS: dict[str, Callable[[str], Any]] = {
    "name": str,
    "read_only": boolean,
    "wait": boolean,
    "wait_timeout": seconds,
    "commit_timeout": seconds,
    "consistency": consistency,
    "cache_size": number_of_bytes,
    "cache_path": str,
    "blob_dir": str,
    "blob_cache_size": number_of_bytes,
    "blob_cache_size_check": int,
    "shared_blob_dir": boolean,
    "pack_gc": boolean,
}


def servers(texts: Iterable[str]) -> tuple[str, ...]:
    """Addresses, each text with one or several of them. ValueError when one is malformed or there is none."""
    return parse_addresses(part for text in texts for part in re.split(r"[,\s]+", text) if part)
