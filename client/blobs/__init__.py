"""Files of blobs on a client's disk: a bounded cache, or a directory that several clients share. Needs ZODB."""

from .directory import BlobDirectory

__all__ = ["BlobDirectory"]
