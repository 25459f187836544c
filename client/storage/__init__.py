"""ZODB's storage interfaces over the cluster. Needs ZODB: `pip install raftstorage[zodb]`."""

from .storage import ClientStorage

__all__ = ["ClientStorage"]
