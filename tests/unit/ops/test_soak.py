"""A soak's arithmetic, its report, its readers' eyes and its choice of victims."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ZODB
from raftstorage.ops.cli import app
from raftstorage.ops.drills import harm, reader
from raftstorage.ops.drills.drift import Point
from raftstorage.ops.drills.objects import Mark, Slot
from raftstorage.ops.drills.report import Ack, analyse
from raftstorage.ops.drills.samples import Series, bytes_on_disk, process_figures
from raftstorage.ops.drills.soak_report import KINDS, SoakReport, judge_all, show, sparkline, windows
from rich.console import Console
from typer.testing import CliRunner
from ZODB.DemoStorage import DemoStorage

MIB = 1 << 20


def acks(count: int, every: float = 0.1, took: float = 0.02) -> list[Ack]:
    return [Ack(0, f"uid{n}", f"tid{n}", n * every - took, n * every) for n in range(count)]


def series(name: str, points: list[Point], subject: str = "node 1") -> Series:
    return Series(subject, name, [points])


def growing(per_second: float, seconds: int = 1800, level: float = 100.0) -> list[Point]:
    return [(float(at), level + per_second * at) for at in range(seconds)]


def report(*judged: Series, **changes: Any) -> SoakReport:
    done = acks(100)
    commits = analyse(done, [], {a.uid: [a.tid] for a in done}, end=10.0, seconds=10.0, writers=1)
    whole = SoakReport(commits, 3, 50, 0, {"leader killed": 2}, (), (), judge_all(judged))
    return replace(whole, **changes)


# ---- windows ---------------------------------------------------------------------------------------------------


def test_windows_count_and_time_what_was_acknowledged_in_each() -> None:
    quick, slow = acks(50), [replace(ack, begun=ack.acknowledged - 1.0) for ack in acks(100)[50:]]
    rate, median, worst = windows([*quick, *slow], 1.0)
    assert [value for _, value in rate.points()] == [10.0] * 9  # the tenth is not whole
    assert [round(value, 3) for _, value in median.points()] == [0.02] * 5 + [1.0] * 4
    assert worst.points()[0] == (0.5, pytest.approx(0.02))


def test_a_window_without_a_commit_counts_as_none_and_has_no_latency() -> None:
    rate, median, _ = windows([acks(1)[0], *[replace(ack, acknowledged=3.5) for ack in acks(20)]], 1.0)
    assert [value for _, value in rate.points()] == [1.0, 0.0, 0.0]
    assert len(median.points()) == 1
    assert [each.points() for each in windows([], 1.0)] == [[], [], []]


# ---- the verdict -----------------------------------------------------------------------------------------------


def test_what_is_steady_holds() -> None:
    good = report(series("rss", growing(0, level=200 * MIB)), series("commits/s", growing(0), "all writers"))
    assert good.ok
    assert [each.verdict.word for each in good.judged] == ["steady", "steady"]


@pytest.mark.parametrize(
    ("name", "points"),
    [
        ("rss", growing(0.2 * MIB)),
        ("handles", growing(0.2)),
        ("threads", growing(0.02)),
        ("loop lag", growing(0.0001, level=0.001)),
        ("log", growing(0.5 * MIB)),
        ("log length", growing(300)),
        ("database a commit", growing(1, level=500)),
        ("commits/s", growing(-0.1, level=300)),
        ("commit p50", growing(0.00002, level=0.004)),
        ("commit p99", growing(0.001, level=0.05)),
    ],
)
def test_each_kind_has_a_drift_that_fails_the_soak(name: str, points: list[Point]) -> None:
    bad = report(series(name, points))
    assert [each.name for each in bad.drifting] == [name]
    assert not bad.ok


def test_every_kind_but_the_databases_size_is_judged() -> None:
    assert [name for name, kind in KINDS.items() if kind.tolerance is None] == ["database"]
    (judged,) = report(series("database", growing(MIB))).judged
    assert judged.verdict.word == "not judged"


def test_a_restart_begins_anew_only_what_it_ends() -> None:
    sawtooth = [[(at + 200.0 * life, 40 + at / 5) for at in range(180)] for life in range(9)]
    (handles, log) = judge_all([Series("node 1", "handles", sawtooth), Series("node 1", "log length", sawtooth)])
    assert handles.verdict.drifts  # in every life of it
    assert not log.verdict.drifts  # a log is the same after a restart as before


@pytest.mark.parametrize("changes", [{"wrong": ("went back",)}, {"ended": ("node 1 ended",)}])
def test_what_must_not_happen_fails_the_soak(changes: dict[str, Any]) -> None:
    assert report().ok
    assert not report(**changes).ok


def test_a_lost_commit_fails_the_soak() -> None:
    done = acks(100)
    commits = analyse(done, [], {a.uid: [a.tid] for a in done[1:]}, end=10.0, seconds=10.0, writers=1)
    bad = report(commits=commits)
    assert not bad.ok
    assert bad.as_json()["lost"] == ["uid0"]


# ---- how it is told --------------------------------------------------------------------------------------------


def test_the_json_has_every_series_and_is_json() -> None:
    told = report(series("rss", growing(0.2 * MIB)), series("database", growing(1))).as_json()
    again = json.loads(json.dumps(told, allow_nan=False))
    assert again == told
    assert again["drifting"] == ["node 1: rss"]
    assert [len(each["points"]) for each in again["series"]] == [60, 60]
    assert again["series"][0]["points"][0][0] < 60  # seconds of the run, not of some clock


def test_the_page_names_the_worst_of_several_nodes_and_all_that_is_wrong() -> None:
    out = io.StringIO()
    bad = report(
        series("handles", growing(0.001), "node 1"),
        series("handles", growing(0.2), "node 2"),
        series("handles", growing(0), "writer 0"),
        series("rss", growing(0, 100), "node 3"),
        wrong=("reader 0: drill-0 went back",),
        ended=("node 3 ended by itself with exit code 70: fatal",),
    )
    show(bad, Console(file=out, width=120))
    text = out.getvalue()
    assert "node 2" in text
    assert "node 1" not in text
    assert "writer 0" in text
    for line in (
        "drifts: node 2, handles",
        "reader 0: drill-0 went back",
        "node 3 ended by itself with exit code 70: fatal",
        "not judged: rss: 600 s are needed, the longest life had 99 s",
        "did not hold",
    ):
        assert line in text
    assert "…" not in text


def test_a_sparkline_goes_from_the_lowest_to_the_highest() -> None:
    assert sparkline([(0, 5), (1, 10), (2, 7.5)]) == "▁█▅"
    assert sparkline([(at, at) for at in map(float, range(1000))], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([(0, 3), (1, 3)]) == "▁▁"
    assert sparkline([]) == ""


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from raftstorage.ops.drills.soak_plot import plot
    from raftstorage.ops.errors import CommandError

    found = report(series("rss", growing(0.2 * MIB)), series("commit p50", growing(0), "all writers"))
    plot(found, [60.0, 120.0], tmp_path / "soak.svg")
    text = (tmp_path / "soak.svg").read_text()
    assert "<!-- rss, MiB -->" in text
    assert "<!-- node 1 (drifts) -->" in text
    with pytest.raises(CommandError, match="cannot draw"):
        plot(found, [], tmp_path / "soak.nonsense")


# ---- samples ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
def test_a_processs_figures_are_its_own() -> None:
    with (Path(os.devnull)).open() as _:
        with_one = process_figures(os.getpid())
    without = process_figures(os.getpid())
    assert with_one["handles"] == without["handles"] + 1
    assert with_one["threads"] >= 1
    assert 5 * MIB < with_one["rss"] < 4096 * MIB
    ended = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert ended.stdout is not None
    ended.stdout.read()  # it ends, and stays a zombie until it is waited for
    deadline = time.monotonic() + 30
    while process_figures(ended.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process_figures(ended.pid) == {}
    ended.communicate()
    assert process_figures(ended.pid) == {}


def test_files_with_two_names_take_their_place_once(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(b"x" * 100_000)
    once = bytes_on_disk([tmp_path])
    assert 100_000 <= once < 200_000
    os.link(tmp_path / "deep" / "file", tmp_path / "link")
    assert bytes_on_disk([tmp_path]) == once
    assert bytes_on_disk([tmp_path / "missing"]) == 0


# ---- readers ---------------------------------------------------------------------------------------------------


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    monkeypatch.setattr(reader, "say", lambda **event: lines.append(event))
    return lines


def test_a_reader_sees_what_cannot_be(said: list[dict[str, Any]]) -> None:
    db = ZODB.DB(DemoStorage())
    newest: dict[str, int] = {}

    def commit(count: int, marks: int) -> None:
        with db.transaction() as connection:
            slot = connection.root().setdefault("drill-0", Slot())
            for number in range(marks):
                slot.latest = Mark(f"{number}", slot.latest)
            slot.count = count
        with db.transaction() as connection:
            reader._look(connection, newest)

    commit(0, 0)
    commit(1, 1)
    commit(8, 7)
    assert said == []
    commit(7, 0)
    assert said.pop() == {"event": "wrong", "what": "drill-0 went back from 8 commits to 7"}
    with db.transaction() as connection:
        connection.root()["drill-0"].latest = None
    commit(9, 2)
    assert said.pop() == {"event": "wrong", "what": "drill-0 has 9 commits, but a chain of 2"}
    assert said == []
    db.close()


# ---- victims ---------------------------------------------------------------------------------------------------


class FakeCluster:
    """Node 2 leads at first; when a leader is killed or hands over, the next one leads."""

    def __init__(self) -> None:
        self.leads = 1
        self.killed: list[int] = []

    def __len__(self) -> int:
        return 3

    def leader(self, timeout: float) -> int:
        return self.leads

    def node_id(self, i: int) -> int:
        return i + 1

    def kill(self, i: int) -> None:
        self.killed.append(i)
        if i == self.leads:
            self.leads = (i + 1) % 3

    def start(self, i: int) -> None: ...


class FakeWriters:
    acks = [Ack(0, "uid", "tid", 0.0, 1.0)]

    def wait_commits(self, since: float, count: int) -> None:
        self.acks = [*self.acks, Ack(0, "uid", "tid", since, since + 0.5)]


class Obliging(harm.Killer):
    def _hand_over(self, ground: harm.Ground, leader: int) -> int:
        ground.cluster.leads = 0  # type: ignore[attr-defined]
        return 0


@pytest.mark.parametrize("killer", [harm.Killer, Obliging])
def test_the_last_node_is_left_alone_in_the_second_half(
    killer: type[harm.Killer], monkeypatch: pytest.MonkeyPatch
) -> None:
    if killer is harm.Killer:
        monkeypatch.setattr(killer, "_hand_over", lambda self, ground, leader: leader)  # nobody takes over
    cluster, now = FakeCluster(), time.monotonic()
    said: list[str] = []
    ground = harm.Ground(cluster, FakeWriters(), said.append, now, now + 1000)  # type: ignore[arg-type]
    one = killer()
    for _ in range(6):
        one.strike(ground)
    assert set(cluster.killed) == {0, 1, 2}
    assert ground.struck == {"leader killed": 3, "follower killed": 3}
    ground.begun, ground.ends = now - 1000, now + 999
    cluster.killed.clear()
    for leads in (0, 1, 2) * 4:
        cluster.leads = leads
        one.strike(ground)
    assert set(cluster.killed) == {0, 1}
    assert len(ground.times) == 18
    assert "no commit for 0." in said[-1]


def test_the_help_names_what_to_install() -> None:
    """Square brackets are markup to the help's renderer."""
    assert "raftstorage[drill]" in CliRunner().invoke(app, ["drill", "soak", "--help"]).stdout
