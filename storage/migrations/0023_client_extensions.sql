-- What clients use beyond the released specification.

-- The device that a user has stored for later (MSC3814), in the form of the client that made it.
CREATE TABLE dehydrated_devices (
  user_id text PRIMARY KEY,
  device_id text NOT NULL,
  data text NOT NULL
);

-- Events that are sticky (MSC4354), until they no longer are.
CREATE TABLE sticky_events (
  event_id text PRIMARY KEY,
  room bigint NOT NULL,
  pos bigint NOT NULL,
  expires_ts bigint NOT NULL
);
CREATE INDEX sticky_events_by_age ON sticky_events (expires_ts);

-- Redactions that also go for events which relate to their target (MSC3912), those that are still to come too.
CREATE TABLE related_redactions (
  target text NOT NULL,
  room bigint NOT NULL,
  sender text NOT NULL,
  -- `*` for any.
  rel_types text[] NOT NULL,
  reason text,
  ts bigint NOT NULL,
  PRIMARY KEY (target, sender)
);
CREATE INDEX related_redactions_by_age ON related_redactions (ts);

-- When fields of local users' profiles last changed, in the stream of presence (MSC4429, MSC4262).
CREATE TABLE profile_changes (
  user_id text NOT NULL,
  field text NOT NULL,
  pos bigint NOT NULL,
  PRIMARY KEY (user_id, field)
);
CREATE INDEX profile_changes_by_pos ON profile_changes (pos);

-- Events as they were before their redaction, for a configured time (MSC2815).
CREATE TABLE redacted_originals (
  event_id text PRIMARY KEY,
  sender text NOT NULL,
  json text NOT NULL,
  expires_ts bigint NOT NULL
);
CREATE INDEX redacted_originals_by_age ON redacted_originals (expires_ts);
CREATE INDEX redacted_originals_by_sender ON redacted_originals (sender);

-- Rooms by their creators, whom limits count.
CREATE INDEX events_creations ON events (sender) WHERE type = 'm.room.create';
