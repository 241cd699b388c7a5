-- Application services: how far each has been told of what happens, and what it is being told now.

CREATE TABLE appservice_deliveries (
  -- Of the registration.
  id text PRIMARY KEY,
  -- Everything up to these positions of the streams has been delivered or is in the transaction below.
  events_pos bigint NOT NULL,
  to_device_pos bigint NOT NULL,
  device_lists_pos bigint NOT NULL,
  -- The transaction that is under way, kept so that it is the same whenever it is tried again. NULL: none is.
  txn_id text,
  -- Numeric ids of its events, in their order.
  txn_events bigint[] NOT NULL DEFAULT '{}',
  -- The rest of it, which does not exist anywhere else: a JSON object.
  txn_more text NOT NULL DEFAULT '{}'
);

-- Memberships in rooms elsewhere have no place among the events: found by their position.
CREATE INDEX room_members_pos ON room_members (pos);
