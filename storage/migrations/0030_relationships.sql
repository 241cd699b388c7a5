-- Threads by `m.relationship` (MSC2836): which event names which as its parent, both of one room. Only accepted events.
CREATE TABLE event_relationships (
  room bigint NOT NULL,
  parent text NOT NULL,
  origin_server_ts bigint NOT NULL,
  child text NOT NULL,
  rel_type text NOT NULL,
  PRIMARY KEY (room, parent, origin_server_ts, child)
);
CREATE INDEX event_relationships_child ON event_relationships (child);

-- Events with children that are not all here, and what another server says of these.
CREATE TABLE unexplored_relationships (
  room bigint NOT NULL,
  event_id text NOT NULL,
  -- Numbers by relation type, a JSON object.
  children text NOT NULL,
  children_hash text NOT NULL,
  PRIMARY KEY (room, event_id)
);
