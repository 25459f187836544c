"""The durable transaction log: segments, checksums, group commit. The format is described in `format.py`."""

from raftstorage.node.wal.format import WalDamaged, WalError
from raftstorage.node.wal.wal import Wal

__all__ = ["Wal", "WalDamaged", "WalError"]
