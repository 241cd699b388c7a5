-- End-to-end encryption: keys, their signatures and backups, changes of device lists, send-to-device messages.
-- Keys and messages are JSON text, as they were uploaded.

CREATE TABLE device_keys (
  user_id text NOT NULL,
  device_id text NOT NULL,
  json text NOT NULL,
  PRIMARY KEY (user_id, device_id)
);

-- A claimed key stays for a while, so that an upload which is sent again does not bring it back.
CREATE TABLE one_time_keys (
  user_id text NOT NULL,
  device_id text NOT NULL,
  algorithm text NOT NULL,
  key_id text NOT NULL,
  -- Grows with each upload of the device: keys are given out in this order.
  upload bigint NOT NULL,
  claimed_ts bigint,
  json text NOT NULL,
  PRIMARY KEY (user_id, device_id, algorithm, key_id)
);
CREATE INDEX one_time_keys_unclaimed ON one_time_keys (user_id, device_id, algorithm, upload)
  WHERE claimed_ts IS NULL;

CREATE TABLE fallback_keys (
  user_id text NOT NULL,
  device_id text NOT NULL,
  algorithm text NOT NULL,
  key_id text NOT NULL,
  json text NOT NULL,
  used boolean NOT NULL DEFAULT false,
  PRIMARY KEY (user_id, device_id, algorithm)
);

-- Of local users; `usage` is master, self_signing or user_signing.
CREATE TABLE cross_signing_keys (
  user_id text NOT NULL,
  usage text NOT NULL,
  public_key text NOT NULL,
  json text NOT NULL,
  PRIMARY KEY (user_id, usage)
);

-- Signatures by local users, uploaded after the key that they are on.
CREATE TABLE key_signatures (
  user_id text NOT NULL,
  -- The signed device's id, or the signed cross-signing key in Base64.
  target text NOT NULL,
  signer text NOT NULL,
  -- `ed25519:…`
  key_id text NOT NULL,
  signature text NOT NULL,
  PRIMARY KEY (user_id, target, signer, key_id)
);
CREATE INDEX key_signatures_by_signer ON key_signatures (signer, key_id);

-- The stream of device lists.
CREATE TABLE device_list_changes (
  pos bigint PRIMARY KEY,
  -- Of this server or of another.
  user_id text NOT NULL,
  -- Of a local user; null: their cross-signing keys, or a user of another server.
  device_id text,
  -- Only these servers are to hear of it: they begin to share a room with the user, for others nothing is new.
  servers text[],
  -- Only this local user sees it: it is their signature on somebody's key.
  only_for text,
  ts bigint NOT NULL
);
CREATE INDEX device_list_changes_by_user ON device_list_changes (user_id, pos);

-- Deleted devices whose deletion is not in the stream yet.
CREATE TABLE device_list_unannounced (
  user_id text NOT NULL,
  device_id text NOT NULL,
  PRIMARY KEY (user_id, device_id)
);

-- Users of other servers whose devices are kept here, as long as they share a room with someone of this server.
CREATE TABLE remote_device_lists (
  user_id text PRIMARY KEY,
  -- The last `stream_id`s that the copy is made of.
  stream_ids bigint[] NOT NULL,
  -- An update was missed: the list has to be asked for again.
  stale boolean NOT NULL,
  master_key text,
  self_signing_key text
);
CREATE INDEX remote_device_lists_stale ON remote_device_lists (user_id) WHERE stale;

CREATE TABLE remote_devices (
  user_id text NOT NULL,
  device_id text NOT NULL,
  display_name text,
  keys text,
  PRIMARY KEY (user_id, device_id)
);

CREATE TABLE to_device_messages (
  user_id text NOT NULL,
  device_id text NOT NULL,
  -- In the stream of send-to-device messages.
  pos bigint NOT NULL,
  json text NOT NULL,
  PRIMARY KEY (user_id, device_id, pos)
);

-- Transactions of clients and messages of servers that were taken in already.
CREATE TABLE to_device_sent (
  user_id text NOT NULL,
  device_id text NOT NULL,
  -- SHA-256 of event type and transaction id.
  txn text NOT NULL,
  ts bigint NOT NULL,
  PRIMARY KEY (user_id, device_id, txn)
);
CREATE INDEX to_device_sent_by_age ON to_device_sent (ts);
CREATE TABLE to_device_received (
  origin text NOT NULL,
  message_id text NOT NULL,
  ts bigint NOT NULL,
  PRIMARY KEY (origin, message_id)
);
CREATE INDEX to_device_received_by_age ON to_device_received (ts);

CREATE TABLE key_backups (
  user_id text NOT NULL,
  version bigint NOT NULL,
  algorithm text NOT NULL,
  auth_data text NOT NULL,
  etag bigint NOT NULL DEFAULT 0,
  count bigint NOT NULL DEFAULT 0,
  -- The row stays: deleting once more is no error, and its number is not given out again.
  deleted boolean NOT NULL DEFAULT false,
  PRIMARY KEY (user_id, version)
);
CREATE TABLE key_backup_sessions (
  user_id text NOT NULL,
  version bigint NOT NULL,
  room_id text NOT NULL,
  session_id text NOT NULL,
  first_message_index bigint NOT NULL,
  forwarded_count bigint NOT NULL,
  is_verified boolean NOT NULL,
  session_data text NOT NULL,
  PRIMARY KEY (user_id, version, room_id, session_id)
);
