"""Real node processes, each in a network namespace of its own, with disks that can be made to fail."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from raftstorage.ops.local import ClusterError, LocalCluster

from tests.e2e.nemesis.disk import SmallDisk, Syncs, compile_shim, why_no_shim
from tests.e2e.nemesis.network import Namespaces

#: Room for two segments of the log and the database.
DISK_BYTES = 192 << 20


class NemesisCluster(LocalCluster):
    """A LocalCluster whose node i runs in `network`'s namespace i: `with NemesisCluster(network) as cluster: ...`.

    Nodes in `small_disks` (indexes) keep their directory on a tmpfs of DISK_BYTES. Syncs can be made to fail where
    a C compiler is there (`why_no_shim`). Leaving it kills all nodes; nothing of it is left.
    """

    def __init__(
        self,
        network: Namespaces,
        directory: str | os.PathLike[str] | None = None,
        *,
        small_disks: tuple[int, ...] = (),
        **options: str | int | float,
    ) -> None:
        self.network = network
        super().__init__(len(network), directory, options=options)
        self._disks = {i: SmallDisk(self.directory / f"disk-{self.node_id(i)}", DISK_BYTES) for i in small_disks}
        self._syncs: dict[int, Syncs] = {}

    def __enter__(self) -> NemesisCluster:
        try:
            if not why_no_shim():
                library = compile_shim(self.directory)
                self._syncs = {i: self._caught(library, i) for i in range(len(self))}
            for disk in self._disks.values():
                disk.mount()
        except BaseException:
            self.close()
            raise
        super().__enter__()
        return self

    def _caught(self, library: Path, i: int) -> Syncs:
        return Syncs(library, self.node_directory(i).resolve() / "log", self.directory / f"trigger-{i}")

    def close(self) -> None:
        """Kills all nodes, then removes mounts and a temporary directory."""
        for i in range(len(self)):
            if self.is_running(i):
                self.kill(i)
        for disk in self._disks.values():
            disk.unmount()
        super().close()

    # ---- the seam --------------------------------------------------------------------------------------

    def host(self, i: int) -> str:
        return self.network.hosts[i]

    def prefix(self, i: int) -> list[str]:
        return self.network.prefix(i)

    def environment(self, i: int) -> dict[str, str]:
        return self._syncs[i].environment() if i in self._syncs else {}

    def node_directory(self, i: int) -> Path:
        if i in self._disks:
            return self._disks[i].path / "node"
        return super().node_directory(i)

    # ---- faults ----------------------------------------------------------------------------------------

    @property
    def small_disks(self) -> list[int]:
        return list(self._disks)

    def disk(self, i: int) -> SmallDisk:
        """The tmpfs of node i. KeyError when it has none."""
        return self._disks[i]

    def syncs(self, i: int) -> Syncs:
        """What node i's syncs do. KeyError where they cannot be caught."""
        return self._syncs[i]

    def log_text(self, i: int) -> str:
        """All that node i ever wrote to standard error."""
        return self.log_path(i).read_text(errors="replace") if self.log_path(i).exists() else ""

    def heal_all(self) -> None:
        """Undoes every fault but damage: nets, disks, stopped processes. Starts nobody."""
        self.network.heal()
        for syncs in self._syncs.values():
            syncs.work()
        for disk in self._disks.values():
            disk.make_room()
        for i in list(self._paused):
            with contextlib.suppress(ClusterError, ProcessLookupError):
                self.resume(i)
