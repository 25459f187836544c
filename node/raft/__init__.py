"""The consensus core: pure Raft, with no clock, socket, disk or random source of its own.

It is driven by `tick()`, `step(message)`, `propose(data)`, `persisted(ticket)`; everything that must happen as
a consequence is collected from `take_output()`. Nothing in this folder imports another part of RaftStorage.
"""
