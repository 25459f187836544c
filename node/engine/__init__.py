"""The MVCC object store that the log is applied to."""

from raftstorage.node.engine.memory import MemoryEngine
from raftstorage.node.engine.rocks import RocksEngine

__all__ = ["MemoryEngine", "RocksEngine"]
