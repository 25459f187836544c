"""`raftstorage pack`: has the leader pack the database, and tells how far it is."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from persistent.TimeStamp import TimeStamp
from raftstorage.client import ClusterError
from raftstorage.client.cluster import Call, Cluster
from raftstorage.client.cluster.errors import RequestRefused
from raftstorage.ops.errors import CommandError
from raftstorage.ops.status import size
from raftstorage.proto import HISTORY_LEVEL
from raftstorage.proto import storage_pb2 as pb
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

DAY = 86_400.0
#: A time so far ahead is taken for now: whoever named it may have another clock.
CLOCK_SECONDS = 60.0
#: How often the leader is asked how far it is: soon at first, then seldom.
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0
Z64 = bytes(8)
DOING = {"marking": "looking for garbage", "collecting": "naming garbage", "removing": "removing"}


def time_to_pack_to(days: float | None, at: str | None, now: float) -> float:
    """Seconds since 1970. `at`: a date and time of ISO 8601, local without a zone, or such seconds. ValueError.

    A time to come is refused: who names one is mistaken, and all that was replaced up to now would go.
    """
    if days is not None and at is not None:
        raise ValueError("give --days or --time, not both")
    if at is None:
        return now - (days or 0.0) * DAY
    seconds = _seconds_at(at)
    if seconds > now + CLOCK_SECONDS:
        raise ValueError(f"{at!r} is in the future: name a time up to now")
    return seconds


def _seconds_at(at: str) -> float:
    with suppress(ValueError):
        return float(at)
    try:
        return datetime.fromisoformat(at).timestamp()
    except ValueError:
        raise ValueError(f"{at!r} is no date and time, as 2026-01-31 or 2026-01-31T12:00") from None


def pack(
    addresses: str,
    seconds: float,
    collect: bool,
    timeout: float,
    told: Callable[[pb.PackState], object],
) -> pb.PackState:
    """Packs to that time (seconds since 1970), returns when the leader is done. `told`: gets each answer.

    `timeout`: seconds without a leader that are borne with. CommandError.
    """
    cluster = Cluster(addresses, name="pack", wait_timeout=timeout)
    try:
        cluster.open(patience=timeout)
        if not cluster.reaches(HISTORY_LEVEL):
            raise CommandError("not all members of the cluster know packs yet: bring their software up to date")
        last = cluster.read_point()
        if last == Z64:
            return pb.PackState(phase="done")
        tid = min(_tid_of(seconds), last)  # some seconds to come mean now
        call = Call("pack", pb.Pack(pack_id=os.urandom(16), tid=tid, collect=collect))
        pause, wake = FIRST_PAUSE, threading.Event()
        while True:
            state = cluster.lead(call)[0].pack  # the same id again asks how far it is, another leader too
            told(state)
            if state.phase == "done":
                return state
            wake.wait(pause)
            pause = min(LONGEST_PAUSE, pause * 1.5)
    except RequestRefused as refused:
        raise CommandError(f"the pack was refused: {refused.failure.message}") from None
    except ClusterError as error:
        raise CommandError(str(error)) from None
    finally:
        cluster.close()


def _tid_of(seconds: float) -> bytes:
    try:
        raw: bytes = TimeStamp(*time.gmtime(seconds)[:5], seconds % 60).raw()
    except (ValueError, OverflowError, OSError):
        raise ValueError("there is no such time") from None
    return raw


def _seconds_of(tid: bytes) -> float:
    return float(TimeStamp(tid).timeTime())


class Bar:
    """A progress bar, a context manager; `told` moves it."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(), console=console, transient=True,
        )  # fmt: skip
        self._task = self._progress.add_task("packing", total=None, count="")

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def told(self, state: pb.PackState) -> None:
        of = f" of {state.total:,}" if state.total else ""
        self._progress.update(
            self._task,
            description=DOING.get(state.phase, state.phase),
            completed=state.done,
            total=state.total or None,
            count=f"{state.done:,}{of} {state.unit}" if state.unit else "",
        )


def show(state: pb.PackState, console: Console) -> None:
    """What came of it."""
    if not state.tid:
        console.print("there is nothing to pack", highlight=False)
        return
    when = datetime.fromtimestamp(_seconds_of(state.tid), UTC).isoformat(" ", "seconds")
    parts = [f"{state.removed_records:,} records ({size(state.removed_bytes)})"]
    if state.collect:
        parts.append(f"among them {state.removed_objects:,} objects that nothing refers to")
    console.print(f"packed to {when}; the leader removed {', '.join(parts)}", highlight=False)
    if state.problem:
        console.print(state.problem, style="yellow", highlight=False, markup=False)


def as_json(state: pb.PackState) -> dict[str, Any]:
    """Ready for `json.dumps`."""
    return {
        "tid": state.tid.hex(),
        "collect": state.collect,
        "removed_records": state.removed_records,
        "removed_objects": state.removed_objects,
        "removed_bytes": state.removed_bytes,
        "problem": state.problem,
    }
