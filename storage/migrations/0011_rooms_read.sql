-- For `timestamp_to_event`.
CREATE INDEX events_room_ts ON events (room, origin_server_ts) WHERE pos IS NOT NULL;

-- Threads of a room, by their newest event.
CREATE INDEX relations_threads ON relations (room, target, pos) WHERE rel_type = 'm.thread';

-- Rooms and events that users reported (spec: "Reporting Content"), for the server's administrators.
CREATE TABLE content_reports (
  id bigint PRIMARY KEY,
  reported_ts bigint NOT NULL,
  reporter text NOT NULL,
  room_id text NOT NULL,
  event_id text,
  reason text NOT NULL,
  score integer
);
CREATE INDEX content_reports_ts ON content_reports (reported_ts);

-- Rooms that application services list in a directory of a network of theirs.
CREATE TABLE network_rooms (
  appservice_id text NOT NULL,
  network_id text NOT NULL,
  room bigint NOT NULL,
  PRIMARY KEY (appservice_id, network_id, room)
);

-- The index that /search reads. A room is indexed when somebody first searches it (rooms/search-index.ts).
CREATE TABLE search_words (
  -- The event's nid, and its room's.
  event bigint PRIMARY KEY,
  room bigint NOT NULL,
  pos bigint NOT NULL,
  -- 0 message, 1 room name, 2 topic.
  kind smallint NOT NULL,
  length integer NOT NULL,
  -- Folded words, and one entry that names the room.
  words text[] NOT NULL
);
CREATE INDEX search_words_words ON search_words USING gin (words);

-- How far each room is indexed: everything at positions from `oldest` to `newest`.
CREATE TABLE search_rooms (
  room bigint PRIMARY KEY,
  oldest bigint NOT NULL,
  newest bigint NOT NULL,
  complete boolean NOT NULL DEFAULT false
);
