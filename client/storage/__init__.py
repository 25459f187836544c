"""ZODB's storage interfaces over the cluster."""
