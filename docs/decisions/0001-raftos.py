"""What raftos 0.2.6 does with a vote, a duplicate, a late heartbeat and four nodes: 0001-own-consensus-core.md.

Needs `pip install --no-deps raftos==0.2.6` and `pip install msgpack`, in an environment of its own. No sockets:
the messages that UDP may deliver are delivered by hand.
"""
# ruff: noqa: T201

import asyncio
import tempfile

import raftos
import raftos.serializers
from raftos.state import State

# raftos catches asyncio.futures.InvalidStateError, which Python 3.8 moved: without this a follower's apply raises.
asyncio.futures.InvalidStateError = asyncio.InvalidStateError


class Server:
    """Node 1 of five; raftos leaves the node itself out of `cluster`."""

    def __init__(self):
        self.host, self.port = "n", 1
        self.cluster = {("n", 2), ("n", 3), ("n", 4), ("n", 5)}
        self.cluster_count = len(self.cluster)
        self.loop = asyncio.get_running_loop()

    async def send(self, data, destination):
        pass

    def broadcast(self, data):
        pass


async def main():
    # JSON, because its default serializer calls msgpack with an argument that msgpack 1.0 dropped.
    raftos.configure({"log_path": tempfile.mkdtemp() + "/", "serializer": raftos.serializers.JSONSerializer})
    sender = {"sender": ("n", 2)}

    state = State(Server())
    state.start()
    ask = sender | {"type": "request_vote", "term": 7, "last_log_index": 0, "last_log_term": 0}
    state.request_handler(ask | {"candidate_id": "n:2"})
    first = state.storage.voted_for
    state = State(Server())  # the process restarts
    state.start()
    state.request_handler(ask | {"candidate_id": "n:3"})
    print(f"in term {state.storage.term} it votes for {first} and then for {state.storage.voted_for}")

    state.to_candidate()
    vote = sender | {"type": "request_vote_response", "term": state.storage.term, "vote_granted": True}
    for _ in range(2):
        state.request_handler(vote)
    print(f"with one other vote of five, delivered twice, it is now: {type(state.state).__name__}")

    state.to_follower()
    term = state.storage.term
    append = sender | {"type": "append_entries", "term": term, "leader_id": "n:2", "request_id": 1}
    for index in (1, 2, 3):
        previous = {"prev_log_index": index - 1, "prev_log_term": term if index > 1 else 0}
        entry = {"commit_index": index, "entries": [{"term": term, "command": {"k": index}}]}
        state.request_handler(append | previous | entry)
    print(f"log length {len(state.log)}, commit index {state.log.commit_index}")
    state.request_handler(append | {"prev_log_index": 1, "prev_log_term": term, "commit_index": 1, "entries": []})
    print(f"after a heartbeat that came late: log length {len(state.log)}, commit index {state.log.commit_index}")

    state.server.cluster_count = 3
    print(f"two of four are a majority: {state.is_majority(2)}")


asyncio.run(main())
