"""The bench's table: ratios of what was measured in one round, and its place in a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from raftstorage.ops.bench import Result, Row, as_markdown, sync_latencies, write_markdown


def result(rate: float = 50.0) -> Result:
    rows = [Row("commit 1 object", 1, [rate, 200.0, 90.0], [100.0, 100.0, 100.0])]
    return Result(3.0, 3, rows, [0.001] * 99 + [0.009])


def test_the_ratio_is_the_median_of_the_rounds_ratios() -> None:
    assert result().rows[0].ratio == 0.9
    with pytest.raises(ValueError, match="zip"):
        _ = Row("x", 1, [1.0], []).ratio


def test_json_has_the_disks_latency_beside_the_rates() -> None:
    value = result().as_json()
    assert value["fdatasync_ms"] == {"p50": 1.0, "p99": 1.0}
    assert value["rows"][0]["raftstorage_per_second"] == [50.0, 200.0, 90.0]


def test_markdown_replaces_its_own_table_only(tmp_path: Path) -> None:
    path = tmp_path / "performance.md"
    path.write_text("# Performance\n\nWords before.\n")
    write_markdown(result(), path)
    path.write_text(path.read_text() + "\nWords after.\n")
    first = path.read_text()
    write_markdown(result(80.0), path)
    second = path.read_text()
    assert second == first
    changed = result()
    changed.rows[0].raftstorage[:] = [500.0] * 3
    write_markdown(changed, path)
    third = path.read_text()
    assert "| 5.00 |" in third
    assert "| 0.90 |" not in third
    assert third.startswith("# Performance\n\nWords before.\n")
    assert third.endswith("\nWords after.\n")
    assert third.count("| commit 1 object |") == 1


def test_markdown_makes_a_file(tmp_path: Path) -> None:
    path = tmp_path / "new.md"
    write_markdown(result(), path)
    assert as_markdown(result()) in path.read_text()


def test_sync_latencies_are_real_and_leave_nothing(tmp_path: Path) -> None:
    latencies = sync_latencies(tmp_path, 5)
    assert len(latencies) == 5
    assert all(latency > 0 for latency in latencies)
    assert list(tmp_path.iterdir()) == []
