"""Revisions of objects that a client has read or written, shared by the connections of a process."""

from .records import DEFAULT_BYTES, RecordCache

__all__ = ["DEFAULT_BYTES", "RecordCache"]
