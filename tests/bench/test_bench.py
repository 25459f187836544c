"""`raftstorage bench` runs, and measures both systems. How fast they are is not a test's business."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from raftstorage.ops.bench import JOBS

BENCH = [sys.executable, "-m", "raftstorage.ops.cli", "bench"]


def test_every_job_is_measured_on_both_systems(tmp_path: Path) -> None:
    path = tmp_path / "performance.md"
    done = subprocess.run(
        [*BENCH, "--seconds", "0.3", "--rounds", "1", "--clients", "2", "--json", "--markdown", str(path)],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [(row["name"], row["clients"]) for row in result["rows"]] == [(name, 2) for name, _ in JOBS]
    for row in result["rows"]:
        (ours,), (theirs,) = row["raftstorage_per_second"], row["zeo_per_second"]
        assert ours > 0
        assert theirs > 0
        assert row["ratio"] == pytest.approx(ours / theirs, rel=0.05)  # the rates are told rounded
    assert result["fdatasync_ms"]["p50"] > 0
    assert path.read_text().count("| commit 1 object |") == 1


def test_a_bench_without_clients_is_refused() -> None:
    for clients in ("0", "9", "many", ""):
        done = subprocess.run([*BENCH, "--clients", clients], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
