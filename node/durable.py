"""What a node's directory holds, opened: the log and the database, made to agree."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from raftstorage.node.engine import RocksEngine
from raftstorage.node.engine.api import Engine, EngineError
from raftstorage.node.engine.rocks import CACHE_BYTES
from raftstorage.node.identity import NodeDirectory, NodeIdentity
from raftstorage.node.raft.membership import Membership
from raftstorage.node.snapshots.install import Installed, clean, current
from raftstorage.node.wal import Wal


@dataclass(frozen=True, slots=True)
class Durable:
    """`membership`: as of what the engine has applied."""

    wal: Wal
    engine: RocksEngine
    membership: Membership


@contextlib.contextmanager
def opened(
    directory: NodeDirectory,
    identity: NodeIdentity,
    flush: Callable[[], bool] = lambda: True,
    *,
    cache_bytes: int = CACHE_BYTES,
) -> Iterator[Durable]:
    """The log and the database that are this node's; closed at the end, the database flushed if `flush()`.

    Finishes the installation of a snapshot that a crash broke off. WalError, EngineError, InstallError: they are
    damaged or do not belong together. OSError.
    """
    with contextlib.ExitStack() as close:
        clean(directory.path)
        installed = current(directory.path)
        wal = Wal.open(directory.log)
        close.callback(wal.close)
        engine = RocksEngine(directory.path / installed.name, cache_bytes=cache_bytes)
        close.callback(engine.close)
        close.callback(lambda: engine.flush() if flush() else None)
        agree(wal, engine, installed)
        wal.clean()
        yield Durable(wal, engine, membership_of(engine, identity))


def agree(wal: Wal, engine: Engine, installed: Installed) -> None:
    """Makes the log follow a database that came as a snapshot; `Wal.clean` is for the caller.

    EngineError: the two do not fit; WalError.
    """
    if installed.index and not _holds(wal, installed.index, installed.term):
        if engine.applied_index < installed.index:
            raise EngineError(f"{installed.name} holds what was applied up to entry {engine.applied_index} only")
        # The database had become the node's; its log is still the one of before.
        wal.reset(installed.index, installed.term)
        wal.forget(installed.index)
    if engine.applied_index > wal.last_index():
        raise EngineError(
            f"the log ends at entry {wal.last_index()}, but {installed.name} holds what was applied up to entry "
            f"{engine.applied_index}: the log has lost its tail"
        )
    if engine.applied_index < wal.base[0]:
        raise EngineError(
            f"the log begins behind entry {wal.base[0]}, but {installed.name} holds what was applied up to entry "
            f"{engine.applied_index} only: the database has lost what it had on disk"
        )


def membership_of(engine: Engine, identity: NodeIdentity) -> Membership:
    """As of what the engine has applied: the newest entry that says so, or as the cluster was founded."""
    if engine.membership:
        return Membership.decode(engine.membership)
    return Membership.initial(identity.members) if identity.members else Membership()


def _holds(wal: Wal, index: int, term: int) -> bool:
    """Whether the log goes on from a snapshot at that entry, or has got further."""
    base = wal.base[0]
    if base > index:
        return True
    return wal.last_index() >= index and wal.term(index) == term
