"""The `raftstorage` command and what operators use: local clusters, drills, import and export."""
