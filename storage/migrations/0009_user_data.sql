-- What users keep on the server, and how far they have read. JSON as text.

CREATE TABLE account_data (
  user_id text NOT NULL,
  -- Empty for global account data.
  room_id text NOT NULL,
  type text NOT NULL,
  -- `{}`: deleted, kept so that the user's clients hear of it (MSC3391).
  content text NOT NULL,
  -- Position in the stream of account data.
  pos bigint NOT NULL,
  PRIMARY KEY (user_id, room_id, type)
);

-- Named by their contents, so that uploading one again makes no second.
CREATE TABLE filters (
  user_id text NOT NULL,
  filter_id text NOT NULL,
  filter text NOT NULL,
  PRIMARY KEY (user_id, filter_id)
);

-- Rows only for users who changed something of the predefined rules.
CREATE TABLE push_rules (
  user_id text PRIMARY KEY,
  changes text NOT NULL,
  -- Position in the stream of account data: the rules are shown as `m.push_rules`.
  pos bigint NOT NULL
);

CREATE TABLE pushers (
  user_id text NOT NULL,
  app_id text NOT NULL,
  pushkey text NOT NULL,
  kind text NOT NULL,
  app_display_name text NOT NULL,
  device_display_name text NOT NULL,
  profile_tag text,
  lang text NOT NULL,
  data text NOT NULL,
  -- The device whose access token set it: they go together. Null for application services.
  device_id text,
  -- Position in the stream of events from which on it is to be told of notifications.
  pos bigint NOT NULL,
  created_ts bigint NOT NULL,
  PRIMARY KEY (user_id, app_id, pushkey)
);
CREATE INDEX pushers_key ON pushers (app_id, pushkey);

CREATE TABLE receipts (
  user_id text NOT NULL,
  room bigint NOT NULL,
  type text NOT NULL,
  -- `main` or the root of a thread; empty for unthreaded receipts.
  thread text NOT NULL,
  event_id text NOT NULL,
  -- The event's place in the room's order; null while it is not known here.
  event_pos bigint,
  ts bigint NOT NULL,
  -- Position in the stream of receipts.
  pos bigint NOT NULL,
  PRIMARY KEY (user_id, room, type, thread)
);
CREATE INDEX receipts_room ON receipts (room);

-- Unread counts as they were at a position, so that they need not be counted from the beginning (rooms/unread.ts).
CREATE TABLE unread_counts (
  user_id text NOT NULL,
  room bigint NOT NULL,
  -- Events up to here are counted.
  pos bigint NOT NULL,
  -- Where the membership began that they are counted for.
  joined_pos bigint NOT NULL,
  counts text NOT NULL,
  PRIMARY KEY (user_id, room)
);

-- Of local users only: what others showed of themselves is forgotten with the process.
CREATE TABLE presence (
  user_id text PRIMARY KEY,
  presence text NOT NULL,
  status_msg text,
  last_active_ts bigint NOT NULL
);
