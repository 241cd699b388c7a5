-- Rooms, their events and their state. JSON is kept as text: jsonb refuses "\u0000" and loses how numbers were written.

-- Numeric ids of rooms, events, state keys and snapshots come in blocks from one sequence (storage/id-allocator.ts).
CREATE SEQUENCE ids INCREMENT BY 65536 START WITH 65536;

CREATE TABLE rooms (
  nid bigint PRIMARY KEY,
  room_id text NOT NULL UNIQUE,
  version text NOT NULL,
  -- Events that nothing follows yet; empty where this server is not in the room (an invite from elsewhere).
  extremities text[] NOT NULL DEFAULT '{}',
  -- The newest layer of the state after the extremities.
  state bigint,
  -- Highest depth of the extremities, so that a new event needs no look at them.
  depth bigint NOT NULL DEFAULT 0,
  published boolean NOT NULL DEFAULT false
);
CREATE INDEX rooms_published ON rooms (nid) WHERE published;

CREATE TABLE events (
  nid bigint PRIMARY KEY,
  event_id text NOT NULL UNIQUE,
  room bigint NOT NULL,
  -- Place in the room's one order, and in the stream of events; NULL for outliers.
  pos bigint,
  -- Filled in from before something that was known already: has a position but was never news.
  backfilled boolean NOT NULL DEFAULT false,
  -- 0 accepted, 1 soft-failed, 2 rejected.
  status smallint NOT NULL DEFAULT 0,
  -- State snapshot before the event; NULL for outliers.
  state_before bigint,
  depth bigint NOT NULL,
  origin_server_ts bigint NOT NULL,
  sender text NOT NULL,
  type text NOT NULL,
  -- NULL for events that are not state events.
  state_key text,
  -- For state events: the event that it took the place of.
  replaces text,
  redacted_by text,
  -- Who sent it with which transaction id, for local echo and idempotence.
  txn_device text,
  txn_id text,
  json text NOT NULL
);
CREATE UNIQUE INDEX events_room_pos ON events (room, pos) WHERE pos IS NOT NULL;
CREATE INDEX events_news ON events (pos) WHERE pos IS NOT NULL AND NOT backfilled;
CREATE INDEX events_txn ON events (sender, txn_device, nid) WHERE txn_id IS NOT NULL;

-- Interned (type, state_key) pairs; `key` is the JSON array of both, since a state key may hold U+0000.
CREATE TABLE state_keys (
  nid bigint PRIMARY KEY,
  key text NOT NULL UNIQUE
);

-- A snapshot is a chain of layers, each the changes over its base (storage/state-snapshots.ts).
CREATE TABLE state_snapshots (
  id bigint PRIMARY KEY,
  room bigint NOT NULL,
  base bigint,
  keys bigint[] NOT NULL,
  -- Event nids beside `keys`; 0 where the key is gone.
  events bigint[] NOT NULL
);

-- Membership in the current state, of everyone; and of local users in rooms that this server is not in.
CREATE TABLE room_members (
  user_id text NOT NULL,
  room bigint NOT NULL,
  membership text NOT NULL,
  event_id text NOT NULL,
  sender text NOT NULL,
  -- Position in the stream of events at which the membership became this.
  pos bigint NOT NULL,
  -- Stripped state sent along with an invite or after a knock, a JSON array.
  stripped_state text,
  forgotten boolean NOT NULL DEFAULT false,
  PRIMARY KEY (user_id, room)
);
CREATE INDEX room_members_room ON room_members (room, membership);

-- Events named by others as predecessors, which are not here: where backfill goes on.
CREATE TABLE backward_extremities (
  room bigint NOT NULL,
  event_id text NOT NULL,
  -- The event here that names it, and its position.
  successor text NOT NULL,
  pos bigint NOT NULL,
  PRIMARY KEY (room, event_id, successor)
);

CREATE TABLE relations (
  room bigint NOT NULL,
  target text NOT NULL,
  event_id text NOT NULL,
  pos bigint NOT NULL,
  rel_type text NOT NULL,
  type text NOT NULL,
  sender text NOT NULL,
  aggregation_key text,
  PRIMARY KEY (room, target, pos, event_id)
);
CREATE INDEX relations_event ON relations (event_id);

CREATE TABLE room_aliases (
  alias text PRIMARY KEY,
  room_id text NOT NULL,
  creator text NOT NULL,
  servers text[] NOT NULL DEFAULT '{}'
);
CREATE INDEX room_aliases_room ON room_aliases (room_id);
