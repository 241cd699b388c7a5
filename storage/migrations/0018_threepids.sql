-- E-mail addresses and phone numbers being confirmed. Neither the client's secret nor the token is stored itself.
CREATE TABLE threepid_sessions (
  sid text PRIMARY KEY,
  medium text NOT NULL,
  address text NOT NULL,
  client_secret_hash bytea NOT NULL,
  -- What it is good for: `register`, `add` or `password`.
  purpose text NOT NULL,
  send_attempt bigint NOT NULL,
  -- Null while there is nothing to confirm: the address was told only that this does not work.
  token_hash bytea,
  -- Wrong tokens that were tried.
  tries integer NOT NULL DEFAULT 0,
  next_link text,
  validated_ts bigint,
  expires_ts bigint NOT NULL,
  UNIQUE (medium, address, client_secret_hash, purpose)
);
CREATE INDEX threepid_sessions_by_expiry ON threepid_sessions (expires_ts);

-- JSON of what the stages m.login.email.identity and m.login.msisdn have confirmed.
ALTER TABLE uia_sessions ADD COLUMN threepids text;
