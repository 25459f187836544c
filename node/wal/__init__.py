"""The durable transaction log: segments, checksums, group commit."""
