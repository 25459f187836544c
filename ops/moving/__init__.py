"""Whole databases on their way from any storage of ZODB's into a cluster, out of one, and compared."""
