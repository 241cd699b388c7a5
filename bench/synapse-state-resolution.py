"""Times of Synapse's state resolution on the forks that `state-resolution.ts --dump FOLDER` writes down.

Run with the Python that has Synapse installed: `python bench/synapse-state-resolution.py FOLDER`. Its events and
their auth chains are in memory, as ours are; the difference of the auth chains is found here by walking.
"""

import asyncio
import json
import statistics
import sys
import time
import tracemalloc
from pathlib import Path

from synapse.api.room_versions import KNOWN_ROOM_VERSIONS
import synapse.event_auth  # noqa: F401  Synapse can only be imported in this order.
from synapse.events import make_event_from_dict
from synapse.state.v2 import resolve_events_with_store
from synapse.storage.databases.main.event_federation import StateDifference

ROUNDS = 3


class Clock:
    async def sleep(self, duration):
        pass


class Store:
    def __init__(self, events):
        self.events = events

    async def get_events(self, event_ids, allow_rejected=False):
        return {i: self.events[i] for i in event_ids if i in self.events}

    def chain(self, ids):
        seen, todo = set(), list(ids)
        while todo:
            event_id = todo.pop()
            if event_id in seen:
                continue
            seen.add(event_id)
            todo.extend(self.events[event_id].auth_event_ids())
        return seen

    async def get_auth_chain_difference(self, room_id, state_sets, conflicted, additional):
        chains = [self.chain(ids) for ids in state_sets]
        difference = set.union(*chains) - set.intersection(*chains)
        subgraph = None
        if conflicted is not None:
            # Between conflicted events: reached from one of them, and reaching one of them.
            reached = self.chain(conflicted)
            followers = {}
            for event_id in reached:
                for auth in self.events[event_id].auth_event_ids():
                    followers.setdefault(auth, []).append(event_id)
            subgraph, todo = set(), list(conflicted)
            while todo:
                event_id = todo.pop()
                if event_id not in subgraph:
                    subgraph.add(event_id)
                    todo.extend(followers.get(event_id, ()))
        return StateDifference(auth_difference=difference, conflicted_subgraph=subgraph)


def resolve(fork, events, states):
    version = KNOWN_ROOM_VERSIONS[fork["version"]]
    return asyncio.run(
        resolve_events_with_store(Clock(), fork["room_id"], version, states, None, Store(events))
    )


def measure(path):
    fork = json.loads(path.read_text())
    version = KNOWN_ROOM_VERSIONS[fork["version"]]
    events = {e.event_id: e for e in (make_event_from_dict(pdu, version) for pdu in fork["events"])}
    states = [{(type, key): event_id for type, key, event_id in state} for state in fork["states"]]
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        state = resolve(fork, events, states)
        times.append((time.process_time() - start) * 1000)
        assert len(state) == len(states[0])
    tracemalloc.start()
    resolve(fork, events, states)
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    print(f"{path.stem:>18}{times[0]:10.1f}{statistics.median(times):11.1f}{peak:9.1f}", flush=True)


print("              fork  first ms  median ms  peak MB")
for file in sorted(Path(sys.argv[1]).glob("*.json")):
    measure(file)
