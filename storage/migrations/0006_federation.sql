-- Keys of other servers, each as last seen. A key that a server has stopped using stays: it verifies old events.
CREATE TABLE server_keys (
  server_name text NOT NULL,
  key_id text NOT NULL,
  public_key text NOT NULL,
  -- Valid until then; for a key of old_verify_keys, when it expired.
  valid_until_ts bigint NOT NULL,
  expired boolean NOT NULL,
  PRIMARY KEY (server_name, key_id)
);

-- The last answer of a server's /_matrix/key/v2/server, which the notary hands on with its own signature.
CREATE TABLE server_key_responses (
  server_name text PRIMARY KEY,
  response text NOT NULL,
  fetched_ts bigint NOT NULL,
  valid_until_ts bigint NOT NULL
);

-- Servers that could not be reached. A server that answers has no row.
CREATE TABLE federation_backoff (
  destination text PRIMARY KEY,
  failing_since_ts bigint NOT NULL,
  failures integer NOT NULL,
  retry_after_ts bigint NOT NULL
);
