-- Events that local users have scheduled (MSC4140), until they are sent or cancelled.
CREATE TABLE delayed_events (
  delay_id text PRIMARY KEY,
  user_id text NOT NULL,
  -- Hash of the device and the transaction that scheduled it. NULL for state events, which have no transaction.
  transaction_hash text,
  -- Room, type, state key and content: a JSON object.
  event text NOT NULL,
  -- Milliseconds, from `running_since` on.
  delay bigint NOT NULL,
  running_since bigint NOT NULL,
  due bigint NOT NULL
);
CREATE INDEX delayed_events_due ON delayed_events (due);
CREATE INDEX delayed_events_user ON delayed_events (user_id);
