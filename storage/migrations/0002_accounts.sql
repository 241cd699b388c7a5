-- Accounts of this server. Rows are never removed: the name of a deactivated account stays taken.
CREATE TABLE accounts (
  user_id text PRIMARY KEY,
  created_ts bigint NOT NULL,
  -- A PHC string; null when there is no log-in by password.
  password_hash text,
  is_admin boolean NOT NULL DEFAULT false,
  is_guest boolean NOT NULL DEFAULT false,
  -- The application service that made the account.
  appservice_id text,
  locked boolean NOT NULL DEFAULT false,
  suspended boolean NOT NULL DEFAULT false,
  deactivated_ts bigint,
  erased boolean NOT NULL DEFAULT false
);
-- Deactivations that are not carried through yet: what was cut off by a stop goes on at the next start.
CREATE TABLE pending_deactivations (
  user_id text PRIMARY KEY,
  erase boolean NOT NULL
);

CREATE TABLE account_threepids (
  medium text NOT NULL,
  address text NOT NULL,
  user_id text NOT NULL,
  validated_ts bigint NOT NULL,
  added_ts bigint NOT NULL,
  PRIMARY KEY (medium, address)
);
CREATE INDEX account_threepids_by_user ON account_threepids (user_id);

CREATE TABLE devices (
  user_id text NOT NULL,
  device_id text NOT NULL,
  display_name text,
  created_ts bigint NOT NULL,
  last_seen_ts bigint,
  last_seen_ip text,
  last_seen_user_agent text,
  PRIMARY KEY (user_id, device_id)
);

-- One row for each access token with the refresh token that was given out together with it, both as SHA-256.
CREATE TABLE sessions (
  access_hash bytea PRIMARY KEY,
  access_expires_ts bigint,
  refresh_hash bytea UNIQUE,
  refresh_expires_ts bigint,
  -- The session that this one takes the place of as soon as one of its tokens is used.
  replaces bytea,
  user_id text NOT NULL,
  device_id text NOT NULL,
  created_ts bigint NOT NULL
);
CREATE INDEX sessions_by_device ON sessions (user_id, device_id);
CREATE INDEX sessions_by_replaced ON sessions (replaces) WHERE replaces IS NOT NULL;

-- `m.login.token`: each good for one log-in.
CREATE TABLE login_tokens (
  token_hash bytea PRIMARY KEY,
  user_id text NOT NULL,
  expires_ts bigint NOT NULL
);
CREATE INDEX login_tokens_by_expiry ON login_tokens (expires_ts);

CREATE TABLE openid_tokens (
  token_hash bytea PRIMARY KEY,
  user_id text NOT NULL,
  expires_ts bigint NOT NULL
);
CREATE INDEX openid_tokens_by_expiry ON openid_tokens (expires_ts);

CREATE TABLE registration_tokens (
  token text PRIMARY KEY,
  -- Null: any number.
  uses_allowed integer,
  used integer NOT NULL DEFAULT 0,
  expires_ts bigint,
  created_ts bigint NOT NULL
);

-- User-Interactive Authentication under way. Holds no password and nothing made from one.
CREATE TABLE uia_sessions (
  session_id text PRIMARY KEY,
  endpoint text NOT NULL,
  -- Whom the session belongs to; null for requests without an access token.
  user_id text,
  -- SHA-256 of the request's parameters besides `auth` and passwords; null while there were none.
  params_hash bytea,
  completed text[] NOT NULL DEFAULT '{}',
  -- What the stages found out: whose password it was, and the registration token.
  password_user_id text,
  registration_token text,
  expires_ts bigint NOT NULL
);
CREATE INDEX uia_sessions_by_expiry ON uia_sessions (expires_ts);

-- Values are JSON text.
CREATE TABLE profile_fields (
  user_id text NOT NULL,
  field text NOT NULL,
  value text NOT NULL,
  PRIMARY KEY (user_id, field)
);

-- Local users, and those of other servers seen in rooms.
CREATE TABLE user_directory (
  user_id text PRIMARY KEY,
  display_name text,
  avatar_url text,
  -- Orders results: local users first.
  local boolean NOT NULL
);
-- The words that a user is found by, folded; compared bytewise, so that a prefix is a range.
CREATE TABLE user_directory_words (
  word text COLLATE "C" NOT NULL,
  user_id text COLLATE "C" NOT NULL,
  PRIMARY KEY (word, user_id)
);
CREATE INDEX user_directory_words_by_user ON user_directory_words (user_id);
