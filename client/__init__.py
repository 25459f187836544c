"""Everything an application imports.

`ClientStorage` needs ZODB (`pip install raftstorage[zodb]`) and is imported when it is first asked for. The
errors need nothing; what a ClientStorage raises is derived from them and from ZODB's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .cluster.errors import (
    BlobDamaged,
    BlobDirectoryFull,
    ClientDisconnected,
    ClusterError,
    CommitOutcomeUnknown,
    DirectoryInUse,
    EmbeddedError,
    LeaseExpired,
    ProtocolMismatch,
    RecordTooLarge,
    StorageBusy,
    StorageFull,
    UploadExpired,
    WrongCluster,
)

if TYPE_CHECKING:
    from .storage import ClientStorage

__all__ = [
    "BlobDamaged",
    "BlobDirectoryFull",
    "ClientDisconnected",
    "ClientStorage",
    "ClusterError",
    "CommitOutcomeUnknown",
    "DirectoryInUse",
    "EmbeddedError",
    "LeaseExpired",
    "ProtocolMismatch",
    "RecordTooLarge",
    "StorageBusy",
    "StorageFull",
    "UploadExpired",
    "WrongCluster",
]


def __getattr__(name: str) -> Any:
    if name != "ClientStorage":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from .storage import ClientStorage
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] == "ZODB":
            raise ImportError("ClientStorage needs ZODB: pip install 'raftstorage[zodb]'") from error
        raise
    return ClientStorage
