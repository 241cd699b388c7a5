-- Delivery to other servers. What has been delivered leaves no trace; what has not is known from here and from the
-- events after `events_pos` (federation/outbound/delivery-store.ts).

-- One row: everything up to these positions has been delivered or stands in the tables below.
CREATE TABLE federation_progress (
  singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
  events_pos bigint NOT NULL,
  device_lists_pos bigint NOT NULL
);

-- A destination that is behind in a room: it lacks the events from one position on, up to where it left the room.
CREATE TABLE federation_backlog (
  destination text NOT NULL,
  room_id text NOT NULL,
  -- Where it fell behind; what was delivered since moves `from_pos`.
  opened bigint NOT NULL,
  from_pos bigint NOT NULL,
  -- NULL while the destination is in the room.
  to_pos bigint,
  PRIMARY KEY (destination, room_id, opened)
);

-- A destination that is behind with the changes of device lists: it lacks those after the position.
CREATE TABLE federation_device_backlog (
  destination text PRIMARY KEY,
  pos bigint NOT NULL
);

-- Messages to devices of other servers' users, until they are delivered.
CREATE TABLE federation_edus (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  destination text NOT NULL,
  edu_type text NOT NULL,
  content text NOT NULL
);
CREATE INDEX federation_edus_destination ON federation_edus (destination, id);

-- Events of other servers' users that this server passes on to the room's servers, since it took them in.
CREATE TABLE relayed_events (
  room bigint NOT NULL,
  pos bigint NOT NULL,
  PRIMARY KEY (room, pos)
);
