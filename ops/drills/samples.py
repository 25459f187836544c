"""What a soak measures: every second of each process, in a thread of its own."""

from __future__ import annotations

import os
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from raftstorage.ops.drills.drift import Point
from raftstorage.ops.local import ClusterError, LocalCluster
from raftstorage.ops.status import StatusClient
from raftstorage.proto import admin_pb2 as pb

EVERY_SECONDS = 1.0
_ANSWER_SECONDS = 0.8
_PAGE = os.sysconf("SC_PAGE_SIZE")
_LAG = re.compile(r"^raftstorage_node_loop_lag_seconds_(sum|count) (\S+)", re.MULTILINE)


@dataclass
class Series:
    """One thing measured of one subject. `lives`: a list of points for each process that it was measured of."""

    subject: str
    name: str
    lives: list[list[Point]] = field(default_factory=list)

    def add(self, at: float, value: float, *, new_life: bool = False) -> None:
        if new_life or not self.lives:
            self.lives.append([])
        self.lives[-1].append((at, value))

    def points(self) -> list[Point]:
        return [point for life in self.lives for point in life]


def process_figures(pid: int) -> dict[str, float]:
    """Resident bytes, handles and threads of a process, from /proc; empty without a /proc or such a process."""
    place = Path(f"/proc/{pid}")
    try:
        status = (place / "status").read_text()
        pages = int((place / "statm").read_text().split()[1])
        handles = len(os.listdir(place / "fd"))  # noqa: PTH208 - only how many
    except (OSError, IndexError):
        return {}
    threads = re.search(r"^Threads:\s+(\d+)", status, re.MULTILINE)
    if pages == 0:  # it has ended, and nobody has taken note of that yet
        return {}
    return {"rss": float(pages * _PAGE), "handles": float(handles), "threads": float(threads[1] if threads else 0)}


def bytes_on_disk(folders: Iterable[Path]) -> float:
    """What the files below the folders take up, each once whatever its names; files may go meanwhile."""
    sizes: dict[tuple[int, int], int] = {}
    for folder in folders:
        for where, _folders, names in os.walk(folder):
            for name in names:
                try:
                    found = os.lstat(Path(where) / name)
                except OSError:
                    continue
                sizes[found.st_dev, found.st_ino] = found.st_blocks * 512
    return float(sum(sizes.values()))


def log_length(reply: pb.StatusReply) -> int:
    """Entries that a node's log holds."""
    first = int(getattr(reply, "first_index", 0) or 1)  # a node that cannot cut its log does not tell
    return max(0, int(reply.last_index) - first + 1)


class Sampler:
    """Samples the nodes of `cluster` and other processes by `pids` (name -> pid) until it is left.

    `commits`: how many were acknowledged so far; the database's size is told for each.
    """

    def __init__(self, cluster: LocalCluster, pids: dict[str, int], commits: Callable[[], int]) -> None:
        self.series: dict[tuple[str, str], Series] = {}
        #: What ended the sampling, if something did.
        self.error: BaseException | None = None
        self._cluster = cluster
        self._others = pids
        self._commits = commits
        self._pids: dict[int, int] = {}
        self._lag: dict[int, tuple[float, float]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="raftstorage-soak-samples", daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        addresses = [self._cluster.address(i) for i in range(len(self._cluster))]
        due = time.monotonic()
        try:
            with StatusClient(addresses) as client:
                while not self._stop.is_set():
                    replies = [status.reply for status in client.ask(_ANSWER_SECONDS)]
                    for i, reply in enumerate(replies):
                        self._node(i, reply)
                    for name, pid in self._others.items():
                        self._put(name, process_figures(pid))
                    due = max(due + EVERY_SECONDS, time.monotonic())
                    self._stop.wait(due - time.monotonic())
        except BaseException as error:  # for whoever runs the soak
            self.error = error

    def _node(self, i: int, reply: pb.StatusReply | None) -> None:
        try:
            pid = self._cluster.pid(i)
        except ClusterError:  # it was killed and is not back yet
            return
        new_life = self._pids.get(i) != pid
        if new_life:
            self._pids[i] = pid
            self._lag.pop(i, None)
        directory = self._cluster.node_directory(i)
        logs = bytes_on_disk([directory / "log"])
        figures = process_figures(pid)
        figures["log"] = logs
        database = bytes_on_disk([directory]) - logs
        figures["database"] = database
        figures["database a commit"] = database / max(1, self._commits())
        if reply is not None:
            figures["log length"] = float(log_length(reply))
        lag = self._loop_lag(i)
        if lag is not None:
            figures["loop lag"] = lag
        self._put(f"node {i + 1}", figures, new_life=new_life)  # its place: it may get a new id

    def _loop_lag(self, i: int) -> float | None:
        """Mean seconds that the node's loop was late since the last sample."""
        url = f"http://{self._cluster.metrics_address(i)}/metrics"
        try:
            with urllib.request.urlopen(url, timeout=_ANSWER_SECONDS) as page:
                found = dict(_LAG.findall(page.read().decode()))
        except (OSError, urllib.error.URLError):
            return None
        total, count = float(found.get("sum", 0)), float(found.get("count", 0))
        before = self._lag.get(i)
        self._lag[i] = total, count
        if before is None or count <= before[1]:
            return None
        return (total - before[0]) / (count - before[1])

    def _put(self, subject: str, figures: dict[str, float], *, new_life: bool = False) -> None:
        now = time.monotonic()
        for name, value in figures.items():
            series = self.series.setdefault((subject, name), Series(subject, name))
            series.add(now, value, new_life=new_life)
