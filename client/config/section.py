"""`<raftstorage>` in a ZConfig file that says `%import raftstorage.client` (component.xml)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ZODB.config import BaseConfig

from .options import OPTIONS, servers

if TYPE_CHECKING:
    from ..storage import ClientStorage


class RaftStorageSection(BaseConfig):  # type: ignore[misc]
    """A checked section: ValueError, which ZConfig reports with the file's line, for what cannot be meant."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if bool(config.server) == bool(config.directory):
            raise ValueError("<raftstorage> wants either `server` or `directory`")
        self.addresses: str | tuple[str, ...] = (
            f"embedded:{config.directory}" if config.directory else servers(config.server)
        )
        self.options = {name: getattr(config, name) for name in OPTIONS if getattr(config, name) is not None}
        if "blob_dir" not in self.options and {"blob_cache_size", "shared_blob_dir"} & self.options.keys():
            raise ValueError("blob-cache-size and shared-blob-dir want a blob-dir")

    def open(self) -> ClientStorage:
        """Connects; the storage's name is the section's if it has no other."""
        from ..storage import ClientStorage

        options = dict(self.options)
        if self.name:
            options.setdefault("name", self.name)
        return ClientStorage(self.addresses, **options)
