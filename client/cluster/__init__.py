"""Who is leader, which replica to read, retry and failover. Needs no ZODB."""

from .cluster import Cluster
from .policy import Call

__all__ = ["Call", "Cluster"]
