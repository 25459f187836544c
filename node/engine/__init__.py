"""The MVCC object store that the log is applied to."""
