"""An event loop that is held up shows, on the metrics page and in the log."""

from __future__ import annotations

import logging

import pytest
from raftstorage.node.service.metrics import NodeMetrics
from raftstorage.node.service.stalls import QUIET_SECONDS, Stalls


def test_the_longest_lag_since_the_page_was_read() -> None:
    metrics = NodeMetrics()
    for seconds in (0.001, 0.3, 0.06, 0.049):
        metrics.lagged(seconds)
    get = metrics.registry.get_sample_value
    assert metrics.connected_sessions() == 0  # asking for something else is no reading of the page
    assert get("raftstorage_node_loop_lag_max_seconds") == 0.3
    assert get("raftstorage_node_loop_lag_max_seconds") == 0.0
    assert get("raftstorage_node_loop_stalls_total") == 2


def test_long_stalls_are_told_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    stalls = Stalls()
    with caplog.at_level(logging.WARNING):
        stalls.lagged(0.19, 100.0)
        assert caplog.messages == []
        stalls.lagged(0.25, 101.0)
        stalls.lagged(0.9, 102.0)
        stalls.lagged(0.3, 103.0)
        assert caplog.messages == ["the event loop was held up for 250 ms"]
        stalls.lagged(0.0, 101.0 + QUIET_SECONDS)
        assert caplog.messages[1:] == ["the event loop was held up for 900 ms"]
        assert [record.stalls for record in caplog.records] == [1, 2]  # type: ignore[attr-defined]
        stalls.lagged(0.0, 101.0 + 5 * QUIET_SECONDS)
        assert len(caplog.messages) == 2
