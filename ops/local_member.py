"""What a local cluster remembers of a node, in `cluster.json`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LocalMember:
    """`node_id` 0: the cluster has not given it one yet. `founder`: was there from the beginning."""

    node_id: int
    port: int
    metrics_port: int
    founder: bool = True
    learner: bool = False
    gone: bool = False  # removed from the cluster; its place in the list stays, so that indexes do
