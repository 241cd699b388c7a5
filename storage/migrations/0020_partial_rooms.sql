-- Rooms that this server has joined and whose members are still being fetched (spec: `omit_members` of /send_join).
CREATE TABLE partial_rooms (
  room bigint PRIMARY KEY,
  -- The joins that were answered without the members, the first one first: the state before them is to be fetched.
  joins text[] NOT NULL,
  -- The server that answered the last of them, and all servers that it says are in the room.
  server text NOT NULL,
  servers text[] NOT NULL,
  -- Where the stream of device lists was: who turns out to be in the room has missed what changed since.
  device_lists_pos bigint NOT NULL
);

-- Position in the stream of events at which the room's state last became complete.
ALTER TABLE rooms ADD COLUMN complete_since bigint;
